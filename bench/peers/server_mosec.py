"""The mosec peer: its HTTP server in Rust, and one worker process that takes one msgpack request at a time."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from mosec import Server, Worker
from mosec.mixin import MsgpackMixin

from policy import Policy, server_options


class PolicyWorker(MsgpackMixin, Worker):  # type: ignore[misc]  # mosec is in the peers' environment alone
    """A process with the model. Observation and action are sent as raw bytes."""

    def __init__(self) -> None:
        options = server_options()
        self._policy = Policy(options.model, options.output)

    def forward(self, data: dict[str, Any]) -> dict[str, Any]:
        """Returns the answer to a request."""
        policy = self._policy
        action, engine_ns = policy.act(np.frombuffer(data["observation"], policy.dtype).reshape(policy.shape))
        return {"action": action.tobytes(), "engine_ns": engine_ns}


def main() -> None:
    """Serves until the process is stopped. mosec parses `--port` itself."""
    os.environ["MOSEC_ADDRESS"] = "127.0.0.1"
    server = Server()
    server.append_worker(PolicyWorker, max_batch_size=1)
    server.run()


if __name__ == "__main__":
    main()
