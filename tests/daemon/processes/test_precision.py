"""A torch version whose golden pairs do not hold in the precision of the settings computes in float32, from start to switch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import pillion
from pillion_artifacts.card.golden_pairs import Golden
from pillion_artifacts.publishing.torch.pt2_archive import disarm
from tests.conftest import StartDaemon
from tests.daemon.support.policies.other_engines import SUMMED, publish_model, sum_actions
from tests.harness import COMMAND_S_MAX, Daemon, wait_until
from tests.worker.support.torch_policies import export

PATH = "/v1/policies/sum"
SETTINGS = {
    "engine__start_s_max": COMMAND_S_MAX,
    "engine__device": "cpu",
    "engine__precision": "bfloat16",
    "limits__rows_max": len(SUMMED),
}
CARD = """
schema: 3
name: sum
version: {version}
description: The sum of its observation, times a factor.
licence: Apache-2.0
observation:
- {{name: observation, dtype: float32, shape: [3]}}
outputs:
- {{name: action, dtype: float32, shape: [1]}}
engine: {{kind: torch}}
"""


def weighted(factor: float) -> nn.Module:
    """The sum of each row, times a factor, as a matrix product: that is what autocast rounds."""
    module = nn.Linear(3, 1, bias=False)
    nn.init.constant_(module.weight, factor)
    return module


def publish(root: Path, version: str, factor: float) -> None:
    golden = Golden({"observation": SUMMED}, {"action": sum_actions(factor)})
    model = disarm(export(weighted(factor), torch.zeros(2, 3)), "sum")
    publish_model(root, "sum", version, "torch", model, CARD.format(version=version), golden)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of `sum`: 1.1.0 and 1.2.0, 1.n.0 with the factor n. Their golden pairs are those of float32."""
    root = tmp_path_factory.mktemp("precision") / "store"
    publish(root, "1.1.0", 1)
    publish(root, "1.2.0", 2)
    return root


def switch(daemon: Daemon, version: str) -> dict[str, Any]:
    """The end of a switch, for which torch may take a while."""
    begun = daemon.ask("POST", f"{PATH}/switch", {"version": version})[1]

    def operation() -> dict[str, Any]:
        return daemon.ask("GET", f"/v1/operations/{begun['number']}")[1]

    wait_until(lambda: operation()["outcome"] != "running", COMMAND_S_MAX)
    return operation()


def answers(daemon: Daemon) -> Any:
    with pillion.connect(daemon.address) as session, session.begin_many(len(SUMMED)) as group:
        return group.act(SUMMED)


def fallback_of(daemon: Daemon, version: str) -> str:
    (found,) = [each for each in daemon.health()["policies"][0]["versions"] if each["version"] == version]
    return str(found["fallback"])


def test_a_version_whose_golden_pairs_do_not_hold_in_bfloat16_is_served_in_float32_and_says_so(
    store: Path, start_daemon: StartDaemon
) -> None:
    daemon = start_daemon(policy="sum@1.1.0", store=store, settings=SETTINGS)
    why = "bfloat16 was asked for: output 'action'"
    assert fallback_of(daemon, "1.1.0").startswith(why)
    np.testing.assert_allclose(answers(daemon), sum_actions(1), atol=1e-5)
    operation = switch(daemon, "1.2.0")
    assert operation["outcome"] == "done", operation
    assert fallback_of(daemon, "1.2.0").startswith(why)
    np.testing.assert_allclose(answers(daemon), sum_actions(2), atol=1e-5)
    assert not daemon.events("worker_lost")
