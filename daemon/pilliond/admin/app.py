"""The admin port, for operators and Prometheus. It runs in the control process, apart from the data path."""

from __future__ import annotations

import time
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from aiohttp import web
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.aiohttp import make_aiohttp_handler

from pilliond.admin.http.access import Access
from pilliond.admin.http.endpoints import Endpoint, Scope, json_response
from pilliond.admin.http.guard import guard
from pilliond.admin.http.listener import ActiveConnections, AdminListener, bind
from pilliond.admin.http.openapi import describe
from pilliond.admin.http.problems import problems
from pilliond.admin.http.server import AdminRunner
from pilliond.admin.http.tls import TlsIdentity
from pilliond.admin.kserve.errors import kserve_errors
from pilliond.admin.kserve.routes import KServeRoutes
from pilliond.admin.monitoring.health import Health, health_of
from pilliond.admin.monitoring.info import Info, info_of
from pilliond.admin.monitoring.prometheus import PageCollector
from pilliond.admin.v1.audit import AuditRoutes
from pilliond.admin.v1.holds import HoldRoutes
from pilliond.admin.v1.policies import PolicyRoutes
from pilliond.admin.v1.sessions import SessionRoutes
from pilliond.errors import FolderError
from pilliond.limits import ADMIN_HEAD_S_MAX, ADMIN_LINGER_S_MAX, ADMIN_REQUEST_BYTES_MAX
from pilliond.policy_rollout import PolicyRollout
from pilliond.settings.addresses import SocketFile
from pilliond.settings.schema import AdminSettings
from pilliond.supervision.serving_state import ServingState
from pilliond.supervision.supervisor import Supervisor
from pilliond.supervision.watchdog import Watchdog

_EXPOSITIONS: Final = ("text/plain", "application/openmetrics-text")


class Admin:
    """Serves `/metrics`, `/health`, `/livez`, `/readyz`, `/info`, `/openapi.json`, `/v1` and `/v2`.

    Owns its listening sockets and their files.
    """

    def __init__(
        self, supervisor: Supervisor, policies: Mapping[str, PolicyRollout], watchdog: Watchdog, access: Access
    ) -> None:
        self._supervisor = supervisor
        self._watchdog = watchdog
        self._policies = policies
        self._started_ns = time.monotonic_ns()
        self._socket_files: list[SocketFile] = []
        self._active = ActiveConnections()
        registry = CollectorRegistry()
        registry.register(PageCollector(supervisor, policies, watchdog))
        registry.register(access.refusals)
        ProcessCollector(registry=registry)
        policy_routes = PolicyRoutes(supervisor, policies)
        store = next(iter(policies.values())).releases.store
        self._kserve = KServeRoutes(supervisor)
        up = (HTTPStatus.OK, HTTPStatus.SERVICE_UNAVAILABLE)
        self.endpoints = [
            Endpoint(
                "GET", "/metrics", make_aiohttp_handler(registry), "Scrape the metrics, as Prometheus text", Scope.VIEW,
                media_types=_EXPOSITIONS,
            ),
            Endpoint(
                "GET", "/health", self._health, "Show the health of the daemon; 503 if it is not ready", Scope.VIEW,
                answer=Health, statuses=up,
            ),
            Endpoint("GET", "/livez", self._live, "Check that the control process is alive; 503 if its loop is late", Scope.OPEN, statuses=up),
            Endpoint("GET", "/readyz", self._ready, "Check that acts are answered; 503 if they are not", Scope.OPEN, statuses=up),
            Endpoint("GET", "/info", self._info, "Show versions, addresses and the tensors of the policies", Scope.VIEW, answer=Info),
            Endpoint("GET", "/openapi.json", self._openapi, "Show this description", Scope.VIEW, answer=dict[str, Any]),
            *policy_routes.endpoints(),
            *HoldRoutes(policy_routes).endpoints(),
            *SessionRoutes(supervisor).endpoints(),
            *AuditRoutes(policies, store).endpoints(),
            *self._kserve.endpoints(),
        ]  # fmt: skip
        application = web.Application(
            middlewares=[self._active.middleware(), kserve_errors, problems, guard(access, self.endpoints)],
            client_max_size=ADMIN_REQUEST_BYTES_MAX,
        )
        application.add_routes([endpoint.route() for endpoint in self.endpoints])
        self._runner = AdminRunner(
            application,
            shutdown_timeout=1.0,
            keepalive_timeout=ADMIN_HEAD_S_MAX,
            lingering_time=ADMIN_LINGER_S_MAX,
        )

    async def start(self, settings: AdminSettings, log: Any) -> list[str]:
        """Listens at the addresses in the settings, and returns the bound ones.

        Raises `ListenError`, or `SettingsError` if the certificate is invalid.
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
            await AdminListener(self._runner, listener, tls, self._active).start()
            taken.append(address.taken(0 if address.path else listener.getsockname()[1]))
        return taken

    async def stop(self) -> None:
        """Closes the listeners and removes their socket files."""
        await self._runner.cleanup()
        await self._kserve.close()
        for file in self._socket_files:
            file.remove()

    async def _live(self, request: web.Request) -> web.Response:
        if self._watchdog.is_live:
            return web.Response(text="ok\n")
        text = f"late: the loop of the control process did not run for {self._watchdog.silent_ms} ms\n"
        return web.Response(text=text, status=HTTPStatus.SERVICE_UNAVAILABLE)

    async def _ready(self, request: web.Request) -> web.Response:
        return web.Response(text=f"{self._supervisor.describe()}\n", status=self._up())

    async def _health(self, request: web.Request) -> web.Response:
        health = health_of(self._supervisor, self._policies, self._watchdog, self._started_ns)
        return json_response(health, self._up())

    def _up(self) -> HTTPStatus:
        serving = self._supervisor.state is ServingState.SERVING
        return HTTPStatus.OK if serving else HTTPStatus.SERVICE_UNAVAILABLE

    async def _info(self, request: web.Request) -> web.Response:
        return json_response(info_of(self._supervisor))

    async def _openapi(self, request: web.Request) -> web.Response:
        return json_response(describe(self.endpoints))
