"""Features of images, in which the distances between sets of images are measured."""
