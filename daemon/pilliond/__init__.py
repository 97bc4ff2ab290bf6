"""The daemon: serves a policy to the simulators of this host."""

__version__ = "0.1.0"
