"""A daemon whose torch policies are compiled: while it stages them, and never while it serves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import pillion
from pillion_artifacts.publishing.torch.pt2_archive import disarm
from tests.conftest import StartDaemon
from tests.daemon.support.policies.other_engines import SUMMED, publish_sum, sum_actions
from tests.harness import COMMAND_S_MAX, Daemon, wait_until
from tests.worker.support.compiler import needs_compiler
from tests.worker.support.torch_policies import export

PATH = "/v1/policies/sum"


class Sum(nn.Module):
    """The sum of each row, times a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, observation: Tensor) -> Tensor:
        return observation.sum(dim=1, keepdim=True) * self.factor


def version_of(daemon: Daemon, version: str) -> dict[str, Any]:
    (found,) = [each for each in daemon.health()["policies"][0]["versions"] if each["version"] == version]
    return dict(found)


def answers_with(daemon: Daemon, factor: float) -> bool:
    with pillion.connect(daemon.address) as session, session.begin_many(len(SUMMED)) as group:
        return bool(np.allclose(group.act(SUMMED), sum_actions(factor), atol=1e-5))


def test_a_program_is_compiled_while_it_is_staged_and_served_from_the_cache(
    tmp_path: Path, start_daemon: StartDaemon
) -> None:
    needs_compiler()
    store, cache = tmp_path / "store", tmp_path / "cache"
    for factor in (1.0, 2.0):
        publish_sum(store, f"1.{factor:.0f}.0", "torch", disarm(export(Sum(factor), torch.zeros(2, 3)), "sum"), factor)
    settings = {
        "engine__compile": "true",
        "engine__build_cache_dir": cache,
        "engine__start_s_max": COMMAND_S_MAX,
        "limits__rows_max": len(SUMMED),
    }
    daemon = start_daemon(policy="sum@1.1.0", store=store, settings=settings)
    # Nothing was staged: it serves at once, and says that it does so without a compiled program.
    assert "a compiled program was asked for: none was built" in version_of(daemon, "1.1.0")["fallback"]
    assert answers_with(daemon, 1)
    assert not list(cache.glob("*.engine"))
    _, begun, _ = daemon.ask("POST", f"{PATH}/switch", {"version": "1.2.0"})

    def operation() -> dict[str, Any]:
        return dict(daemon.ask("GET", f"/v1/operations/{begun['number']}")[1])

    wait_until(lambda: operation()["outcome"] != "running", COMMAND_S_MAX)
    assert operation()["outcome"] == "done", operation()
    assert len(list(cache.glob("*.engine"))) == 1
    served = version_of(daemon, "1.2.0")
    assert served["fallback"] == ""
    # It runs from there, with its golden pairs checked, and gives the program's answers.
    assert "aotinductor" in Path(f"/proc/{served['worker']['pid']}/maps").read_text()
    assert answers_with(daemon, 2)
