"""The admin port: what operators and Prometheus ask. It lives in the control process, where it disturbs nobody."""

from __future__ import annotations

import os
import sys
import time
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec
import psutil
from aiohttp import web
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.aiohttp import make_aiohttp_handler

import pilliond
from pillion_protocol import PROTOCOL_VERSION
from pilliond import metrics_page as page
from pilliond.admin_policies import PolicyRoutes
from pilliond.endpoints import Endpoint, Scope, json_response
from pilliond.errors import AddressInUseError, ListenError
from pilliond.exposition import PageCollector
from pilliond.listen import SocketFile, clear_socket_path
from pilliond.metrics_page import Phase
from pilliond.problems import problems
from pilliond.releases import Releases
from pilliond.supervisor import Supervisor

_MS: Final = 1e6
REQUEST_BYTES_MAX: Final = 64 * 1024
_ADDRESS_IN_USE: Final = 98
_OWNER_ONLY_UMASK: Final = 0o177


class Admin:
    """Serves `/metrics`, `/health`, `/livez`, `/readyz`, `/info` and `/v1`. Owns its listening socket and its file."""

    def __init__(self, supervisor: Supervisor, releases: Releases) -> None:
        self._supervisor = supervisor
        self._releases = releases
        self._started_ns = time.monotonic_ns()
        self._socket_file: SocketFile | None = None
        registry = CollectorRegistry()
        registry.register(PageCollector(supervisor, releases))
        ProcessCollector(registry=registry)
        application = web.Application(middlewares=[problems], client_max_size=REQUEST_BYTES_MAX)
        endpoints = [
            Endpoint("GET", "/metrics", make_aiohttp_handler(registry), "Prometheus text", Scope.VIEW),
            Endpoint("GET", "/health", self._health, "How the daemon is; 503 where it is not ready", Scope.VIEW),
            Endpoint("GET", "/livez", self._live, "Whether the control process lives", Scope.OPEN),
            Endpoint("GET", "/readyz", self._ready, "Whether acts are answered; else 503", Scope.OPEN),
            Endpoint("GET", "/info", self._info, "What the daemon is", Scope.VIEW),
            *PolicyRoutes(supervisor, releases).endpoints(),
        ]
        application.add_routes([endpoint.route() for endpoint in endpoints])
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)

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
        return json_response(self.health(), status)

    async def _info(self, request: web.Request) -> web.Response:
        return json_response(self.info())

    def health(self) -> dict[str, Any]:
        """How the daemon is, right now."""
        supervisor = self._supervisor
        artifact = supervisor.stable
        cells = supervisor.page.cells
        now_ns = time.monotonic_ns()
        is_ready = supervisor.phase is Phase.READY
        return {
            "phase": supervisor.phase.name.lower(),
            "policy": artifact.policy,
            "version": artifact.version,
            "digest": artifact.digest,
            "sessions": cells[page.SESSIONS],
            "episodes": cells[page.EPISODES],
            "queue_rows": cells[page.QUEUE_ROWS],
            "loop_lag_ms": {
                "last": cells[page.LOOP_LAG_NS] / _MS,
                "max": cells[page.LOOP_LAG_NS_MAX] / _MS,
                "tick_age": (now_ns - cells[page.TICK_AT_NS]) / _MS if is_ready else None,
            },
            "busy_poll": {
                "us": supervisor.busy_poll_us,
                "spinning": bool(cells[page.SPINNING]) and is_ready,
                "spun_s": cells[page.SPUN_NS] / 1e9,
            },
            "gc_pauses": {
                "count": cells[page.GC_PAUSES],
                "total_ms": cells[page.GC_PAUSE_NS] / _MS,
                "max_ms": cells[page.GC_PAUSE_NS_MAX] / _MS,
            },
            "shadow": self._shadow(),
            "engine": supervisor.ready.engine if supervisor.ready else None,
            "uptime_s": (now_ns - self._started_ns) / 1e9,
            "ready_s": (now_ns - cells[page.READY_AT_NS]) / 1e9 if is_ready else None,
            "serving": {
                "pid": supervisor.serving_pid,
                "starts": supervisor.starts,
                "resident_bytes": _resident_bytes(supervisor.serving_pid),
                **(supervisor.ready.process if supervisor.ready else {}),
            },
            "control": {"pid": os.getpid(), "resident_bytes": _resident_bytes(os.getpid())},
        }

    def _shadow(self) -> dict[str, Any] | None:
        """How the shadow is that runs, or why the last one ended."""
        shadow = self._releases.shadows.last
        if shadow is None:
            return None
        return {
            "version": shadow.version,
            "state": self._releases.shadows.state(shadow),
            "waiting_bytes": shadow.process.counts.waiting_bytes,
            "pid": shadow.process.pid,
            "end_reason": shadow.end_reason,
        }

    def info(self) -> dict[str, Any]:
        """What the daemon is; it does not change while it runs."""
        artifact = self._supervisor.stable
        return {
            "name": "pilliond",
            "version": pilliond.__version__,
            "protocol_version": PROTOCOL_VERSION,
            "python": sys.version.split()[0],
            "listen": self._supervisor.ready.listen if self._supervisor.ready else [],
            "policy": artifact.policy,
            "policy_version": artifact.version,
            "digest": artifact.digest,
            "observation": msgspec.to_builtins(artifact.card.observation),
            "outputs": msgspec.to_builtins(artifact.card.outputs),
            "description": artifact.card.description,
            "licence": artifact.card.licence,
        }


def _resident_bytes(pid: int | None) -> int:
    try:
        return int(psutil.Process(pid).memory_info().rss) if pid is not None else 0
    except psutil.NoSuchProcess:
        return 0
