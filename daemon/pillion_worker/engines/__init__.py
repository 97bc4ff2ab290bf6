"""Engines: each module here is one, and brings `load(model, request, meter)`. See `interface.py`."""
