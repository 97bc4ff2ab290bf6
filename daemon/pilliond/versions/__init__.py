"""A version in memory: its engine, its specification, its state, and how it is built and warmed.

Used by the serving, staging and shadow processes alike.
"""
