"""A torch program is compiled once for this host, and then only loaded; where that cannot be, it runs as it is and says why."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pillion_protocol import TensorSpec
from tests.harness import COMMAND_S_MAX, WAIT_S_MAX
from tests.worker.support.compiler import COMPILER, needs_compiler
from tests.worker.support.policies import Policy
from tests.worker.support.torch_policies import (
    Recurrent,
    TorchHost,
    export,
    policy,
    random_rows,
    recurrent,
    refusals,
    script,
    seeded,
    summing,
)

ROWS_MAX = 8
CACHE_BYTES_MAX = 10**9
ASKED = "a compiled program was asked for: "


def host(cache: Path, policy: Policy, **settings: Any) -> TorchHost:
    fields = {"compiles": True, "build_cache": str(cache), "build_cache_bytes_max": CACHE_BYTES_MAX, **settings}
    host = TorchHost(policy, ROWS_MAX, **fields)
    host.wait_s_max = COMMAND_S_MAX
    return host


@pytest.fixture(scope="module")
def module() -> Any:
    return seeded(Recurrent)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, module: Any) -> Path:
    """A cache with `recurrent` compiled: that takes a minute, so that it is done once."""
    needs_compiler()
    cache, temporary = tmp_path_factory.mktemp("built") / "cache", tmp_path_factory.mktemp("temporary")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(temporary))
        with host(cache, recurrent(module), builds=True) as builder:
            builder.start()
            described = builder.engine.describe()
            assert (described["compiled"], described.get("fallback")) == (True, None)
    # Neither inductor nor the compiler left anything there, which another build would read.
    assert [each for each in temporary.rglob("*") if each.is_file()] == []
    assert [file.suffix for file in cache.iterdir()] == [".engine"]
    return cache


@pytest.fixture
def cache(built: Path, tmp_path: Path) -> Path:
    """A copy of it, which a test may damage."""
    shutil.copytree(built, tmp_path / "cache")
    return tmp_path / "cache"


def test_what_was_compiled_is_loaded_without_a_compiler_and_answers_as_the_module_does(
    cache: Path, module: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    with host(cache, recurrent(module)) as served:
        served.start()
        described = served.engine.describe()
        assert (described["compiled"], described.get("fallback")) == (True, None)
        assert "aotinductor" in Path(f"/proc/{served.process.pid}/maps").read_text()
        # Nothing is left that a worker would have to remove when it is killed.
        assert os.listdir(tmp_path / "temporary") == []
        for rows in range(1, ROWS_MAX + 1):
            observations = random_rows(rows, 3)
            memory = served.submit(observations)
            served.pump_answers(rows)
            with torch.no_grad():
                action, (hidden, _), logits = module(
                    torch.from_numpy(observations), torch.zeros(rows, 5), torch.zeros(rows, 5)
                )
            assert np.array_equal(memory.outputs["action"][:rows], action)
            np.testing.assert_allclose(memory.outputs["logits"][:rows], logits, atol=1e-5)
            assert hidden.any()
        served.engine.close()
        assert served.process.wait(WAIT_S_MAX) == os.EX_OK


def fallback_of(cache: Path, policy: Policy, **settings: Any) -> str:
    """Why a worker runs the program as it is; it answers all the same."""
    with host(cache, policy, **settings) as served:
        served.start()
        described = served.engine.describe()
        assert not described["compiled"]
        assert len(served.run(random_rows(2, 3))) == 2
        return str(described["fallback"])


def test_a_damaged_build_is_never_loaded(cache: Path, module: Any) -> None:
    (file,) = cache.iterdir()
    with file.open("r+b") as package:
        package.seek(-100, os.SEEK_END)
        package.write(b"\0\1\2\3")
    assert fallback_of(cache, recurrent(module)) == f"{ASKED}its cache had a damaged build, which is removed"
    assert list(cache.iterdir()) == []


def test_a_build_that_others_can_write_to_is_not_loaded(cache: Path, module: Any) -> None:
    (file,) = cache.iterdir()
    file.chmod(0o666)
    assert "of this user that nobody else can write to" in fallback_of(cache, recurrent(module))


NONE_BUILT = "none was built for this model, device and software: one is built while a version is staged"


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({}, NONE_BUILT),
        ({"build_cache": ""}, "engine.build_cache_dir is not set, and this user has no home"),
        (
            {"builds": True},
            f"its build failed: it needs a C++ compiler, and {COMPILER} is not installed",
        ),
    ],
)
def test_without_a_build_or_a_compiler_the_program_runs_as_it_is(
    settings: dict[str, Any], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert fallback_of(tmp_path / "cache", summing(), **settings) == ASKED + why


def test_a_build_for_another_model_or_for_other_settings_is_not_loaded(
    cache: Path, module: Any, tmp_path: Path
) -> None:
    asked = {"compiles": True, "build_cache": str(cache), "build_cache_bytes_max": CACHE_BYTES_MAX}
    same, other = recurrent(module), recurrent(Recurrent())
    said = refusals(
        {
            "same": (same, asked),
            "rows": (same, {**asked, "rows_max": ROWS_MAX // 2}),
            "threads": (same, {**asked, "threads": 2}),
            "model": (other, asked),
        },
        tmp_path,
    )
    assert said == {"same": "", **dict.fromkeys(("rows", "threads", "model"), ASKED + NONE_BUILT)}


class Looking(nn.Module):
    """Takes integers of any width: only the program knows which it was exported for."""

    def forward(self, observation: Tensor) -> Tensor:
        return observation.sum(dim=1, keepdim=True).float()


def test_what_a_compiled_program_cannot_do_is_told_before_a_build(tmp_path: Path) -> None:
    narrow = policy(
        export(Looking(), torch.zeros(2, 3, dtype=torch.int64)), observation=[TensorSpec("observation", "int32", [3])]
    )
    asked = {"compiles": True, "builds": True, "build_cache": str(tmp_path / "cache"), "build_cache_bytes_max": 10**9}
    kinds: dict[str, tuple[Policy, dict[str, Any]]] = {
        "script": (policy(script(Looking())), {"model_kind": "torchscript"}),
        "half": (summing(), {"precision": "bfloat16", "device": "cpu"}),
        "channels_last": (summing(), {"channels_last": True}),
        "narrow": (narrow, {}),
    }
    said = refusals({name: (each, {**asked, **settings}) for name, (each, settings) in kinds.items()}, tmp_path)
    plainly = "a compiled program computes in float32 or tf32, and with tensors as they come"
    assert said == {
        "script": f"{ASKED}only programs of torch.export can be compiled",
        "half": ASKED + plainly,
        "channels_last": ASKED + plainly,
        "narrow": f"{ASKED}it was exported for rows of torch.int64 [3], and the card has torch.int32 [3]",
    }
    assert not (tmp_path / "cache").exists()
