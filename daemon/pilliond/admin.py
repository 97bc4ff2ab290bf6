"""The admin port: what operators and Prometheus ask. It lives in the control process, where it disturbs nobody."""

from __future__ import annotations

import os
import sys
import time
from http import HTTPStatus
from typing import Any, Final

import msgspec
import psutil
from aiohttp import web
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.aiohttp import make_aiohttp_handler

import pilliond
from pillion_protocol import PROTOCOL_VERSION
from pilliond import metrics_page as page
from pilliond.access import Access
from pilliond.admin_policies import PolicyRoutes
from pilliond.admin_site import AdminSite, Visitors, bind, quiet_logger
from pilliond.endpoints import Endpoint, Scope, json_response
from pilliond.errors import FolderError
from pilliond.exposition import PageCollector
from pilliond.guard import guard
from pilliond.limits import ADMIN_HEAD_S_MAX, ADMIN_LINGER_S_MAX
from pilliond.listen import SocketFile
from pilliond.metrics_page import Phase
from pilliond.problems import problems
from pilliond.releases import Releases
from pilliond.settings import AdminSettings
from pilliond.supervisor import Supervisor
from pilliond.tls import TlsIdentity

_MS: Final = 1e6
REQUEST_BYTES_MAX: Final = 64 * 1024


class Admin:
    """Serves `/metrics`, `/health`, `/livez`, `/readyz`, `/info` and `/v1`. Owns its listening sockets and their files."""

    def __init__(self, supervisor: Supervisor, releases: Releases, access: Access) -> None:
        self._supervisor = supervisor
        self._started_ns = time.monotonic_ns()
        self._socket_files: list[SocketFile] = []
        self._visitors = Visitors()
        registry = CollectorRegistry()
        registry.register(PageCollector(supervisor, releases))
        registry.register(access.refusals)
        ProcessCollector(registry=registry)
        self.endpoints = [
            Endpoint("GET", "/metrics", make_aiohttp_handler(registry), "Prometheus text", Scope.VIEW),
            Endpoint("GET", "/health", self._health, "How the daemon is; 503 where it is not ready", Scope.VIEW),
            Endpoint("GET", "/livez", self._live, "Whether the control process lives", Scope.OPEN),
            Endpoint("GET", "/readyz", self._ready, "Whether acts are answered; else 503", Scope.OPEN),
            Endpoint("GET", "/info", self._info, "What the daemon is", Scope.VIEW),
            *PolicyRoutes(supervisor, releases).endpoints(),
        ]
        application = web.Application(
            middlewares=[self._visitors.middleware(), problems, guard(access, self.endpoints)],
            client_max_size=REQUEST_BYTES_MAX,
        )
        application.add_routes([endpoint.route() for endpoint in self.endpoints])
        self._runner = web.AppRunner(
            application,
            logger=quiet_logger(),
            access_log=None,
            shutdown_timeout=1.0,
            keepalive_timeout=ADMIN_HEAD_S_MAX,
            lingering_time=ADMIN_LINGER_S_MAX,
        )

    async def start(self, settings: AdminSettings, log: Any) -> list[str]:
        """Listens where the settings say and gives the addresses that were taken.

        Raises `ListenError`, or `SettingsError` where the certificate is not right.
        """
        await self._runner.setup()
        taken = []
        for address in settings.addresses():
            tls = TlsIdentity(settings.certificate_file, settings.key_file, log) if address.is_tls else None
            try:
                listener = bind(address, settings.group_id())
            except FolderError as error:
                if not address.is_own:
                    raise
                log.warning("no_admin_socket", error=str(error))
                continue
            if address.path:
                self._socket_files.append(SocketFile(address.path))
            await AdminSite(self._runner, listener, tls, self._visitors).start()
            taken.append(address.taken(0 if address.path else listener.getsockname()[1]))
        return taken

    async def stop(self) -> None:
        """Closes the port."""
        await self._runner.cleanup()
        for file in self._socket_files:
            file.remove()

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
