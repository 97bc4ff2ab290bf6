"""Errors of the worker, by culprit.

EngineError (the model: an engine cannot be built from it, or a batch failed)
ChannelError (the other process: a packet is not what the channel expects)
DriverError (the host: it has no CUDA driver or no such device, or the driver refuses)
"""

from __future__ import annotations

from pillion_worker.limits import REASON_CHARS_MAX


class EngineError(Exception):
    """The engine cannot be built from this model, or it failed to run a batch."""


class ChannelError(Exception):
    """A packet of the other process cannot be read, or is not the one that is due."""


class DriverError(Exception):
    """The CUDA driver is not there, or refuses."""


def one_line(error: BaseException) -> str:
    """Returns the text of an error, whoever made it: printable, on one line, of at most `REASON_CHARS_MAX` characters."""
    try:
        text = str(error)
    except BaseException:  # noqa: BLE001 - an error of a foreign package may fail in its own text, or exit
        return "(its text cannot be read)"
    # Cut first: the text may be as large as memory.
    words = text[: 2 * REASON_CHARS_MAX].encode("utf-8", "replace").decode().split()
    return " ".join(words)[:REASON_CHARS_MAX]
