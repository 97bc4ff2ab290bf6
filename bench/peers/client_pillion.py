"""Pillion's own blocking client, driven as the peers are. It runs in Pillion's environment, the peers in theirs."""

from __future__ import annotations

from typing import Any

import pillion
from driver import Array, Plan


class Client:
    """A client with one session and one episode."""

    def __init__(self, plan: Plan) -> None:
        spinning: dict[str, Any] = {"busy_poll_us": plan.busy_poll_us} if plan.busy_poll_us else {}
        self._session = pillion.connect(
            plan.address, timeout_s=plan.attempt_s_max, client_name="pillion-bench", **spinning
        )
        self._episode = self._session.begin(seed=plan.seed)

    def act(self, observation: Array) -> tuple[Array, int]:
        action = self._episode.act(observation)
        return action, self._episode.last.timings.engine_ns

    def close(self) -> None:
        self._episode.end()
        self._session.close()
