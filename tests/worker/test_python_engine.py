"""A Python policy answers what its package computes, whatever the batch; an answer that is not due is refused."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from pillion_worker.engines.interface import Engine, load_engine
from pillion_worker.errors import EngineError
from pillion_worker.limits import REASON_CHARS_MAX
from pillion_worker.memory import private_memory
from pillion_worker.tensors import LoadRequest, State, Tensor, TensorMemory
from tests.worker.support.installed import EXAMPLE, HOSTILE, code, install, mlp_actions, mlp_weights
from tests.worker.support.packages.pillion_hostile_policies.pillion_hostile_policies import ANSWERS, TRIGGERS

NO_WEIGHTS = save({})
MODULE = "a_policy"
OWN_CHOICE = "auto" if os.path.exists("/dev/nvidiactl") else "cpu"


@pytest.fixture(autouse=True)
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of site-packages on the path, with the packages of the tests, which are imported anew."""
    site = tmp_path / "site-packages"
    for distribution in (EXAMPLE, HOSTILE):
        install(distribution, site)
    monkeypatch.syspath_prepend(site)
    for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "as before")
        monkeypatch.delenv(name)
    yield site
    for name in (EXAMPLE.replace("-", "_"), HOSTILE.replace("-", "_"), MODULE):
        sys.modules.pop(name, None)


def request(*, width: int = 1, outputs: int = 1, rows_max: int = 5, **fields: Any) -> LoadRequest:
    """A request for a policy of the tests' packages; the hostile one unless `code` says another."""
    return LoadRequest(
        "python",
        [Tensor("observation", "float32", [width])],
        [Tensor("action", "float32", [outputs])],
        fields.pop("parameters", []),
        fields.pop("states", []),
        rows_max,
        **{"code": code(HOSTILE, "make"), **fields},
    )


def recorded(site: Path, source: str) -> dict[str, Any]:
    """Installs a module of this source with the example package, and returns the code of its `make`."""
    (site / f"{MODULE}.py").write_text(source)
    (record,) = site.glob("pillion_example_policy-*.dist-info/RECORD")
    record.write_text(f"{record.read_text()}{MODULE}.py,,\n")
    return {**code(EXAMPLE, "make"), "entry_point": f"{MODULE}:make"}


def bound(engine: Engine, to: LoadRequest) -> tuple[TensorMemory, list[Callable[[], None]]]:
    memory = private_memory(to, engine.outputs)
    return memory, engine.bind(memory)


@pytest.mark.parametrize("strict_rows", [0, 1, 4])
def test_every_number_of_rows_is_answered_as_the_package_computes(strict_rows: int) -> None:
    weights = mlp_weights()
    asked = request(width=8, outputs=4, rows_max=9, strict_rows=strict_rows, code=code(EXAMPLE, "mlp"))
    engine = load_engine(save(weights), asked)
    assert engine.outputs == asked.outputs
    memory, runs = bound(engine, asked)
    assert len(runs) == 10
    for rows in range(1, 10):
        memory.inputs[0][:] = drawn = np.random.default_rng(rows).standard_normal(memory.inputs[0].shape, np.float32)
        runs[rows]()
        expected = mlp_actions(weights, drawn[:rows])
        np.testing.assert_allclose(memory.outputs["action"][:rows], expected, rtol=1e-5, atol=1e-6)
        assert memory.inputs[0].tobytes() == drawn.tobytes()


@pytest.mark.parametrize(("strict_rows", "shapes"), [(0, {1, 2, 4, 8, 9}), (4, {4})])
def test_a_policy_is_called_with_the_shapes_that_it_is_warmed_for(
    site: Path, strict_rows: int, shapes: set[int]
) -> None:
    source = """
SHAPES = []
def make(weights):
    def policy(observations):
        SHAPES.append(len(observations["observation"]))
        return {"action": observations["observation"]}
    return policy
"""
    asked = request(rows_max=9, strict_rows=strict_rows, code=recorded(site, source))
    engine = load_engine(NO_WEIGHTS, asked)
    _, runs = bound(engine, asked)
    called = sys.modules[MODULE].SHAPES
    assert set(called) <= shapes
    called.clear()
    for rows in range(10):
        runs[rows]()
    assert set(called) == shapes
    if not strict_rows:
        assert called == [1, 1, 2, 4, 4, 8, 8, 8, 8, 9]
        assert len(set(map(id, runs))) == len(shapes)


def test_strict_rows_are_at_aligned_addresses_and_keep_their_places(site: Path) -> None:
    source = """
def make(weights):
    def policy(observations):
        rows = observations["observation"]
        assert rows.ctypes.data % 64 == 0
        return {"action": 10 * rows}
    return policy
"""
    asked = request(rows_max=10, strict_rows=3, code=recorded(site, source))
    engine = load_engine(NO_WEIGHTS, asked)
    memory, runs = bound(engine, asked)
    assert len(memory.inputs[0]) == 12
    memory.inputs[0][:, 0] = range(12)
    for rows in (10, 4):
        memory.outputs["action"][:] = 0
        runs[rows]()
        assert memory.outputs["action"][:rows, 0].tolist() == [10.0 * number for number in range(rows)]
    assert memory.outputs["action"][6:].any() == np.False_


def test_states_and_parameters_go_in_and_out_by_name(site: Path) -> None:
    source = """
import numpy as np
def make(weights):
    def policy(observations):
        total = observations["total"] + observations["observation"].astype(np.float64)
        observations.clear()
        return {"action": total.astype(np.float32), "log_std": np.repeat(total, 3, axis=1), "next_total": total, "more": 1}
    return policy
"""
    states = [State("total", "next_total", "float64", [1])]
    asked = request(states=states, parameters=["log_std"], code=recorded(site, source))
    engine = load_engine(NO_WEIGHTS, asked)
    assert engine.outputs == [*asked.outputs, Tensor("log_std", "float64", [3])]
    memory, runs = bound(engine, asked)
    (before, after) = memory.states[0]
    memory.inputs[0][:, 0] = range(5)
    before[:] = 100
    runs[2]()
    assert after[:2, 0].tolist() == [100.0, 101.0]
    assert memory.outputs["log_std"][1].tolist() == [101.0] * 3
    assert before.tolist() == [[100.0]] * 5


@pytest.mark.parametrize(
    ("parameter", "why"),
    [
        ("np.zeros((rows, 2), int)", "output 'logits': expected 1 rows of floats, got int64 \\[1, 2\\]"),
        ("np.zeros(2)", "output 'logits': expected 1 rows of floats, got float64 \\[2\\]"),
        ("np.zeros((rows, rows))", "output 'logits': expected float64 \\[2, 1\\], got float64 \\[2, 2\\]"),
    ],
)
def test_a_parameter_has_floats_in_rows_of_one_shape(site: Path, parameter: str, why: str) -> None:
    source = f"""
import numpy as np
def make(weights):
    def policy(observations):
        rows = len(observations["observation"])
        return {{"action": np.zeros((rows, 1), np.float32), "logits": {parameter}}}
    return policy
"""
    with pytest.raises(EngineError, match=why):
        load_engine(NO_WEIGHTS, request(parameters=["logits"], code=recorded(site, source)))


def test_a_library_of_its_own_may_hold_the_outputs(site: Path) -> None:
    source = """
import numpy as np
class Tensor:
    def __init__(self, array):
        self.array = array
    def __array__(self, dtype=None, copy=None):
        return self.array
def make(weights):
    return lambda observations: {"action": Tensor(observations["observation"])}
"""
    asked = request(code=recorded(site, source))
    memory, runs = bound(load_engine(NO_WEIGHTS, asked), asked)
    memory.inputs[0][:] = 7
    runs[5]()
    assert memory.outputs["action"].tolist() == [[7.0]] * 5


WRONG = {
    "wrong_name": "its policy returned no 'action', but actions",
    "wrong_dtype": "output 'action': expected float32 [1, 1], got float64 [1, 1]",
    "wrong_byte_order": "output 'action': expected float32 [1, 1], got >f4 [1, 1]",
    "wrong_shape": "output 'action': expected float32 [1, 1], got float32 [1]",
    "few_rows": "output 'action': expected float32 [2, 1], got float32 [1, 1]",
    "many_rows": "output 'action': expected float32 [1, 1], got float32 [2, 1]",
    "no_dict": "its policy: expected a dict of arrays by name, got tuple",
    "nothing": "its policy: expected a dict of arrays by name, got NoneType",
    "a_list": "output 'action': expected float32 [1, 1], got float64 [1, 1]",
    "ragged": "its policy raised ValueError: ",
    "text": "output 'action': expected float32 [1, 1], got <U4 []",
}


@pytest.mark.parametrize("answer", sorted(set(ANSWERS) - {"nan"}))
def test_an_answer_that_is_not_due_is_refused_when_it_loads_and_fails_its_batch_later(answer: str) -> None:
    with pytest.raises(EngineError) as refused:
        load_engine(NO_WEIGHTS, request(code=code(HOSTILE, "make", always=answer)))
    assert str(refused.value).startswith(WRONG[answer])

    asked = request()
    memory, runs = bound(load_engine(NO_WEIGHTS, asked), asked)
    memory.inputs[0][:] = TRIGGERS[answer]
    memory.outputs["action"][:] = -1
    with pytest.raises(EngineError) as failed:
        runs[3]()
    assert str(failed.value).split(":")[0] == WRONG[answer].split(":")[0]
    assert memory.outputs["action"].tolist() == [[-1.0]] * 5
    memory.inputs[0][:] = 4
    runs[3]()
    assert memory.outputs["action"][:4].tolist() == [[8.0]] * 4


RAISED = {
    "raise": "ValueError: the policy is broken (pillion_hostile_policies.py, line ",
    "raise_much": "ValueError: xxxxx",
    "raise_unreadable": "UnreadableError: (its text cannot be read) (pillion_hostile",
    "raise_half_a_character": "ValueError: half ? a character",
    "exit": "SystemExit: 3 (pillion_hostile",
    "interrupt": "KeyboardInterrupt (pillion_hostile",
    "recurse": "RecursionError: maximum recursion depth exceeded",
}


@pytest.mark.parametrize("fault", RAISED)
def test_whatever_is_raised_is_an_error_of_one_line(fault: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(EngineError) as refused:
        load_engine(NO_WEIGHTS, request(code=code(HOSTILE, "make", at_load=fault)))
    assert str(refused.value).startswith(f"its factory raised {RAISED[fault]}")
    # The whole of it, for whoever wrote the package; within bounds.
    log = capfd.readouterr().err
    assert log
    assert len(log) < 50_000

    asked = request()
    memory, runs = bound(load_engine(NO_WEIGHTS, asked), asked)
    memory.inputs[0][:] = TRIGGERS[fault]
    with pytest.raises(EngineError) as failed:
        runs[1]()
    text = str(failed.value)
    assert text.startswith(f"its policy raised {RAISED[fault]}")
    assert "\n" not in text
    assert len(text) < REASON_CHARS_MAX + 200
    assert not capfd.readouterr().err


def test_a_policy_cannot_write_into_its_inputs() -> None:
    asked = request()
    memory, runs = bound(load_engine(NO_WEIGHTS, asked), asked)
    memory.inputs[0][:] = TRIGGERS["write_into_its_input"]
    with pytest.raises(EngineError, match="its policy raised ValueError: assignment destination is read-only"):
        runs[1]()


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (code(HOSTILE, "no_policy"), "its factory: expected a policy that can be called, got dict"),
        (
            code(HOSTILE, "make", unknown=1),
            "its factory raised TypeError: make\\(\\) got an unexpected keyword argument 'unknown'$",
        ),
        (code(HOSTILE, "NOT_A_FACTORY"), "NOT_A_FACTORY: expected a function, got int"),
        (code(EXAMPLE, "mlp"), "its policy raised IndexError: list index out of range"),
        ({**code(HOSTILE, "make"), "allowed": [EXAMPLE]}, f"its package '{HOSTILE}' is not among trust.code"),
    ],
)
def test_a_factory_that_makes_no_policy_is_refused(asked: dict[str, Any], why: str) -> None:
    with pytest.raises(EngineError, match=why):
        load_engine(NO_WEIGHTS, request(code=asked))


def test_a_module_that_cannot_be_imported_is_refused(site: Path) -> None:
    asked = request(code=recorded(site, "import a_package_that_nobody_has\n"))
    with pytest.raises(
        EngineError, match="its factory raised ModuleNotFoundError: No module named 'a_package_that"
    ) as refused:
        load_engine(NO_WEIGHTS, asked)
    assert str(refused.value).endswith(f"line 1): install it for {sys.executable}")


def test_weights_that_cannot_be_read_are_refused_before_anything_is_imported() -> None:
    with pytest.raises(EngineError, match="weights: "):
        load_engine(b"PK", request())
    assert HOSTILE.replace("-", "_") not in sys.modules


@pytest.mark.parametrize(
    ("device", "shown", "used", "fallback"),
    [("auto", None, OWN_CHOICE, ""), ("cpu", "", "cpu", ""), ("cuda:77", "", "cpu", "there is no cuda:77")],
)
def test_a_policy_sees_the_device_that_was_asked_for(device: str, shown: str | None, used: str, fallback: str) -> None:
    described = load_engine(NO_WEIGHTS, request(device=device)).describe()
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == shown
    assert (described["device"], described.get("fallback", "")) == (used, fallback)


def test_it_says_what_a_python_policy_does_not_get() -> None:
    fallback = load_engine(NO_WEIGHTS, request(precision="float16", device_memory_bytes_max=1)).describe()["fallback"]
    assert "not in float16; nothing bounds the device memory" in fallback


def test_it_describes_what_runs() -> None:
    engine = load_engine(NO_WEIGHTS, request(threads=2, rows_max=3))
    assert engine.describe() == {
        "kind": "python",
        "version": "0.1.0",
        "distribution": HOSTILE,
        "entry_point": "pillion_hostile_policies:make",
        "device": OWN_CHOICE,
        "threads": 2,
        "buckets": [1, 2, 3],
        "strict": False,
    }
    assert os.environ["OMP_NUM_THREADS"] == "2"
