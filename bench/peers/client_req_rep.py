"""The client of the REQ/REP peer: a ZeroMQ REQ socket."""

from __future__ import annotations

import zmq

from driver import Array, Plan
from np_save import pack, unpack


class Client:
    """A client with one connection."""

    def __init__(self, plan: Plan) -> None:
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.REQ)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(f"tcp://{plan.address}")

    def act(self, observation: Array) -> tuple[Array, int]:
        self._socket.send(pack({"observation": observation}))
        answer = unpack(self._socket.recv())
        return answer["action"], answer["engine_ns"]

    def close(self) -> None:
        self._socket.close()
