"""A client that other clients must not disturb."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

import pillion


@contextmanager
def undisturbed_client(address: str) -> Iterator[None]:
    """Begins an episode of lunar-lander, and checks afterwards that it goes on with the same action."""
    observation = np.zeros(8, np.float32)
    with pillion.connect(address) as session:
        episode = session.begin(seed=1)
        before = episode.act(observation)
        yield
        assert episode.act(observation) == before
        assert episode.last.fallback == ""
