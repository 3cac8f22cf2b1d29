"""Networks, which know the shapes of their inputs and outputs, but no loss and no schedule."""
