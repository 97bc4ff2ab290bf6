"""A worker serves torch programs as they are, and refuses those that do not keep to their cards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from pillion_artifacts.card.model_card import StateCard
from pillion_protocol import Spec, TensorSpec
from pillion_worker.arena import FAILED, OK
from pillion_worker.devices import choose
from pillion_worker.engines.torch import TorchEngine, make
from pillion_worker.errors import EngineError
from pillion_worker.torch_engine import cuda
from pilliond.engine.worker import WorkerState
from tests.worker.support.pipelines import request_for
from tests.worker.support.policies import Policy
from tests.worker.support.simulated_device import SimulatedDevice
from tests.worker.support.torch_policies import (
    ByName,
    Failing,
    OfRows,
    Recurrent,
    Shrinking,
    TorchHost,
    export,
    export_by_keyword,
    policy,
    random_rows,
    recurrent,
    refusals,
    script,
    seeded,
    summing,
)


class Wants4(torch.nn.Module):
    """Takes four floats."""

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        return observation.reshape(-1, 4)[:, :1]


class Doubling(torch.nn.Module):
    """Overwrites its input."""

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        return observation.mul_(2)[:, :1]


class Counting(torch.nn.Module):
    """Counts its runs."""

    count: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        self.count.add_(1)
        with torch.no_grad():
            return observation[:, :1] + self.count


class Forking(torch.nn.Module):
    """Computes in another thread."""

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        future = torch.jit.fork(torch.sum, observation)  # type: ignore[no-untyped-call]
        total: torch.Tensor = torch.jit.wait(future)  # type: ignore[no-untyped-call]
        return observation[:, :1] + total


class Restoring(torch.nn.Module):
    """Maps a file while it is read. `__setstate__` is no part of the graph of `forward`."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = torch.zeros(1)

    @torch.jit.export
    def __getstate__(self) -> tuple[torch.Tensor, bool]:
        return self.kept, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]) -> None:
        self.kept = torch.from_file("/proc/self/comm", False, 0)
        self.training = state[1]

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        return observation.sum(dim=1, keepdim=True)


class Mapping(torch.nn.Module):
    """Maps a file."""

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        return observation.sum(dim=1, keepdim=True) + torch.from_file("/proc/self/comm", False, 0).sum()


SCRIPT = {"model_kind": "torchscript"}


def refusal(policy: Policy, **settings: Any) -> str:
    """Why a worker refuses a policy."""
    with TorchHost(policy, **settings) as host:
        host.attach()
        host.pump(lambda: host.engine.state is not WorkerState.LOADING)
        assert host.engine.is_refused
        reason: str = host.engine.reason
        assert "\n" not in reason
        return reason


def test_a_program_answers_every_number_of_rows_as_torch_does() -> None:
    rows = random_rows(8, 3)
    with TorchHost(summing()) as host:
        host.start()
        for count in (1, 2, 3, 5, 8):
            expected = torch.from_numpy(rows[:count]).sum(dim=1)
            assert host.run(rows[:count]) == expected.tolist()
        described = host.engine.describe()
    assert {"kind": "torch", "device": "cpu", "precision": "float32", "threads": 1}.items() <= described.items()
    assert described["version"] == torch.__version__
    assert described["buckets"] == [1, 2, 4, 8]
    assert "fallback" not in described


def test_a_strict_program_runs_in_one_shape() -> None:
    rows = random_rows(7, 3)
    with TorchHost(summing(), rows_max=7, strict_rows=4, threads=2, memory_bytes_max=8 * 2**30) as host:
        host.start()
        described = host.engine.describe()
        assert (described["buckets"], described["strict"], described["threads"]) == ([4, 8], True, 2)
        assert host.run(rows) == torch.from_numpy(rows).sum(dim=1).tolist()
        assert host.run(rows[:3]) == torch.from_numpy(rows[:3]).sum(dim=1).tolist()


def test_states_travel_beside_the_outputs_and_parameters() -> None:
    module = seeded(Recurrent)
    observation, hidden, cell = random_rows(3, 3), random_rows(3, 5), random_rows(3, 5)
    with torch.inference_mode():
        action, (hidden_next, cell_next), logits = module(*map(torch.from_numpy, (observation, hidden, cell)))
    with TorchHost(recurrent(module)) as host:
        host.start()
        engine = host.engine
        engine.inputs[0][:3] = observation
        for (before, _), value in zip(engine.states, (hidden, cell), strict=True):
            before[:3] = value
        engine.runs[3]()
        assert engine.outputs["action"][:3].tolist() == action.tolist()
        for (_, after), expected in zip(engine.states, (hidden_next, cell_next), strict=True):
            np.testing.assert_allclose(after[:3], expected.numpy(), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(engine.outputs["logits"][:3], logits.numpy(), rtol=1e-5, atol=1e-6)


class Looking(torch.nn.Module):
    """Attends to its last `LOOKS_BACK` observations: its states are their keys and values, and how many there were."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (torch.nn.Linear(3, 3) for _ in range(3))

    def forward(
        self, observation: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, count: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        places = torch.arange(LOOKS_BACK)
        is_here = (places == (count % LOOKS_BACK)[:, None])[..., None]
        keys = torch.where(is_here, self.key(observation)[:, None], keys)
        values = torch.where(is_here, self.value(observation)[:, None], values)
        scores = (keys * self.query(observation)[:, None]).sum(dim=2)
        scores = torch.where(places <= count[:, None], scores, -torch.inf)
        return (scores.softmax(dim=1)[..., None] * values).sum(dim=1), keys, values, count + 1


LOOKS_BACK = 4


def test_a_cache_of_keys_and_values_with_a_bound_is_a_state_like_any_other() -> None:
    module = seeded(Looking)
    states = [
        StateCard("keys", "keys_next", "float32", [LOOKS_BACK, 3]),
        StateCard("values", "values_next", "float32", [LOOKS_BACK, 3]),
        StateCard("count", "count_next", "int64", []),
    ]
    example = [
        torch.zeros(2, 3),
        *(torch.zeros(2, *state.shape, dtype=getattr(torch, state.dtype)) for state in states),
    ]
    spec = Spec([TensorSpec("observation", "float32", [3])], [TensorSpec("action", "float32", [3])])
    with TorchHost(Policy(export(module, *example), spec, [], states)) as host:
        host.start()
        kept = [state[:2] for state in example[1:]]
        number = np.zeros(2, np.int64)
        for _ in range(3 * LOOKS_BACK):
            observation = random_rows(2, 3)
            with torch.inference_mode():
                action, *kept = module(torch.from_numpy(observation), *kept)
            memory = host.engine.free[0]
            ((reads, writes),) = memory.states
            reads[:2] = number
            actual = np.reshape(host.run(observation), (2, 3))
            np.testing.assert_allclose(actual, action.numpy(), rtol=1e-5, atol=1e-6)
            number = host.written[-1][:2]
            assert not writes.any()


def by_name(how: str) -> Policy:
    module = seeded(ByName)
    camera, words = torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(2, 6, dtype=torch.int64)
    observation = [TensorSpec("camera", "uint8", [3, 4, 4]), TensorSpec("words", "int64", [6])]
    outputs = [TensorSpec("action", "float32", [2]), TensorSpec("value", "float32", [1])]
    model = {
        "by position": lambda: export(module, camera, words),
        "by keyword": lambda: export_by_keyword(module, words=words, camera=camera),
        "as a script": lambda: script(module),
    }[how]()
    return policy(model, observation, outputs)


@pytest.mark.parametrize("how", ["by position", "by keyword", "as a script"])
def test_several_inputs_and_outputs_in_a_dictionary_go_by_their_names(how: str) -> None:
    random = np.random.default_rng(2)
    camera = random.integers(0, 256, (5, 3, 4, 4)).astype(np.uint8)
    words = random.integers(0, 10, (5, 6)).astype(np.int64)
    with torch.inference_mode():
        expected = seeded(ByName)(torch.from_numpy(camera), torch.from_numpy(words))
    with TorchHost(by_name(how), kind="torchscript" if how == "as a script" else "torch") as host:
        host.start()
        memory = host.engine.free[0]
        memory.inputs[1][:5] = words
        np.testing.assert_allclose(host.run(camera), expected["action"].flatten().numpy(), rtol=1e-5)
        np.testing.assert_allclose(memory.outputs["value"][:5], expected["value"].numpy(), rtol=1e-5)


def test_a_failing_batch_fails_alone_and_in_one_line() -> None:
    with TorchHost(policy(script(Failing())), kind="torchscript") as host:
        host.start()
        host.submit([[-1.0, 0.0, 0.0]])
        host.pump_answers(1)
        assert host.answers[0].outcome == FAILED
        assert "negative" in host.answers[0].message
        assert "\n" not in host.answers[0].message
        assert host.run([[1.0, 2.0, 3.0]]) == [6.0]
    assert not host.losses


def test_what_a_run_returns_is_checked_each_time() -> None:
    with TorchHost(policy(script(Shrinking())), kind="torchscript") as host:
        host.start()
        for number, (first, expected) in enumerate(
            [(-1.0, "expected float32 [2, 1], got float32 [1, 1]"), (101.0, "got float64 [2, 1]")], 1
        ):
            host.submit([[first, 0.0, 0.0], [0.0, 0.0, 0.0]])
            host.pump_answers(number)
            assert host.answers[-1].outcome == FAILED
            assert expected in host.answers[-1].message
        host.submit([[float("nan"), 0.0, 0.0]])
        host.pump_answers(3)
        assert host.answers[-1].outcome == OK, "the daemon checks for NaN, where it is asked to"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_worker_without_the_device_that_was_asked_for_runs_on_the_cpu_and_says_so() -> None:
    with TorchHost(summing(), device="cuda:0") as host:
        host.start()
        described = host.engine.describe()
        assert host.run([[1.0, 2.0, 3.0]]) == [6.0]
    assert described["device"] == "cpu"
    assert described["fallback"].startswith("cuda:0 was asked for: torch ")


def export_of(function: Any) -> Policy:
    return policy(export(OfRows(function), torch.zeros(2, 3)))


CASES: dict[str, tuple[Callable[[], Policy], dict[str, Any], str]] = {
    "one row": (
        lambda: summing(rows=None, count=1),
        {},
        "input 'observation' was exported for exactly 1 rows: export it with dynamic_shapes",
    ),
    "few rows": (
        lambda: summing(rows=torch.export.Dim("rows", min=1, max=4)),
        {},
        "was exported for 1 to 4 rows, expected 1 to 8: export it with dynamic_shapes",
    ),
    "few rows for its strict shape": (
        lambda: summing(rows=torch.export.Dim("rows", min=1, max=4)),
        {"strict_rows": 16},
        "was exported for 1 to 4 rows, expected 16 to 16",
    ),
    "another shape": (lambda: export_of(lambda rows: rows), {}, "expected float32 [1, 1], got float32 [1, 3]"),
    "another dtype": (lambda: export_of(lambda rows: rows[:, :1].double()), {}, "got float64 [1, 1]"),
    "no rows": (lambda: export_of(lambda rows: rows.sum()), {}, "of 1 rows: expected [1, ...], got float32 []"),
    "too many outputs": (lambda: export_of(lambda rows: (rows, rows)), {}, "expected 1 outputs (action), got 2"),
    "another name": (
        lambda: export_of(lambda rows: {"act": rows[:, :1]}),
        {},
        "outputs are not the card's: expected ['action'], got ['act']",
    ),
    "bfloat16": (
        lambda: export_of(lambda rows: rows[:, :1].bfloat16()),
        {},
        "expected a dtype that numpy has, got bfloat16",
    ),
    "a parameter of integers": (
        lambda: export_of(lambda rows: (rows[:, :1], rows.argmax(dim=1)))._replace(parameters=["logits"]),
        {},
        "output 'logits' of 1 rows: expected floats, got int64 [1]",
    ),
    "too few inputs": (
        lambda: summing()._replace(spec=policy(b"", [TensorSpec("a", "float32", [3])] * 2).spec),
        {},
        "inputs are not the card's: expected 2",
    ),
    "another input": (
        lambda: summing()._replace(spec=policy(b"", [TensorSpec("a", "float32", [2, 3])]).spec),
        {},
        "got float32 [1, 1, 3]",
    ),
    "counts": (
        lambda: policy(export(Counting(), torch.zeros(2, 3))),
        {},
        "overwrites 'b_count' (aten.add_.Tensor): expected a program that changes nothing but new tensors",
    ),
    "overwrites": (lambda: export_of(lambda rows: rows[:, :1].mul_(2)), {}, "overwrites 'observation' (aten.mul_"),
    "not a zip": (lambda: policy(b"not a zip"), {}, "is not a readable archive"),
    "not a device": (summing, {"device": "gpu"}, "device: expected auto, cpu or cuda:N, got 'gpu'"),
    "no script": (lambda: policy(b"PK"), SCRIPT, "the TorchScript is not a readable archive"),
    "a script that overwrites": (lambda: policy(script(Doubling())), SCRIPT, "overwrites an input (aten::mul_)"),
    "a script that forks": (lambda: policy(script(Forking())), SCRIPT, "its code names 'fork': expected torch's own"),
    "a script that runs as it is read": (lambda: policy(script(Restoring())), SCRIPT, "its code names 'from_file'"),
    "a script that maps a file": (lambda: policy(script(Mapping())), SCRIPT, "its code names 'from_file'"),
    "a script of another shape": (lambda: policy(script(Wants4())), SCRIPT, "does not run on 2 rows"),
}


FALLBACKS: dict[str, tuple[Callable[[], Policy], dict[str, Any], str]] = {
    "no device": (summing, {"device": "cuda:0"}, "cuda:0 was asked for: torch "),
    "no precision": (
        summing,
        {"precision": "bfloat16"},
        'only a CUDA device computes in it; to compute in it on the CPU, set engine.device = "cpu"',
    ),
    "none": (summing, {"device": "auto"}, ""),
}
if not torch.cuda.is_available():
    CASES |= FALLBACKS


USED_UP = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee its documentation.")
SHORTAGES: dict[str, tuple[RuntimeError, str]] = {
    # torch has no type of its own for this one.
    "context": (RuntimeError("CUDA error: out of memory\nSee its documentation."), "torch: CUDA error: out of memory"),
    "example": (USED_UP, "device memory is used up: CUDA out of memory. Tried to allocate 2.00 GiB."),
    "program": (USED_UP, "device memory is used up: CUDA out of memory. Tried to allocate 2.00 GiB."),
    "states": (USED_UP, "device memory is used up: CUDA out of memory. Tried to allocate 2.00 GiB."),
}


def run_short(what: str, patch: pytest.MonkeyPatch) -> None:
    """Has a device, of which there is none here, that has no memory left for this part of a version."""
    example = TorchEngine._example

    def fail(*_: Any) -> Any:
        raise SHORTAGES[what][0]

    def fail_on_device(engine: TorchEngine, *asked: Any) -> Any:
        return (example if engine._device == "cpu" else fail)(engine, *asked)

    patch.setattr(cuda, "open_device", fail if what == "context" else lambda *_: SimulatedDevice())
    if what == "example":
        patch.setattr(TorchEngine, "_example", fail_on_device)
    elif what == "program":
        # A place that is not the CPU, and that every torch has.
        patch.setattr(SimulatedDevice, "place", "meta")
        patch.setattr("torch.export.passes.move_to_device_pass", fail)
    elif what == "states":
        patch.setattr(SimulatedDevice, "zeros", fail)


@pytest.mark.parametrize("what", SHORTAGES)
def test_without_device_memory_auto_computes_on_the_cpu_and_a_device_by_name_refuses_in_one_line(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    its = recurrent(seeded(Recurrent))
    run_short(what, monkeypatch)

    def choice(device: str) -> dict[str, Any]:
        request = request_for(its, model_kind="torch", device=device)
        with torch.inference_mode():
            return choose(request, lambda _: "", lambda *where: make(its.model, request, *where)).describe()

    described = choice("auto")
    assert (described["device"], described["fallback"]) == ("cpu", f"cuda:0 fails: {SHORTAGES[what][1]}")
    with pytest.raises(EngineError) as refused:
        choice("cuda:0")
    assert str(refused.value) == SHORTAGES[what][1]


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Why each of the cases is refused."""
    return refusals(
        {name: (made(), settings) for name, (made, settings, _) in CASES.items()}, tmp_path_factory.mktemp("cases")
    )


@pytest.mark.parametrize("name", CASES)
def test_a_program_that_is_not_what_its_card_says_is_refused_and_a_fallback_is_named(
    name: str, said: dict[str, str]
) -> None:
    expected = CASES[name][-1]
    assert expected in said[name] if expected else said[name] == ""
    assert "\n" not in said[name]


def test_a_worker_says_why_it_refuses() -> None:
    assert "exported for exactly 1 rows: export it with" in refusal(summing(rows=None, count=1))
