"""Errors of the worker, by culprit.

EngineError (the model: an engine cannot be built from it, or a batch failed)
ChannelError (the other process: a packet is not what the channel expects)
"""

from __future__ import annotations


class EngineError(Exception):
    """The engine cannot be built from this model, or it failed to run a batch."""


class ChannelError(Exception):
    """A packet of the other process cannot be read, or is not the one that is due."""
