"""A control process without room for the sealed memory of a staged version says so, and stages it when it has room."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from pillion_artifacts import Store
from pillion_artifacts.card.golden_pairs import Golden
from pilliond.errors import SwitchError
from pilliond.ipc.metrics_page import MetricsPage, make_page
from pilliond.rollout.live_window import LiveWindow
from pilliond.rollout.operation import Operation, Step
from pilliond.rollout.stager import Stager
from pilliond.settings.schema import load_settings
from tests.daemon.support.policies.batch_sensitive import ROUNDED_WIDTH, publish_plain
from tests.daemon.support.process_resources import descriptors_left


class WatchedOperation(Operation):
    on_last_step: Callable[[], object] = lambda: None
    """Called when nothing but the sealed memory of the version is still to come."""

    def advance(self, step: Step) -> None:
        super().advance(step)
        if step is Step.CERTIFYING:
            self.on_last_step()


@pytest.mark.parametrize("left", [0, 1])
def test_a_staged_version_whose_golden_pairs_find_no_descriptor_is_not_one_without_them(
    tmp_path: Path, left: int
) -> None:
    store = Store(tmp_path / "store")
    rows = np.zeros((2, ROUNDED_WIDTH), np.float32)
    publish_plain(store.root, "1.0.0", Golden({"observation": rows}, {"action": rows}))
    target = store.resolve("rounded@1.0.0")
    settings = load_settings(None, {}, {"store": {"path": str(store.root), "policy": "rounded"}})
    stager = Stager(settings, store, LiveWindow(MetricsPage(make_page())))

    def operation() -> WatchedOperation:
        return WatchedOperation(1, "stage", target.policy, target.version, target.digest, "", "", "")

    async def scenario() -> None:
        before = len(os.listdir("/proc/self/fd"))
        with ExitStack() as shortage:
            short = operation()
            short.on_last_step = lambda: shortage.enter_context(descriptors_left(left))
            with pytest.raises(SwitchError, match="no descriptor was left for its sealed memory"):
                await stager.stage(short, target, 0)
        assert len(os.listdir("/proc/self/fd")) == before
        version = await stager.stage(operation(), target, 0)
        assert version.golden_descriptor >= 0
        version.close()

    asyncio.run(scenario())
