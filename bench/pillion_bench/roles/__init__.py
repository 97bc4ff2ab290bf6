"""The roles of worker processes: each is a function that takes the pipe to the parent."""
