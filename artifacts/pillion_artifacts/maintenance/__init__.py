"""Maintenance of a store: garbage collection, `fsck`, repair."""
