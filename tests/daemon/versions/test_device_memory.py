"""What a version takes of devices is measured where it is tried, whatever computes there. The driver is a stub."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pillion_artifacts import Store
from pillion_artifacts.publishing.torch.pt2_archive import disarm
from pillion_artifacts.store.sealed_artifact import seal_artifact
from pilliond.engine.interface import EngineError
from pilliond.ipc.sealed_version import SealedVersion, seal
from pilliond.settings.schema import EngineSettings
from pilliond.versions.trial_worker import TrialWorker
from tests.daemon.support.policies.other_engines import publish_sum, publish_taking
from tests.harness import COMMAND_S_MAX, STORE, WAIT_S_MAX
from tests.worker.support.installed import TAKING, make_environment
from tests.worker.support.simulated_cuda import SimulatedGpu
from tests.worker.support.stub_gpu import StubGpu
from tests.worker.support.torch_policies import Summing, export

ROWS_MAX = 4
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An interpreter with the package of `taking`."""
    return make_environment(tmp_path_factory.mktemp("environment"), TAKING)


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StubGpu:
    (tmp_path / "gpu").mkdir()
    return StubGpu(tmp_path / "gpu", monkeypatch)


@pytest.fixture
def lander() -> Iterator[SealedVersion]:
    """An ONNX version."""
    yield from _sealed(Store(STORE), "lunar-lander")


@pytest.fixture
def taking(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[SealedVersion]:
    """A Python policy; the parameter holds the arguments of its factory."""
    publish_taking(tmp_path / "store", "1.0.0", **request.param)
    yield from _sealed(Store(tmp_path / "store"), "taking")


def _sealed(store: Store, policy: str) -> Iterator[SealedVersion]:
    sealed = seal(seal_artifact(store, store.resolve(policy)))
    yield sealed
    sealed.close()


def tried(sealed: SealedVersion, **settings: Any) -> tuple[dict[str, Any], int]:
    """Tries a version; returns how its engine describes itself, and the process of its worker."""
    asked = EngineSettings(start_s_max=COMMAND_S_MAX, **settings)
    with TrialWorker(sealed.request(), ROWS_MAX, asked, [TAKING], looks_apart=True) as worker:
        return worker.start(sealed.model_descriptor).engine.describe(), worker.pid


# Engines that choose


def test_with_auto_the_device_that_is_faster_is_measured_and_bounded(gpu: StubGpu, lander: SealedVersion) -> None:
    gpu.set(slow=CPU)
    described, worker = tried(lander)
    assert (described["device"], described["device_memory_mb"]) == ("cuda:0", 300)
    assert gpu.contexts() == [("made", 0, worker)]
    with pytest.raises(EngineError, match=r"engine\.device_memory_mb: expected at most 299, it took 300 MB of cuda:0"):
        tried(lander, device_memory_mb=299)


def test_with_auto_a_version_on_the_cpu_leaves_nothing_on_the_device(gpu: StubGpu, lander: SealedVersion) -> None:
    gpu.set(slow=CUDA)
    described, worker = tried(lander, device_memory_mb=299)
    assert described["device"] == "cpu"
    assert "device_memory_mb" not in described
    assert gpu.contexts() == [("made", 0, worker), ("reset", 0, worker)]
    # What the driver does not take back is there, and counts.
    gpu.set(no_reset=1)
    assert tried(lander)[0]["device_memory_mb"] == 300
    with pytest.raises(EngineError, match="it took 300 MB of cuda:0"):
        tried(lander, device_memory_mb=299)


def test_with_auto_an_engine_without_cuda_does_not_touch_the_device(
    gpu: StubGpu, lander: SealedVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The real ONNX Runtime.
    monkeypatch.delenv("PYTHONPATH")
    assert "device_memory_mb" not in tried(lander)[0]
    assert gpu.contexts() == []


def test_torch_is_measured_where_it_computes(gpu: StubGpu, tmp_path: Path) -> None:
    publish_sum(tmp_path / "store", "1.0.0", "torch", disarm(export(Summing(), torch.zeros(2, 3)), "sum"), 1)
    simulated = SimulatedGpu(tmp_path / "environment").python
    for sealed in _sealed(Store(tmp_path / "store"), "sum"):
        described, worker = tried(sealed, python=simulated, device="cuda:0")
        assert (described["device"], described["device_memory_mb"]) == ("cuda:0", 300)
        assert gpu.contexts() == [("made", 0, worker)]
        # Either may be faster.
        described, worker = tried(sealed, python=simulated)
        on_device = described["device"] == "cuda:0"
        assert ("device_memory_mb" in described) == on_device
        assert gpu.contexts() == [("made", 0, worker), *([] if on_device else [("reset", 0, worker)])]


# Python policies


@pytest.mark.parametrize("taking", [{"elsewhere_mb_0": 300, "elsewhere_mb_1": 50}], indirect=True)
def test_a_python_policy_is_measured_on_each_device_that_it_sees(
    gpu: StubGpu, taking: SealedVersion, python: str
) -> None:
    gpu.set(devices=3)
    described, worker = tried(taking, python=python, device_memory_mb=300)
    assert described["device_memory_mb"] == 350
    assert described["fallback"] == "nothing bounds the device memory of a Python policy while it serves"
    # Two other processes looked, one after the other, and each is gone.
    contexts = gpu.contexts()
    assert [(what, device) for what, device, _ in contexts] == [("made", 0), ("made", 1), ("made", 2)] * 2
    processes = [process for _, _, process in contexts]
    assert len({*processes, worker}) == 3
    assert not any(Path(f"/proc/{process}").exists() for process in processes)
    gpu.set(elsewhere_mb_0=0, elsewhere_mb_1=0)
    with pytest.raises(EngineError, match=r"engine\.device_memory_mb: expected at most 299, it took 300 MB of cuda:0"):
        tried(taking, python=python, device_memory_mb=299)


@pytest.mark.parametrize("taking", [{}], indirect=True)
def test_a_python_policy_that_takes_nothing_of_a_device_is_not_bounded(
    gpu: StubGpu, taking: SealedVersion, python: str
) -> None:
    assert "device_memory_mb" not in tried(taking, python=python, device_memory_mb=1)[0]
    gpu.contexts()
    tried(taking, python=python, device="cpu")
    # A host without a device.
    gpu.set(free_mb=0)
    tried(taking, python=python)
    assert gpu.contexts() == []


@pytest.mark.parametrize(
    ("taking", "measured_mb"),
    [({"elsewhere_mb_0": 600, "no_context": 2}, 1_000), ({"elsewhere_mb_0": 600, "no_context": 46}, None)],
    indirect=["taking"],
)
def test_a_device_that_has_no_room_even_for_a_look_is_full_and_one_that_refuses_it_is_not_measured(
    gpu: StubGpu, taking: SealedVersion, python: str, measured_mb: int | None
) -> None:
    assert tried(taking, python=python)[0].get("device_memory_mb") == measured_mb


def test_a_look_at_the_only_device_has_its_name(gpu: StubGpu) -> None:
    code = "from pillion_worker.device_memory.probe import prepare_probe as p; print(p('cuda:7')())"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said == "{'cuda:7': DeviceMemory(free_bytes=1000000000, total_bytes=2000000000)}\n"


LOOK = """
import os, signal
from pillion_worker.device_memory.probe import prepare_probe

def children():
    with open(f"/proc/self/task/{{os.getpid()}}/children") as file:
        return [int(pid) for pid in file.read().split()]

end = os.open("/dev/null", os.O_RDONLY)
os.close(end)
# The lowest free descriptor is that of its end.
read = prepare_probe("cuda:7")
assert os.readlink(f"/proc/self/fd/{{end}}").startswith("socket:")
fork = 0
{does}
print(read())
if fork:
    os.kill(fork, signal.SIGKILL)
    os.waitpid(fork, 0)
print(children())
"""
KILLED = "os.kill(children()[0], signal.SIGKILL)"
CLOSED = "os.close(end)"
REOPENED = "os.dup2(os.open('/dev/null', os.O_RDONLY), end)"
FORKED = """
fork = os.fork()
if not fork:
    signal.alarm(60)
    signal.pause()
os.close(end)
"""


@pytest.mark.parametrize("does", [KILLED, CLOSED, REOPENED, FORKED])
def test_a_look_that_fails_says_nothing_of_the_devices_and_ends_its_process(gpu: StubGpu, does: str) -> None:
    look = [sys.executable, "-c", LOOK.format(does=does)]
    said = subprocess.run(look, capture_output=True, text=True, check=True, timeout=WAIT_S_MAX).stdout
    assert said == "{}\n[]\n"
    assert gpu.contexts() == []


def test_a_look_leaves_a_descriptor_that_is_no_longer_its_own(gpu: StubGpu) -> None:
    code = LOOK.format(does=REOPENED) + "del read\nprint(os.readlink(f'/proc/self/fd/{end}'))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said == "{}\n[]\n/dev/null\n"
