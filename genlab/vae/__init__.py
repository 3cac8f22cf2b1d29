"""The VAE as three distributions, q(z|x), p(x|z) and p(z), and functions of them."""
