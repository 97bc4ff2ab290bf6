"""One module per measurement of `pillion bench`, and its table."""
