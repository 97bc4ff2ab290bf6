"""A startup configuration, for tests that run the serving process without a control process."""

from __future__ import annotations

import msgspec

from pillion_artifacts import Store
from pillion_artifacts.store.sealed_artifact import seal_artifact
from pilliond.ipc.control_channel import PolicyConfig, StartupConfig
from pilliond.ipc.metrics_page import make_page
from pilliond.ipc.sealed_version import seal
from pilliond.settings.schema import Settings
from tests.harness import STORE


def startup_config(address: str, policy: str = "lunar-lander") -> StartupConfig:
    """Returns the configuration to serve a shipped policy inline at `address`, with every other setting at its default.

    On a slow machine `auto` would place it in a worker, which only a control process starts.
    """
    store = Store(STORE)
    sealed = seal(seal_artifact(store, store.resolve(policy)))
    sealed.metrics_index = 1
    settings = Settings()
    return StartupConfig(
        epoch=1,
        listen=[address],
        policies=[
            PolicyConfig(
                version=sealed.request(),
                model_descriptor=sealed.model_descriptor,
                golden_descriptor=-1,
                engine=msgspec.structs.replace(settings.engine, placement="inline"),
                limits=settings.limits.of_policy(),
                residency=settings.versions,
                watch_s=settings.auto_rollback.watch_s,
                certificate=settings.staging.certificate,
            )
        ],
        page_descriptor=make_page(),
        serving=settings.serving,
        sessions_max=settings.limits.sessions_max,
        group=None,
    )
