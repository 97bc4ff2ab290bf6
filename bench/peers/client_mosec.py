"""The client of the mosec peer: msgpack over one kept HTTP connection."""

from __future__ import annotations

import msgpack
import numpy as np
import requests

from driver import Array, Plan


class Client:
    """A client with one connection."""

    def __init__(self, plan: Plan) -> None:
        self._url = f"http://{plan.address}/inference"
        self._http = requests.Session()
        self._dtype = np.dtype(plan.action_dtype)
        self._shape = plan.action_shape

    def act(self, observation: Array) -> tuple[Array, int]:
        response = self._http.post(self._url, data=msgpack.packb({"observation": observation.tobytes()}))
        response.raise_for_status()
        answer = msgpack.unpackb(response.content)
        return np.frombuffer(answer["action"], self._dtype).reshape(self._shape), answer["engine_ns"]

    def close(self) -> None:
        self._http.close()
