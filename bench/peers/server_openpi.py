"""The websocket peer: openpi's protocol on `websockets`, packed by `openpi_client.msgpack_numpy`.

After the handshake the server sends its metadata. Then each binary message has an observation, and its answer has the
action and the server's own timing. All messages are msgpack maps with arrays.
"""

from __future__ import annotations

import asyncio

from openpi_client import msgpack_numpy
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from policy import Policy, server_options

_NS_PER_MS = 1e6


async def main() -> None:
    """Serves until the process is stopped."""
    options = server_options()
    policy = Policy(options.model, options.output)

    async def converse(connection: ServerConnection) -> None:
        packer = msgpack_numpy.Packer()
        await connection.send(packer.pack({}))
        try:
            while True:
                observation = msgpack_numpy.unpackb(await connection.recv())
                action, engine_ns = policy.act(observation["observation"])
                answer = {"actions": action, "server_timing": {"infer_ms": engine_ns / _NS_PER_MS}}
                await connection.send(packer.pack(answer))
        except ConnectionClosed:
            return

    async with serve(converse, "127.0.0.1", options.port, compression=None, max_size=None) as server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
