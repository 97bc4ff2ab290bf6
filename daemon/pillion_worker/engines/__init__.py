"""Engines: each module here is one, and brings `load(model, request)`. See `interface.py`."""
