"""Data: one `ImageSource` for each data set, one datamodule for all, and a resumable order."""
