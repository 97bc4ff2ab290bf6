"""The torch engine computes in the precision and the memory format that it is asked for, or says why it does not."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pillion_protocol import TensorSpec
from pillion_worker.engines.torch import make
from pillion_worker.errors import EngineError
from pillion_worker.memory import private_memory
from pillion_worker.tensors import LoadRequest
from tests.worker.support.pipelines import opened, request_for
from tests.worker.support.policies import Policy
from tests.worker.support.simulated_device import SimulatedDevice
from tests.worker.support.torch_policies import export, policy, script

PIXELS = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)


class Seeing(nn.Module):
    """A convolution, flattened; `is_strict` only as `view` does it."""

    def __init__(self, is_strict: bool) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.eyes = nn.Conv2d(3, 4, 3)
        self.hand = nn.Linear(4 * 6 * 6, 2)
        self.is_strict = is_strict

    def forward(self, pixels: Tensor) -> Tensor:
        seen = self.eyes(pixels)
        flat = seen.view(seen.shape[0], 144) if self.is_strict else seen.flatten(1)
        action: Tensor = self.hand(flat)
        return action


def seeing(*, is_strict: bool = False, is_script: bool = True) -> Policy:
    module = Seeing(is_strict)
    model = script(module) if is_script else export(module, torch.zeros(2, 3, 8, 8))
    return policy(model, [TensorSpec("pixels", "float32", [3, 8, 8])], [TensorSpec("action", "float32", [2])])


def actions(engine: Any, request: LoadRequest) -> Any:
    """What an engine makes of `PIXELS`."""
    memory = private_memory(request, engine.outputs)
    memory.inputs[0][:2] = PIXELS
    engine.bind(memory)[2]()
    return memory.outputs["action"][:2].copy()


def expected(half: torch.dtype | None = None) -> Any:
    with torch.inference_mode(), torch.autocast("cpu", dtype=half or torch.bfloat16, enabled=half is not None):
        return Seeing(is_strict=False).eval()(torch.from_numpy(PIXELS)).float().numpy()


def made(its: Policy, **settings: Any) -> tuple[dict[str, Any], Any]:
    """What an engine with these settings says of itself, and its actions."""
    request = request_for(its, **{"device": "cpu", **settings})
    with torch.inference_mode():
        engine = make(its.model, request, request.device, "")
        return engine.describe(), actions(engine, request)


def test_the_cpu_computes_in_bfloat16_where_the_settings_name_it() -> None:
    described, answer = made(seeing(), precision="bfloat16")
    assert (described["precision"], "fallback" in described) == ("bfloat16", False)
    np.testing.assert_array_equal(answer, expected(torch.bfloat16))
    assert not np.allclose(answer, expected(), rtol=1e-5)


@pytest.mark.parametrize("precision", ["tf32", "float16"])
def test_the_cpu_computes_in_no_other_precision_and_says_so(precision: str) -> None:
    described, answer = made(seeing(), precision=precision)
    assert described["precision"] == "float32"
    assert described["fallback"] == f"{precision} was asked for: only a CUDA device computes in it"
    np.testing.assert_allclose(answer, expected(), rtol=1e-5)


def test_a_device_computes_in_the_precision_that_it_is_asked_for() -> None:
    with opened(SimulatedDevice()):
        described, answer = made(seeing(), precision="bfloat16", device="cuda:0")
    assert (described["device"], described["precision"], "fallback" in described) == ("cuda:0", "bfloat16", False)
    np.testing.assert_array_equal(answer, expected(torch.bfloat16))


@pytest.mark.parametrize("is_script", [True, False])
def test_convolutions_get_images_and_weights_with_their_channels_last(is_script: bool) -> None:
    seen: list[bool] = []

    class Watching(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch has no types for it
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if "conv" in function.__name__:
                seen.extend(each.is_contiguous(memory_format=torch.channels_last) for each in args[:2])
            return function(*args, **(kwargs or {}))

    its, kind = seeing(is_script=is_script), "torchscript" if is_script else "torch"
    for channels_last in (False, True):
        seen.clear()
        with Watching():  # type: ignore[no-untyped-call]
            described, answer = made(its, channels_last=channels_last, model_kind=kind)
        assert described["channels_last"] is channels_last
        assert seen
        assert set(seen) == {channels_last}
        np.testing.assert_allclose(answer, expected(), rtol=1e-4, atol=1e-6)


def test_a_program_that_only_runs_with_channels_as_they_come_runs_so_and_says_why() -> None:
    described, answer = made(seeing(is_strict=True), channels_last=True)
    assert described["channels_last"] is False
    assert described["fallback"].startswith("channels last was asked for: the program does not run on 2 rows")
    np.testing.assert_allclose(answer, expected(), rtol=1e-5)


def test_a_program_that_is_not_its_card_s_is_refused_for_that() -> None:
    its = seeing()
    other = its._replace(spec=policy(b"", its.spec.observation, [TensorSpec("action", "float32", [3])]).spec)
    with pytest.raises(EngineError, match=re.escape("output 'action' of 1 rows: expected float32 [1, 3], got")):
        made(other, precision="bfloat16", channels_last=True)
