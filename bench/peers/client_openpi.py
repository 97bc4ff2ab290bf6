"""The client of the websocket peer: the published `openpi-client`."""

from __future__ import annotations

from openpi_client.websocket_client_policy import WebsocketClientPolicy

from driver import Array, Plan

_NS_PER_MS = 1e6


class Client:
    """A client with one connection."""

    def __init__(self, plan: Plan) -> None:
        self._policy = WebsocketClientPolicy(f"ws://{plan.address}")

    def act(self, observation: Array) -> tuple[Array, int]:
        answer = self._policy.infer({"observation": observation})
        return answer["actions"], round(answer["server_timing"]["infer_ms"] * _NS_PER_MS)

    def close(self) -> None:
        """Does nothing: the published client has no close, and its connection ends with the process."""
