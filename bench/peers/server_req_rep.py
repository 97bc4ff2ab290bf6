"""The REQ/REP peer: one ZeroMQ REP socket, one request after the other."""

from __future__ import annotations

import zmq

from np_save import pack, unpack
from policy import Policy, server_options


def main() -> None:
    """Serves until the process is stopped."""
    options = server_options()
    policy = Policy(options.model, options.output)
    with zmq.Context() as context, context.socket(zmq.REP) as socket:
        socket.bind(f"tcp://127.0.0.1:{options.port}")
        while True:
            request = unpack(socket.recv())
            action, engine_ns = policy.act(request["observation"])
            socket.send(pack({"action": action, "engine_ns": engine_ns}))


if __name__ == "__main__":
    main()
