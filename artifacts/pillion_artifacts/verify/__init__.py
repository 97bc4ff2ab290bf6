"""Signatures, keys, and whose signatures count for which policy."""
