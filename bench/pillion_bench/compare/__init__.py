"""`pillion bench compare`: Pillion beside its floors and its peers."""
