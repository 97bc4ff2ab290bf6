"""The control process's hold on the serving process: start, watch, ask, restart.

Knows which versions are loaded there, and with which arms, so that a restart finds them again.
"""
