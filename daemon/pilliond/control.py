"""The control process: the one that systemd starts. It verifies, supervises and answers the admin port.

It is not on the path of an act, so it may block.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

import msgspec
import structlog
from structlog.typing import FilteringBoundLogger

from pillion_artifacts import ArtifactError, Store
from pilliond.admin.app import Admin
from pilliond.admin.http.access import Access
from pilliond.errors import BadPolicyError
from pilliond.ipc.control_channel import Ready
from pilliond.ipc.sealed_version import SealedVersion
from pilliond.linux.cpu_priority import lower_priority
from pilliond.linux.service_manager import ServiceManager
from pilliond.linux.spawner import Spawner
from pilliond.rollout.evaluation_holds import EvaluationHolds
from pilliond.rollout.releases import Releases
from pilliond.rollout.restore import Restore, admitted
from pilliond.rollout.route_file import RouteFile
from pilliond.rollout.watch import Watch
from pilliond.settings.schema import Settings
from pilliond.supervision.supervisor import Supervisor
from pilliond.supervision.watchdog import Watchdog


async def serve(settings: Settings) -> None:
    """Verifies the policy, opens the admin port, keeps a serving process up, and drains on SIGTERM or SIGINT."""
    log = make_log(settings)
    access = Access.of(settings.admin, log)
    reference, stable = load_policy(settings)
    spawner = Spawner()
    supervisor = Supervisor(settings, stable, spawner, log)
    Restore(settings, supervisor.version_table, log).run(reference)
    releases = Releases(settings, supervisor, reference, log)
    watch = Watch(supervisor, releases, log)
    evaluations = EvaluationHolds(supervisor, releases, log)
    service_manager = ServiceManager(os.environ)
    watchdog = Watchdog(supervisor, settings.serving.hang_s_max, service_manager, log)
    admin = Admin(supervisor, releases, evaluations, watchdog, access)
    try:
        spawner.start()
        lower_priority()
        admin_addresses = await admin.start(settings.admin, log)

        def on_ready(ready: Ready) -> None:
            service_manager.ready()
            stable = supervisor.stable
            log.info(
                "ready",
                policy=str(stable),
                digest=stable.digest,
                listen=ready.listen,
                admin=admin_addresses,
                leased=stable.lock is not None,
                signed_by=stable.signed_by,
                certificate=stable.certificate.batch if stable.certificate else "",
            )

        def on_signal(name: str) -> None:
            log.info("draining", signal=name)
            service_manager.stopping()
            supervisor.stop(f"the daemon got {name}")

        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_signal, number.name)
        watching = asyncio.create_task(look_after(watchdog, watch, evaluations, releases))
        watching.add_done_callback(lambda _: supervisor.stop("the watch over its versions has failed"))
        try:
            await supervisor.run(on_ready)
        finally:
            watching.cancel()
            await asyncio.wait([watching])
        if not watching.cancelled():
            watching.result()
        log.info("stopped")
    finally:
        await admin.stop()
        supervisor.close()
        spawner.close()
        service_manager.close()


async def look_after(watchdog: Watchdog, watch: Watch, evaluations: EvaluationHolds, releases: Releases) -> None:
    """Watches the serving process, follows the alias, judges versions and ends evaluation holds until it is cancelled.

    Then it closes `releases`.
    """
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(watchdog.run())
            tasks.create_task(watch.run())
            tasks.create_task(evaluations.run())
    finally:
        await releases.close()


def load_policy(settings: Settings) -> tuple[str, SealedVersion]:
    """Returns the reference to serve, and the version to start with (see `route_file`), verified and sealed.

    The caller closes the version. Raises `BadPolicyError`.
    """
    store = Store(Path(settings.store.path))
    try:
        reference = settings.store.policy or _only_policy(store)
        stable = RouteFile(store, reference).stable()
    except ArtifactError as error:
        raise BadPolicyError(str(error)) from None
    return reference, admitted(store, stable, settings.trust)


def _only_policy(store: Store) -> str:
    policies = store.policies()
    if len(policies) != 1:
        held = ", ".join(policies) or "none"
        raise BadPolicyError(f"store.policy: expected the name of a policy, the store has {held}")
    return policies[0]


def make_log(settings: Settings) -> FilteringBoundLogger:
    """Returns the log of this process, which goes to standard error."""
    renderer: Any = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=0)
    if settings.log.format == "json":
        renderer = structlog.processors.JSONRenderer(serializer=_to_json)
    level = logging.getLevelNamesMapping()[settings.log.level.upper()]
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    log: FilteringBoundLogger = structlog.get_logger()
    return log


def _to_json(event: Any, **_: Any) -> str:
    return msgspec.json.encode(event, enc_hook=str).decode()
