"""Carriers on the daemon's side: bytes to messages and back, over ZeroMQ and over the lane.

A new carrier is one module behind `interface.py`. Knows no session.
"""
