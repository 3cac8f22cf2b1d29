"""The generative adversarial network: a generator, a discriminator, and the losses of both."""
