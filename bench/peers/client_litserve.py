"""The client of the LitServe peer: JSON over one kept HTTP connection."""

from __future__ import annotations

import base64

import numpy as np
import requests

from driver import Array, Plan


class Client:
    """A client with one connection."""

    def __init__(self, plan: Plan) -> None:
        self._url = f"http://{plan.address}/predict"
        self._http = requests.Session()
        self._dtype = np.dtype(plan.action_dtype)

    def act(self, observation: Array) -> tuple[Array, int]:
        is_image = observation.dtype == np.uint8
        content = base64.b64encode(observation.tobytes()).decode() if is_image else observation.tolist()
        response = self._http.post(self._url, json={"observation": content})
        response.raise_for_status()
        answer = response.json()
        return np.asarray(answer["action"], self._dtype), answer["engine_ns"]

    def close(self) -> None:
        self._http.close()
