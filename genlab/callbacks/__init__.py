"""What watches a training: checkpoints, averaged weights, progress, pictures."""
