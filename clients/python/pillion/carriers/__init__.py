"""Carriers on the client's side: how a message gets to the daemon and back, over ZeroMQ and over the lane."""
