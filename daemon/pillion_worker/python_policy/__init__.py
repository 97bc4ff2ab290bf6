"""Python policies: the installed package that makes one, and its weights. Standard library and numpy alone."""
