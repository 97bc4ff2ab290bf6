"""The client of a Pillion daemon: observation in, action out.

    import pillion

    with pillion.connect("ipc:///run/user/1000/pillion/zmq.sock") as session:
        episode = session.begin(seed=7)
        action = episode.act(observation, deterministic=True)
        episode.end()

`pillion.aio.connect` has the same words for asyncio; `pillion.Policy` is a Stable-Baselines3 `predict`.
"""

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
    "connect",
]
