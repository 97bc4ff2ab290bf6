"""What is built for one CPU is not loaded on another one."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from pillion_worker.builds.host import cpu_key, device_key, model_digest
from pillion_worker.errors import EngineError

CPUS = """processor\t: 0
model name\t: Example 9000
cpu MHz\t\t: {mhz}
flags\t\t: fpu {flags}

processor\t: 1
model name\t: Example 9000
flags\t\t: fpu {flags}
"""


def key(tmp_path: Path, text: str) -> dict[str, str]:
    file = tmp_path / "cpuinfo"
    file.write_text(text)
    return cpu_key(str(file))


def test_the_key_of_a_cpu_is_its_name_and_its_instruction_sets(tmp_path: Path) -> None:
    here = key(tmp_path, CPUS.format(mhz=3000, flags="avx2 avx512f"))
    assert here["cpu"] == platform.machine()
    assert key(tmp_path, CPUS.format(mhz=2400, flags="avx2 avx512f")) == here
    assert key(tmp_path, CPUS.format(mhz=3000, flags="avx2")) != here
    assert key(tmp_path, CPUS.format(mhz=3000, flags="avx2 avx512f").replace("9000", "9001")) != here


def test_the_key_of_an_arm_cpu_is_its_part_and_its_instruction_sets(tmp_path: Path) -> None:
    arm = "processor\t: 0\nBogoMIPS\t: 2000\nFeatures\t: fp asimd sve\nCPU implementer\t: 0x41\nCPU part\t: 0xd40\n"
    here = key(tmp_path, arm)
    assert key(tmp_path, arm.replace("2000", "50")) == here
    assert key(tmp_path, arm.replace(" sve", "")) != here
    assert key(tmp_path, arm.replace("0xd40", "0xd4f")) != here


def test_a_cpu_that_nobody_describes_has_no_key(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="does not say what the CPU is"):
        key(tmp_path, "processor\t: 0\n")
    with pytest.raises(EngineError, match="No such file"):
        cpu_key(str(tmp_path / "nothing"))


def test_this_host_has_a_key() -> None:
    assert device_key("cpu") == device_key("cpu")
    with pytest.raises(EngineError):
        device_key("cuda:63")


def test_a_model_has_the_digest_of_its_bytes(tmp_path: Path) -> None:
    file = tmp_path / "model"
    file.write_bytes(b"abc")
    assert model_digest(str(file)) == model_digest(b"abc") != model_digest(b"abd")
