"""The client of a Pillion daemon: observation in, action out.

    import pillion

    with pillion.connect("ipc:///run/user/1000/pillion/zmq.sock") as session:
        episode = session.begin(seed=7)
        action = episode.act(observation, deterministic=True)
        episode.end()

`pillion.aio.connect` has the same words for asyncio; `pillion.Policy` is a Stable-Baselines3 `predict`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pillion import aio
    from pillion.errors import (
        EpisodeLostError,
        InvalidObservationError,
        PillionError,
        RefusedError,
        RequestTimeoutError,
        UnavailableError,
    )
    from pillion.outcome import Outcome, Timings
    from pillion.policy import Policy
    from pillion.session import Episode, EpisodeGroup, Session, connect

__version__ = "0.1.0"

__all__ = [
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
    "Timings",
    "UnavailableError",
    "aio",
    "connect",
]

_HOMES = {
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
    "Timings": "outcome",
    "UnavailableError": "errors",
    "connect": "session",
}


def __getattr__(name: str) -> Any:
    """Imports a public name at its first use.

    Who does not need asyncio does not pay for `pillion.aio`, and `pillion --help` waits for neither numpy nor ZeroMQ.
    """
    if name == "aio":
        return importlib.import_module("pillion.aio")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"pillion.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
