"""The client of a Pillion daemon: it sends observations and gets actions.

    import pillion

    with pillion.connect("ipc:///run/user/1000/pillion/zmq.sock") as session:
        episode = session.begin(seed=7)
        action = episode.act(observation, deterministic=True)
        episode.end()

`pillion.aio.connect` has the same calls for asyncio. `pillion.Policy` has Stable-Baselines3's `predict`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pillion import aio
    from pillion.errors import (
        EngineOutError,
        EngineRestartingError,
        EpisodeLostError,
        InvalidObservationError,
        PillionError,
        RefusedError,
        RequestTimeoutError,
        StateLostError,
        UnavailableError,
    )
    from pillion.outcome import Outcome, Timings
    from pillion.policy import Policy
    from pillion.session import Episode, EpisodeGroup, Session, connect

__version__ = "0.1.0"

__all__ = [
    "EngineOutError",
    "EngineRestartingError",
    "Episode",
    "EpisodeGroup",
    "EpisodeLostError",
    "InvalidObservationError",
    "Outcome",
    "PillionError",
    "Policy",
    "RefusedError",
    "RequestTimeoutError",
    "Session",
    "StateLostError",
    "Timings",
    "UnavailableError",
    "aio",
    "connect",
]

_MODULES = {
    "EngineOutError": "errors",
    "EngineRestartingError": "errors",
    "Episode": "session",
    "EpisodeGroup": "session",
    "EpisodeLostError": "errors",
    "InvalidObservationError": "errors",
    "Outcome": "outcome",
    "PillionError": "errors",
    "Policy": "policy",
    "RefusedError": "errors",
    "RequestTimeoutError": "errors",
    "Session": "session",
    "StateLostError": "errors",
    "Timings": "outcome",
    "UnavailableError": "errors",
    "connect": "session",
}


def __getattr__(name: str) -> Any:
    """Imports a public name at its first use.

    So a blocking program does not import asyncio, and `pillion --help` waits for neither numpy nor ZeroMQ.
    """
    if name == "aio":
        return importlib.import_module("pillion.aio")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"pillion.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
