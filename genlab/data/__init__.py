"""One datamodule for every data set, one `ImageSource` for each, one order that can be resumed."""
