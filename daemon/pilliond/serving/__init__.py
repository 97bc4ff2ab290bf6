"""The serving process: `__main__.py` starts it, `loop.py` runs it.

The only room with a loop on the data plane. Does what `core` decides, with the sockets of `transport` and the engines
of `engine`. Hot path.
"""
