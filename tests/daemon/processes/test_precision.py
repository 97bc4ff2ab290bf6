"""A torch version whose golden pairs do not hold in the precision of the settings computes in float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

import pillion
from pillion_artifacts.card.golden_pairs import Golden
from pillion_artifacts.publishing.torch.pt2_archive import disarm
from tests.conftest import StartDaemon
from tests.daemon.support.policies.other_engines import SUMMED, publish_model, sum_actions
from tests.harness import COMMAND_S_MAX
from tests.worker.support.torch_policies import export

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


def test_a_version_whose_golden_pairs_do_not_hold_in_bfloat16_is_served_in_float32_and_says_so(
    tmp_path: Path, start_daemon: StartDaemon
) -> None:
    publish(tmp_path / "store", "1.1.0", 1)
    daemon = start_daemon(policy="sum@1.1.0", store=tmp_path / "store", settings=SETTINGS)
    (version,) = daemon.health()["policies"][0]["versions"]
    assert (version["device"], version["worker"]["restarts"]) == ("cpu", 0)
    assert version["fallback"].startswith("bfloat16 was asked for: output 'action'")
    assert daemon.events("ready")[0]["fallback"] == version["fallback"]
    with pillion.connect(daemon.address) as session, session.begin_many(len(SUMMED)) as group:
        np.testing.assert_allclose(group.act(SUMMED), sum_actions(1), atol=1e-5)
    assert not daemon.events("worker_lost")
