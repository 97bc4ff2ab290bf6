"""A listening socket of the admin port. It bounds the connections, so that peers cannot use up the descriptors."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from pilliond.admin.http.tls import TlsIdentity
from pilliond.errors import AddressInUseError, ListenError
from pilliond.limits import ADMIN_CONNECTIONS_MAX, ADMIN_HANDSHAKE_S_MAX
from pilliond.settings.addresses import clear_socket_path
from pilliond.settings.admin_addresses import AdminAddress

_PAUSE_S: Final = 0.1
_OWNER_ONLY_UMASK: Final = 0o177
_GROUP_TOO_MODE: Final = 0o660


class ActiveConnections:
    """The connections whose requests are being answered."""

    def __init__(self) -> None:
        self._active: set[object] = set()

    def __contains__(self, connection: object) -> bool:
        return connection in self._active

    def middleware(self) -> Middleware:
        """Returns the middleware that notes them; it must be the outermost one."""

        @web.middleware
        async def noted(request: web.Request, handler: Handler) -> web.StreamResponse:
            connection = request.protocol
            self._active.add(connection)
            try:
                return await handler(request)
            finally:
                self._active.discard(connection)

        return noted


class AdminListener(web.BaseSite):
    """Owns a listening socket, and its connections until their TLS handshake is done.

    Rule: beyond `ADMIN_CONNECTIONS_MAX` connections, a new one closes the oldest whose request is not being answered.
    """

    def __init__(
        self, runner: web.AppRunner, listener: socket.socket, tls: TlsIdentity | None, active: ActiveConnections
    ) -> None:
        super().__init__(runner)
        listener.setblocking(False)
        self._listener = listener
        self._tls = tls
        self._active = active
        self._peers: dict[web.RequestHandler, asyncio.Task[None]] = {}
        """Oldest first, each with the task that starts it."""
        self._accepting: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        return str(self._listener.getsockname())

    async def start(self) -> None:
        await super().start()
        self._listener.listen(ADMIN_CONNECTIONS_MAX)
        self._accepting = asyncio.create_task(self._accept())

    async def stop(self) -> None:
        tasks = [task for task in (self._accepting, *self._peers.values()) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._listener.close()
        await super().stop()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, _ = await loop.sock_accept(self._listener)
            except OSError:
                # The peer disconnected, or there is no free descriptor; one may be free soon.
                await asyncio.sleep(_PAUSE_S)
                continue
            self._make_room()
            assert self._runner.server is not None
            handler = self._runner.server()
            self._peers[handler] = asyncio.create_task(self._start_connection(handler, accepted))

    async def _start_connection(self, handler: web.RequestHandler, accepted: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        context = self._tls.context() if self._tls is not None else None
        timeout_s = ADMIN_HANDSHAKE_S_MAX if context is not None else None
        # A peer that does not speak TLS is disconnected: there is no request to answer.
        with contextlib.suppress(OSError):
            await loop.connect_accepted_socket(lambda: handler, accepted, ssl=context, ssl_handshake_timeout=timeout_s)

    def _make_room(self) -> None:
        server = self._runner.server
        assert server is not None
        connected = set(server.connections)
        for handler, task in list(self._peers.items()):
            if task.done() and handler not in connected:
                del self._peers[handler]
        if len(self._peers) >= ADMIN_CONNECTIONS_MAX:
            self._disconnect(next((peer for peer in self._peers if peer not in self._active), next(iter(self._peers))))

    def _disconnect(self, handler: web.RequestHandler) -> None:
        self._peers.pop(handler).cancel()
        handler.force_close()


def bind(address: AdminAddress, group: int | None) -> socket.socket:
    """Returns a bound socket; only this user and `group` can connect to a Unix socket. Raises `ListenError`."""
    try:
        return _bind_unix(address.path, group) if address.path else _bind_tcp(address.host, address.port)
    except OSError as error:
        kind = AddressInUseError if error.errno == errno.EADDRINUSE else ListenError
        raise kind(
            f"{address.text} is in use"
            if kind is AddressInUseError
            else f"cannot listen at {address.text}: {error.strerror}"
        ) from None


def _bind_tcp(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family)


def _bind_unix(path: str, group: int | None) -> socket.socket:
    clear_socket_path(path, group)
    listener = socket.socket(socket.AF_UNIX)
    umask = os.umask(_OWNER_ONLY_UMASK)
    try:
        listener.bind(path)
        if group is not None:
            os.chown(path, -1, group)
            os.chmod(path, _GROUP_TOO_MODE)
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(umask)
    return listener
