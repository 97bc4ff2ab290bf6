"""The control process: what systemd sees. Verifies, supervises, answers the admin port. It may block; nobody waits."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from pathlib import Path
from typing import Any

import msgspec
import sdnotify
import structlog

from pillion_artifacts import ArtifactError, Resolved, Store
from pillion_artifacts.errors import StoreError
from pillion_artifacts.leases import Lease
from pilliond.admin import Admin
from pilliond.admission import admit
from pilliond.channel import Ready
from pilliond.errors import BadPolicyError
from pilliond.releases import Releases
from pilliond.sealed_version import SealedVersion, seal
from pilliond.settings import Settings
from pilliond.supervisor import Supervisor


async def serve(settings: Settings) -> None:
    """Verifies the policy, opens the admin port, keeps a serving process up, and drains when told to."""
    log = make_log(settings)
    supervisor = Supervisor(settings, load_policy(settings), log)
    releases = Releases(settings, supervisor, log)
    admin = Admin(supervisor, releases)
    systemd = sdnotify.SystemdNotifier()
    try:
        admin_address = await admin.start(settings.admin.listen) if settings.admin.listen else ""

        def on_ready(ready: Ready) -> None:
            systemd.notify("READY=1")
            stable = supervisor.stable
            log.info(
                "ready",
                policy=str(stable),
                digest=stable.digest,
                listen=ready.listen,
                admin=admin_address,
                leased=stable.lease is not None,
                signed_by=stable.signed_by,
                certificate=ready.certificate.batch,
            )

        def on_signal(name: str) -> None:
            log.info("draining", signal=name)
            systemd.notify("STOPPING=1")
            supervisor.stop(f"the daemon got {name}")

        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_signal, number.name)
        looking = asyncio.create_task(releases.run())
        looking.add_done_callback(lambda _: supervisor.stop("nobody looks after its versions any more"))
        try:
            await supervisor.run(on_ready)
        finally:
            looking.cancel()
            await asyncio.wait([looking])
        if not looking.cancelled():
            looking.result()
        log.info("stopped")
    finally:
        await admin.stop()
        supervisor.close()


def load_policy(settings: Settings) -> SealedVersion:
    """The verified version that the settings name, sealed; the caller closes it. Raises `BadPolicyError`.

    There is no lease on it where this process may not write to the store: then nobody keeps `gc` from the version,
    which is in memory all the same.
    """
    store = Store(Path(settings.store.path))
    try:
        reference = settings.store.policy or _only_policy(store)
        resolved, lease = _leased(store, reference)
    except ArtifactError as error:
        raise BadPolicyError(str(error)) from None
    artifact, signed_by = admit(store, resolved, settings.trust)
    return seal(artifact, lease, signed_by)


def _leased(store: Store, reference: str) -> tuple[Resolved, Lease | None]:
    try:
        return store.lease(reference)
    except StoreError:
        return store.resolve(reference), None


def _only_policy(store: Store) -> str:
    policies = store.policies()
    if len(policies) != 1:
        held = ", ".join(policies) or "none"
        raise BadPolicyError(f"store.policy: expected the name of a policy, the store holds {held}")
    return policies[0]


def make_log(settings: Settings) -> Any:
    """The log of this process, on standard error."""
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
    return structlog.get_logger()


def _to_json(event: Any, **_: Any) -> str:
    return msgspec.json.encode(event, enc_hook=str).decode()
