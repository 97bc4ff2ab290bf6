"""Torch programs in workers, by real daemons: only the worker ever loads torch."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

import pillion
from pillion_artifacts.publishing.torch.pt2_archive import disarm, repack
from tests.conftest import StartDaemon
from tests.daemon.support.policies.other_engines import SUMMED, publish_sum, sum_actions
from tests.daemon.support.started import refused_start
from tests.daemon.support.worker_faults import is_worker
from tests.harness import COMMAND_S_MAX, Daemon, wait_until
from tests.worker.support.torch_policies import export, script

PATH = "/v1/policies/sum"
PATIENT = {"engine__start_s_max": COMMAND_S_MAX, "limits__rows_max": len(SUMMED)}
"""On a busy machine, a worker at a low priority imports torch for a minute."""
BALLAST = 10_000_000
"""Floats that a version carries: 40 MB, so that a copy of them would be seen."""
UNCHANGED_BYTES = 5_000_000


class Sum(nn.Module):
    """The sum of each row, times a factor, and a table of which nothing is used."""

    def __init__(self, factor: float, ballast: int = 1) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))
        self.table = nn.Parameter(torch.zeros(ballast))

    def forward(self, observation: Tensor) -> Tensor:
        return observation.sum(dim=1, keepdim=True) * self.factor + self.table[:1]


def onnx_sum(factor: float) -> bytes:
    """The same as an ONNX graph."""
    nodes = [
        helper.make_node("ReduceSum", ["observation", "axis"], ["sum"], keepdims=1),
        helper.make_node("Mul", ["sum", "factor"], ["action"]),
    ]
    graph = helper.make_graph(
        nodes,
        "sum",
        [helper.make_tensor_value_info("observation", TensorProto.FLOAT, ["rows", 3])],
        [helper.make_tensor_value_info("action", TensorProto.FLOAT, ["rows", 1])],
        [
            numpy_helper.from_array(np.array([1], np.int64), "axis"),
            numpy_helper.from_array(np.array(factor, np.float32), "factor"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of `sum`: 1.1.0, 1.2.0 are torch programs, 1.3.0 is TorchScript, 1.4.0 an ONNX graph; 1.n.0 has the factor n."""
    root = tmp_path_factory.mktemp("torch") / "store"
    for factor in (1.0, 2.0):
        publish_sum(
            root, f"1.{factor:.0f}.0", "torch", disarm(export(Sum(factor, BALLAST), torch.zeros(2, 3)), "sum"), factor
        )
    publish_sum(root, "1.3.0", "torchscript", repack(script(Sum(3.0)), "sum"), 3)
    publish_sum(root, "1.4.0", "onnx", onnx_sum(4.0), 4)
    return root


@pytest.fixture(scope="module")
def shared(store: Path, module_daemon: StartDaemon) -> Daemon:
    """Serves the torch program 1.1.0. Every test leaves it so."""
    return module_daemon(policy="sum@1.1.0", store=store, settings=PATIENT)


@pytest.fixture
def daemon(shared: Daemon) -> Iterator[Daemon]:
    """The shared daemon. When a test is over, neither of its own processes has loaded torch."""
    yield shared
    check_no_torch(shared)


def has_torch(pid: int) -> bool:
    return "torch" in Path(f"/proc/{pid}/maps").read_text()


def check_no_torch(daemon: Daemon) -> None:
    assert not has_torch(daemon.pid)
    assert not has_torch(daemon.serving_pid)


def version_of(daemon: Daemon, version: str) -> dict[str, Any]:
    """What `/health` says of a loaded version."""
    (found,) = [each for each in daemon.health()["policies"][0]["versions"] if each["version"] == version]
    return dict(found)


def act(daemon: Daemon) -> Any:
    with pillion.connect(daemon.address) as session, session.begin_many(len(SUMMED)) as group:
        return group.act(SUMMED)


def answers_with(daemon: Daemon, factor: float) -> bool:
    return bool(np.allclose(act(daemon), sum_actions(factor), atol=1e-5))


def operate(daemon: Daemon, verb: str, version: str) -> dict[str, Any]:
    return ended(daemon, daemon.ask("POST", f"{PATH}/{verb}", {"version": version}))


def ended(daemon: Daemon, begun: tuple[int, dict[str, Any], dict[str, str]]) -> dict[str, Any]:
    """Waits for the end of an operation for as long as torch may take."""

    def operation() -> dict[str, Any]:
        return daemon.ask("GET", f"/v1/operations/{begun[1]['number']}")[1]

    wait_until(lambda: operation()["outcome"] != "running", COMMAND_S_MAX)
    return operation()


def roll_back(daemon: Daemon) -> None:
    """Goes back to the version before, which is still loaded."""
    rollback = daemon.ask("POST", f"{PATH}/rollback", {"reason": "a test"})
    assert daemon.operation(rollback)["outcome"] == "done"


def test_a_torch_program_is_served_in_a_worker(daemon: Daemon) -> None:
    assert answers_with(daemon, 1)
    version, engine = version_of(daemon, "1.1.0"), daemon.health()["engine"]
    assert (version["placement"], version["placement_reason"]) == ("worker", "it is a torch program")
    assert (version["device"], version["fallback"]) == ("cpu", "")
    assert (engine["kind"], engine["version"], engine["device"]) == ("torch", torch.__version__, "cpu")
    assert has_torch(version["worker"]["pid"])


def test_it_is_staged_switched_to_and_rolled_back(daemon: Daemon) -> None:
    operation = operate(daemon, "switch", "1.2.0")
    assert operation["outcome"] == "done", operation
    assert (operation["placement"], operation["certificate"]["source"]) == ("worker", "golden pairs")
    assert answers_with(daemon, 2)
    roll_back(daemon)
    assert answers_with(daemon, 1)


def test_it_gives_way_to_an_onnx_graph_and_comes_back(daemon: Daemon) -> None:
    operation = operate(daemon, "switch", "1.4.0")
    assert (operation["outcome"], operation["placement"]) == ("done", "inline")
    assert answers_with(daemon, 4)
    roll_back(daemon)
    assert answers_with(daemon, 1)


def test_a_torch_worker_leaves_the_memory_of_the_serving_process_unchanged(
    store: Path, start_daemon: StartDaemon
) -> None:
    daemon = start_daemon(policy="sum@1.4.0", store=store, settings=PATIENT)
    assert answers_with(daemon, 4)
    serving = psutil.Process(daemon.serving_pid)
    before = serving.memory_info().rss
    assert operate(daemon, "switch", "1.1.0")["outcome"] == "done"
    assert answers_with(daemon, 1)
    assert abs(serving.memory_info().rss - before) < UNCHANGED_BYTES
    check_no_torch(daemon)


def test_it_shadows_and_its_worker_runs_at_the_lowest_priority(daemon: Daemon) -> None:
    body = {"arms": [], "shadow": {"version": "1.2.0", "share": 1.0}}
    operation = ended(daemon, daemon.ask("PUT", f"{PATH}/route", body))
    assert operation["outcome"] == "done", operation
    assert answers_with(daemon, 1)
    wait_until(lambda: daemon.ask("GET", f"{PATH}/shadow")[1]["rows"] == len(SUMMED), COMMAND_S_MAX)
    report = daemon.ask("GET", f"{PATH}/shadow")[1]
    (output,) = report["outputs"]
    expected = np.abs(sum_actions(2) - sum_actions(1)).mean()
    assert output["distance_mean"] == pytest.approx(expected, rel=1e-4)
    shadow = psutil.Process(daemon.health()["shadow"]["pid"])
    (worker,) = [child for child in shadow.children() if is_worker(child)]
    assert has_torch(worker.pid)
    assert not has_torch(shadow.pid)
    assert {os.sched_getscheduler(thread.id) for thread in worker.threads()} == {os.SCHED_IDLE}
    daemon.operation(daemon.ask("PUT", f"{PATH}/route", {"arms": [], "shadow": None}))
    wait_until(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE)


def test_a_killed_worker_is_replaced(daemon: Daemon) -> None:
    before = version_of(daemon, "1.1.0")["worker"]["pid"]
    with pillion.connect(daemon.address, timeout_s=COMMAND_S_MAX) as session, session.begin_many(len(SUMMED)) as group:
        expected = group.act(SUMMED)
        os.kill(before, signal.SIGKILL)
        assert np.array_equal(group.act(SUMMED), expected)
    assert version_of(daemon, "1.1.0")["worker"]["pid"] != before


def test_torchscript_needs_its_setting(daemon: Daemon, store: Path, start_daemon: StartDaemon) -> None:
    why = "sum@v1.3.0: it is a TorchScript program, and trust.torchscript is false"
    operation = operate(daemon, "switch", "1.3.0")
    assert (operation["outcome"], operation["error"]) == ("failed", why)
    assert answers_with(daemon, 1)
    assert refused_start(store, "sum@1.3.0", {}) == (os.EX_DATAERR, f"pilliond: {why}")
    other = start_daemon(policy="sum@1.3.0", store=store, settings={**PATIENT, "trust__torchscript": "true"})
    assert answers_with(other, 3)
    assert version_of(other, "1.3.0")["placement_reason"] == "it is a TorchScript program"


def test_it_never_runs_inline(store: Path) -> None:
    assert refused_start(store, "sum@1.1.0", {"engine__placement": "inline"}) == (
        os.EX_DATAERR,
        "pilliond: sum@1.1.0: engine.placement is inline, and it is a torch program: expected auto or worker",
    )


def test_a_device_that_is_not_there_is_told_and_refused_where_it_is_required(
    store: Path, start_daemon: StartDaemon
) -> None:
    settings = {**PATIENT, "engine__device": "cuda:63", "engine__device_required": "true"}
    code, line = refused_start(store, "sum@1.1.0", settings)
    assert code == os.EX_DATAERR
    assert line.startswith(
        "pilliond: sum@1.1.0: engine.device_required: expected cuda:63, got cpu (cuda:63 was asked for: "
    )
    daemon = start_daemon(policy="sum@1.4.0", store=store, settings={"engine__device": "cuda:63"})
    assert answers_with(daemon, 4)
    version = version_of(daemon, "1.4.0")
    assert (version["placement"], version["placement_reason"]) == ("worker", "engine.device is cuda:63")
    assert version["device"] == "cpu"
    assert version["fallback"].startswith("cuda:63 was asked for: ")
    (fell,) = daemon.events("falls_back")
    assert (fell["level"], fell["version"]) == ("warning", "sum@1.4.0")
    assert (fell["device"], fell["fallback"]) == ("cpu", version["fallback"])
    # The next worker says the same: that is nothing new.
    os.kill(version["worker"]["pid"], signal.SIGKILL)
    wait_until(lambda: len(daemon.events("worker_ready")) == 2)
    assert daemon.operation(daemon.ask("POST", f"{PATH}/switch", {"version": "1.1.0"}))["outcome"] == "done"
    assert [event["version"] for event in daemon.events("falls_back")] == ["sum@1.4.0", "sum@1.1.0"]


@pytest.fixture
def without_torch(tmp_path: Path) -> dict[str, str]:
    """An environment in which no Python finds torch."""
    folder = tmp_path / "hidden"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import sys\n"
        "class Hidden:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch':\n"
        "            raise ModuleNotFoundError('No module named torch', name='torch')\n"
        "sys.meta_path.insert(0, Hidden())\n"
    )
    return {"PYTHONPATH": str(folder)}


def test_without_torch_a_daemon_serves_as_before_and_refuses_a_torch_program(
    store: Path, start_daemon: StartDaemon, without_torch: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in without_torch.items():
        monkeypatch.setenv(name, value)
    for placement in ("inline", "worker"):
        daemon = start_daemon(policy="sum@1.4.0", store=store, settings={"engine__placement": placement})
        assert answers_with(daemon, 4)
    operation = operate(daemon, "switch", "1.1.0")
    assert operation["outcome"] == "failed"
    assert operation["error"].startswith("its engine needs the package 'torch', which ")
    assert operation["error"].endswith(" -m pip install 'pillion[torch]'")
    assert answers_with(daemon, 4)
