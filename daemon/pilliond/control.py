"""The control process: the one that systemd starts. It verifies, supervises and answers the admin port.

It is not on the path of an act, so it may block.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import ExitStack, asynccontextmanager
from itertools import count
from math import prod
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import structlog
from structlog.typing import FilteringBoundLogger

from pillion_artifacts import ArtifactError, Store
from pillion_artifacts.card.model_card import EngineCard
from pilliond.errors import BadPolicyError, SettingsError
from pilliond.ipc.control_channel import Ready
from pilliond.ipc.device_status import device_status
from pilliond.ipc.sealed_version import SealedVersion
from pilliond.ipc.worker_process import why_no_workers
from pilliond.linux.cpu_priority import lower_priority
from pilliond.linux.service_manager import ServiceManager
from pilliond.linux.spawner import Spawner
from pilliond.policy_rollout import PolicyRollout
from pilliond.rollout.restore import admitted
from pilliond.rollout.route_file import RouteFile
from pilliond.settings.schema import AdminSettings, Settings, check_memory
from pilliond.supervision.serving_process import ServingProcess
from pilliond.supervision.supervisor import Supervisor
from pilliond.supervision.watchdog import Watchdog
from pilliond.supervision.worker_pool import WorkerPool
from pilliond.supervision.worker_start import FirstWorker
from pilliond.supervision.worker_status import replica_statuses, worker_status


async def serve(settings: Settings, spawner: Spawner, first: ServingProcess) -> None:
    """Verifies the policies, opens the admin port, keeps a serving process up, and drains on SIGTERM or SIGINT.

    `first` is the first serving process, which is ended if the start fails. `spawner` was started.
    """
    log = make_log(settings)
    with ExitStack() as started:
        worker = FirstWorker(spawner, settings.served()[0].engine)
        started.callback(worker.close)
        loaded = load_policies(settings, worker.start)
        stables = [stable for _, stable in loaded]
        for stable in stables:
            started.callback(stable.close)
        supervisor = Supervisor(settings, stables, spawner, log, first, worker)
        # They are the supervisor's from now on.
        started.pop_all()
    try:
        policies = rollouts_of(supervisor, [reference for reference, _ in loaded], log)
        lower_priority()
        await _serve(settings, supervisor, policies, log)
    finally:
        supervisor.close()


async def _serve(
    settings: Settings, supervisor: Supervisor, policies: dict[str, PolicyRollout], log: FilteringBoundLogger
) -> None:
    service_manager = ServiceManager(os.environ)
    watchdog = Watchdog(supervisor, settings.serving.hang_s_max, service_manager, log)
    handle_signals(supervisor, service_manager, log)
    try:
        supervisor.start()
        async with admin_port(settings.admin, supervisor, policies, watchdog, log) as admin_addresses:

            def on_ready(ready: Ready) -> None:
                service_manager.ready()
                stables = [policy.stable for policy in supervisor.policies.values()]
                fields = [ready_fields(stable, supervisor.workers) for stable in stables]
                log.info(
                    "ready",
                    **fields[0],
                    listen=ready.listen,
                    admin=admin_addresses,
                    policies=fields,
                )

            watching = asyncio.create_task(look_after(watchdog, supervisor.workers, policies.values()))
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
        service_manager.close()


@asynccontextmanager
async def admin_port(
    settings: AdminSettings,
    supervisor: Supervisor,
    policies: dict[str, PolicyRollout],
    watchdog: Watchdog,
    log: FilteringBoundLogger,
) -> AsyncIterator[list[str]]:
    """Keeps the admin port open during the block, which gets the bound addresses; none where the settings have none."""
    if not settings.addresses():
        yield []
        return
    # Imported here: it takes long, and the serving process and its workers load the versions meanwhile.
    from pilliond.admin.app import Admin
    from pilliond.admin.http.access import Access

    admin = Admin(supervisor, policies, watchdog, Access.of(settings, log))
    try:
        yield await admin.start(settings, log)
    finally:
        await admin.stop()


def handle_signals(supervisor: Supervisor, service_manager: ServiceManager, log: FilteringBoundLogger) -> None:
    """Makes SIGTERM and SIGINT drain the serving process."""

    def on_signal(name: str) -> None:
        log.info("draining", signal=name)
        service_manager.stopping()
        supervisor.stop(f"the daemon got {name}")

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number.name)


async def look_after(watchdog: Watchdog, workers: WorkerPool, policies: Iterable[PolicyRollout]) -> None:
    """Watches the serving process and the workers, and looks after the versions of every policy, until it is cancelled."""
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(watchdog.run())
        tasks.create_task(workers.run())
        for policy in policies:
            tasks.create_task(policy.run())


def rollouts_of(
    supervisor: Supervisor, references: Iterable[str], log: FilteringBoundLogger
) -> dict[str, PolicyRollout]:
    """Returns what changes and watches the versions of each policy, by its name, the default policy first."""
    numbers = count(1)
    return {
        channel.name: PolicyRollout(channel, reference, numbers, log.bind(policy=channel.name))
        for channel, reference in zip(supervisor.policies.values(), references, strict=True)
    }


def ready_fields(stable: SealedVersion, workers: WorkerPool) -> dict[str, Any]:
    """Returns what `ready` says about the stable version of a policy."""
    worker, replicas = worker_status(stable, workers), replica_statuses(stable, workers)
    return {
        "policy": str(stable),
        "digest": stable.digest,
        "leased": stable.lock is not None,
        "signed_by": stable.signed_by,
        "certificate": stable.certificate.batch if stable.certificate else "",
        "placement": stable.placement.where if stable.placement else "",
        "placement_reason": stable.placement.reason if stable.placement else "",
        **({"worker_pid": worker.pid, "memory": worker.memory} if worker else {}),
        **({"worker_pids": [replica.pid for replica in replicas]} if replicas else {}),
        **device_status(stable.engine).for_log(),
    }


def load_policies(
    settings: Settings, on_card: Callable[[EngineCard], None] = lambda _: None
) -> list[tuple[str, SealedVersion]]:
    """Returns what `load_policy` returns for each policy of the settings, the default one first, whose card `on_card` gets.

    The caller closes the versions. Raises `BadPolicyError`, or `SettingsError` if the policies together may take too much memory
    or a worker could not run.
    """
    check_interpreters(settings)
    loaded: list[tuple[str, SealedVersion]] = []
    try:
        # One by one, so that those before a bad one are closed.
        default, *others = settings.served()
        loaded.append(load_policy(default, on_card))
        loaded.extend(map(load_policy, others))
        check_memory(settings, [_row_bytes(stable) for _, stable in loaded])
    except BaseException:
        for _, stable in loaded:
            stable.close()
        raise
    return loaded


def check_interpreters(settings: Settings) -> None:
    """Raises `SettingsError` if an interpreter of the settings cannot run workers."""
    for python in sorted({policy.engine.python for policy in settings.served()} - {""}):
        if why := why_no_workers(python):
            raise SettingsError(why)


def _row_bytes(version: SealedVersion) -> int:
    spec = version.card.spec()
    state_bytes = sum(prod(state.shape) * np.dtype(state.dtype).itemsize for state in version.card.state)
    return sum(tensor.row_bytes for tensor in [*spec.observation, *spec.outputs]) + 2 * state_bytes


def load_policy(
    settings: Settings, on_card: Callable[[EngineCard], None] = lambda _: None
) -> tuple[str, SealedVersion]:
    """Returns the reference to serve, and the version to start with (see `route_file`), verified and sealed.

    `on_card` is as in `admit`. The caller closes the version. Raises `BadPolicyError`.
    """
    store = Store(Path(settings.store.path))
    try:
        store.check_is_there()
    except ArtifactError as error:
        raise BadPolicyError(f"{error}: name its folder with --store or store.path") from None
    try:
        reference = settings.store.policy or _only_policy(store)
        stable = RouteFile(store, reference).stable()
    except ArtifactError as error:
        raise BadPolicyError(str(error)) from None
    return reference, admitted(store, stable, settings.trust, on_card)


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
