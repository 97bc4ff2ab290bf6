"""Supervises the serving process: starts it, watches it, sends it control messages, and restarts it.

Knows which versions are loaded there, and with which arms, so that a restart brings them back.
"""
