"""The LitServe peer: its HTTP server and one worker process, with its own defaults. Requests are JSON."""

from __future__ import annotations

import base64

import litserve
import numpy as np

from policy import Array, Policy, ServerOptions, server_options


class PolicyApi(litserve.LitAPI):  # type: ignore[misc]  # litserve is in the peers' environment alone
    """Takes vectors as lists of numbers and images (uint8) in base64, as is usual in JSON."""

    def __init__(self, options: ServerOptions) -> None:
        super().__init__()
        self._options = options

    def setup(self, device: str) -> None:
        self._policy = Policy(self._options.model, self._options.output)

    # No annotations: LitServe would derive the endpoint's types from them. Without any it accepts all JSON.
    def decode_request(self, request):  # type: ignore[no-untyped-def]
        observation = request["observation"]
        if isinstance(observation, str):
            return np.frombuffer(base64.b64decode(observation), self._policy.dtype).reshape(self._policy.shape)
        return np.asarray(observation, self._policy.dtype)

    def predict(self, x: Array) -> tuple[Array, int]:
        return self._policy.act(x)

    def encode_response(self, output):  # type: ignore[no-untyped-def]
        action, engine_ns = output
        return {"action": action.tolist(), "engine_ns": engine_ns}


def main() -> None:
    """Serves until the process is stopped."""
    options = server_options()
    server = litserve.LitServer(PolicyApi(options), accelerator="cpu")
    server.run(host="127.0.0.1", port=options.port, log_level="warning", generate_client_file=False)


if __name__ == "__main__":
    main()
