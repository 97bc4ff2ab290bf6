"""Carriers: how the client exchanges messages with the daemon, over ZeroMQ or over the lane."""
