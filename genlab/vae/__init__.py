"""Variational autoencoders: the distributions q(z|x), p(x|z), p(z), and functions of them."""
