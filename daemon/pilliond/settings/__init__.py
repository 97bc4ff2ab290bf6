"""The daemon's settings: their schema, where they come from, and the addresses that they name.

A mistake is one line that begins with the setting's path.
"""
