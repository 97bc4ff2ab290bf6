"""Engines: what turns a batch of observations into actions, and what checks an engine before it serves.

`interface.py` is the interface; each engine is one module behind it. Knows no session, no socket and no wire.
"""
