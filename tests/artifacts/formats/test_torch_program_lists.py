"""The store and the worker accept the same texts of a program: neither refuses what the other one publishes or runs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillion_artifacts.errors import InvalidArtifactError
from pillion_artifacts.formats import torch_program as store
from pillion_worker.errors import EngineError
from pillion_worker.torch_engine import pt2_archive as worker

TEXTS = {
    "target": [
        "torch.ops.aten.add.Tensor", "torch.ops.aten.__and__.Tensor", "torch.ops.aten.__class__.mro", "torch.ops.prims.iota.default",
        "torch.ops.aten.save.default", "torch.ops.mine.add.default", "torch.ops.higher_order.cond", "torch.ops.higher_order.map",
        "torch.sym_max", "_operator.getitem", "_operator.attrgetter", "math.ceil", "math.__loader__", "torch.load",
    ],
    "as_operator": ["torch.ops.aten.add.Tensor", "torch.hub.load"],
    "expr_str": [
        "Symbol('s0', positive=True)", "Max(1, s0)", "TruncToInt(s0/2)", "ToFloat(s0)*0.5", "1.5*s0", "s0.real", "(s0).real", "s0 .x",
        "1.(2)", "print(s0)", "FloorToInt(1.5*s0)", "CeilToInt(FloatTrueDiv(s0, 2))", "s0; s1", "lambda", "__import__('os')", "ｓ0",
    ],
    "as_string": ["mean", "bi,ij->bj", "/etc/passwd", "a" * 129, ""],
    "class_fqn": ["torch.nn.Linear"],
    "in_spec": [
        '[1, {"type": "builtins.tuple", "context": "null", "children_spec": []}]', '[1, {"type": "os.path", "context": "null"}]',
        '[1, {"type": null, "context": null}]', '[1, {"type": "builtins.dict", "context": "[\\"a\\"]"}]',
        '[1, {"type": "builtins.dict", "context": "{\\"__enum__\\": 1}"}]', "not JSON", "",
        '[1, {"type": "builtins.dict", "context": "[\\"a)\\"]"}]', '[1, {"type": null, "context": null, "more": ")"}]',
    ],
    "name": ["linear_1", "x, z=print()", "a.b", "ｘ", "", "x\n", "0x"],
    "parameter_name": ["net.first layer/a-b.weight", 'a"b', "a\\b", "x\n"],
    "fqn": ["", "net.0", "net(0)"],
    "torch_version": ["2.13.0+cpu", "2; import os"],
    "path_name": ["weight_0", "../weight_0", "weight_0\n"],
    "as_float": ["-Infinity", "NaN", "1; x"],
    "what nobody knows yet": ["anything at all: /etc/passwd"],
}  # fmt: skip


def accepts(check: Callable[[], None]) -> bool:
    try:
        check()
    except (InvalidArtifactError, EngineError):
        return False
    return True


def both(key: str, text: str) -> tuple[bool, bool]:
    program = {"graph": [{key: text}]}
    return accepts(lambda: store.check_texts(program, "it")), accepts(lambda: worker._check(program))


@pytest.mark.parametrize(("key", "text"), [(key, text) for key, texts in TEXTS.items() for text in texts])
def test_both_accept_or_refuse_a_text(key: str, text: str) -> None:
    of_store, of_worker = both(key, text)
    assert of_store == of_worker


def test_the_texts_above_are_not_all_of_one_kind() -> None:
    for key in ("target", "expr_str", "as_string", "in_spec", "name", "parameter_name", "fqn", "path_name", "as_float"):
        assert {both(key, text)[0] for text in TEXTS[key]} == {True, False}


@given(st.text(alphabet="s01.()*+, MaxToFloatu_e'\n\u212a", max_size=24))
def test_both_accept_or_refuse_any_size(text: str) -> None:
    of_store, of_worker = both("expr_str", text)
    assert of_store == of_worker


def test_the_lists_of_words_and_of_files_are_equal() -> None:
    assert store._FUNCTIONS == worker._FUNCTIONS
    assert set(store._ARITHMETIC.split("|")) == worker.OPERATORS
    assert store._FORBIDDEN_OPERATORS == worker._OF_FILES
    assert store._TREES - {None} == worker._TREES
    assert store._SAME_ROWS == worker._SAME_ROWS
    assert (store.MODEL, store.SAMPLE, store.CONFIGS) == (worker._MODEL, worker._SAMPLE, worker._CONFIGS)
    assert (store._NAME, store._PATH, set(store._PATHS), store._TREE) == (
        worker._NAME,
        worker._PATH,
        set(worker._PATHS),
        worker._TREE,
    )
    assert (set(store._PLAIN), store._TENSORS) == (set(worker._PLAIN), worker._TENSORS)
