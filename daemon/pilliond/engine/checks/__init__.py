"""Checks of what clients observe: integers within bounds, and text."""
