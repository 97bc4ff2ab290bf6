"""The admin port: what operators and Prometheus ask. It lives in the control process, where it disturbs nobody."""

from __future__ import annotations

import os
import time
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import urlsplit

from aiohttp import web
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.aiohttp import make_aiohttp_handler

from pilliond.admin_policies import PolicyRoutes
from pilliond.admin_server import AdminRunner
from pilliond.endpoints import Endpoint, Scope, json_response
from pilliond.errors import AddressInUseError, ListenError
from pilliond.exposition import PageCollector
from pilliond.health import Health, health_of
from pilliond.info import Info, info_of
from pilliond.listen import SocketFile, clear_socket_path
from pilliond.metrics_page import Phase
from pilliond.openapi import describe
from pilliond.problems import problems
from pilliond.releases import Releases
from pilliond.supervisor import Supervisor

REQUEST_BYTES_MAX: Final = 64 * 1024
_ADDRESS_IN_USE: Final = 98
_EXPOSITIONS: Final = ("text/plain", "application/openmetrics-text")
_OWNER_ONLY_UMASK: Final = 0o177


class Admin:
    """Serves `/metrics`, `/health`, `/livez`, `/readyz`, `/info`, `/openapi.json` and `/v1`. Owns its listening socket and its file."""

    def __init__(self, supervisor: Supervisor, releases: Releases) -> None:
        self._supervisor = supervisor
        self._started_ns = time.monotonic_ns()
        self._socket_file: SocketFile | None = None
        registry = CollectorRegistry()
        registry.register(PageCollector(supervisor, releases))
        ProcessCollector(registry=registry)
        application = web.Application(middlewares=[problems], client_max_size=REQUEST_BYTES_MAX)
        up = (HTTPStatus.OK, HTTPStatus.SERVICE_UNAVAILABLE)
        self.endpoints = [
            Endpoint(
                "GET", "/metrics", make_aiohttp_handler(registry), "Prometheus text", Scope.VIEW,
                media_types=_EXPOSITIONS,
            ),
            Endpoint(
                "GET", "/health", self._health, "How the daemon is; 503 where it is not ready", Scope.VIEW,
                answer=Health, statuses=up,
            ),
            Endpoint("GET", "/livez", self._live, "Whether the control process lives", Scope.OPEN),
            Endpoint("GET", "/readyz", self._ready, "Whether acts are answered; else 503", Scope.OPEN, statuses=up),
            Endpoint("GET", "/info", self._info, "What the daemon is", Scope.VIEW, answer=Info),
            Endpoint("GET", "/openapi.json", self._openapi, "This description", Scope.VIEW, answer=dict[str, Any]),
            *PolicyRoutes(supervisor, releases).endpoints(),
        ]  # fmt: skip
        application.add_routes([endpoint.route() for endpoint in self.endpoints])
        self._runner = AdminRunner(application, shutdown_timeout=1.0)

    async def start(self, address: str) -> str:
        """Listens at `address` and gives the address that was taken; raises `ListenError`."""
        await self._runner.setup()
        parts = urlsplit(address)
        try:
            if parts.scheme == "unix":
                path = address.removeprefix("unix://")
                clear_socket_path(path)
                umask = os.umask(_OWNER_ONLY_UMASK)
                try:
                    await web.UnixSite(self._runner, path).start()
                finally:
                    os.umask(umask)
                self._socket_file = SocketFile(path)
                return address
            await web.TCPSite(self._runner, parts.hostname, parts.port or 0).start()
        except OSError as error:
            if error.errno == _ADDRESS_IN_USE:
                raise AddressInUseError(f"{address} is in use") from None
            raise ListenError(f"cannot listen at {address}: {error.strerror}") from None
        host, port = self._runner.addresses[0][:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def stop(self) -> None:
        """Closes the port."""
        await self._runner.cleanup()
        if self._socket_file is not None:
            self._socket_file.remove()

    async def _live(self, request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _ready(self, request: web.Request) -> web.Response:
        phase = self._supervisor.phase
        ready = phase is Phase.READY
        return web.Response(text=f"{phase.name.lower()}\n", status=200 if ready else 503)

    async def _health(self, request: web.Request) -> web.Response:
        status = HTTPStatus.OK if self._supervisor.phase is Phase.READY else HTTPStatus.SERVICE_UNAVAILABLE
        return json_response(health_of(self._supervisor, self._started_ns), status)

    async def _info(self, request: web.Request) -> web.Response:
        return json_response(info_of(self._supervisor))

    async def _openapi(self, request: web.Request) -> web.Response:
        return json_response(describe(self.endpoints))
