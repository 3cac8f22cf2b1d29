"""Networks: shapes in, shapes out; no loss and no schedule."""
