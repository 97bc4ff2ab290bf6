"""A Python policy keeps what the daemon promises of any policy: states, strict batches, switches and golden pairs."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import pillion
from pillion_artifacts import Store
from pillion_artifacts.card.golden_pairs import Golden, encode_golden
from pillion_artifacts.store.aliases import move_alias
from tests.conftest import StartDaemon
from tests.harness import Daemon
from tests.worker.support.installed import HOSTILE, make_environment

CARD = """
schema: 3
name: counting
version: {version}
description: Adds up what it saw.
licence: Apache-2.0
observation:
- {{name: observation, dtype: float32, shape: [1], low: [-10.0], high: [10.0]}}
outputs:
- {{name: action, dtype: float32, shape: [1]}}
state:
- {{name: total, output: next_total, dtype: float32, shape: [1]}}
engine:
  kind: python
  entry_point: pillion_hostile_policies:counting
  distribution: pillion-hostile-policies
  arguments: {arguments}
"""


def publish(store: Store, version: str, golden: Golden | None = None, **arguments: Any) -> None:
    """Publishes a version of the counting policy with these arguments."""
    with tempfile.TemporaryDirectory() as name:
        save_file({}, Path(name) / "model.safetensors")
        (Path(name) / "model_card.yaml").write_text(CARD.format(version=version, arguments=json.dumps(arguments)))
        if golden is not None:
            (Path(name) / "golden.safetensors").write_bytes(encode_golden(golden))
        store.publish("counting", version, Path(name), created_by="a test")


def golden_of(step: float) -> Golden:
    """Pairs of the policy with this step."""
    seen, total = np.array([[1.0], [2.0]], np.float32), np.array([[10.0], [-5.0]], np.float32)
    made = seen + total + np.float32(step)
    return Golden({"observation": seen, "total": total}, {"action": made, "next_total": made})


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_environment(tmp_path_factory.mktemp("environment"), HOSTILE)


@pytest.fixture(params=["buckets", "strict"])
def daemon(request: pytest.FixtureRequest, python: str, tmp_path: Path, start_daemon: StartDaemon) -> Daemon:
    """Serves `counting@stable`, which is 1.0.0; 1.1.0 adds a step, and 1.2.0 does not answer its golden pairs."""
    store = Store(tmp_path / "store")
    publish(store, "1.0.0", golden_of(0.0))
    publish(store, "1.1.0", golden_of(0.5), step=0.5)
    publish(store, "1.2.0", golden_of(0.25), step=0.5)
    move_alias(store, "counting", "stable", "1.0.0", expected="", by="a test")
    config = tmp_path / "pillion.toml"
    config.write_text(f'[trust]\ncode = ["{HOSTILE}"]\n')
    settings = {"engine__python": python, "limits__rows_max": 8, "engine__strict": request.param == "strict"}
    return start_daemon("--config", str(config), policy="counting@stable", store=store.root, settings=settings)


def switch(daemon: Daemon, version: str) -> dict[str, Any]:
    return daemon.operation(daemon.ask("POST", "/v1/policies/counting/switch", {"version": version}))


def test_each_episode_has_its_own_state_also_across_a_switch(daemon: Daemon) -> None:
    with pillion.connect(daemon.address) as session, session.begin_many(5) as group, session.begin(seed=1) as alone:
        rows = np.arange(5, dtype=np.float32).reshape(5, 1)
        for count in (1, 2, 3):
            assert group.act(rows).tolist() == (count * rows).tolist()
        assert alone.act(np.array([7], np.float32)).tolist() == [7.0]
        assert switch(daemon, "1.1.0")["outcome"] == "done"
        assert group.act(rows).tolist() == (4 * rows).tolist()
        with session.begin(seed=2) as later:
            assert later.act(np.array([7], np.float32)).tolist() == [7.5]
            assert later.act(np.array([1], np.float32)).tolist() == [9.0]


def test_a_version_that_does_not_answer_its_golden_pairs_is_refused(daemon: Daemon) -> None:
    failed = switch(daemon, "1.2.0")
    assert failed["outcome"] == "failed"
    assert "row 0, element 0: expected 11.25, got 11.5" in failed["error"]
