"""The code of a TorchScript is checked before torch reads it."""

from __future__ import annotations

import io
import zipfile

import pytest

from pillion_worker.errors import EngineError
from pillion_worker.torch_engine.script_code import check_code


def archive(code: str | bytes, name: str = "code/__torch__.py", **members: bytes) -> bytes:
    """An archive as of torch.jit.save, with that code."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        made.writestr(f"policy/{name}", code)
        for other, content in members.items():
            made.writestr(f"policy/{other.replace('__', '.')}", content)
    return file.getvalue()


@pytest.mark.parametrize(
    "code",
    [
        "_0 = torch.sum(x, [1], True)",
        "_0 = ops.prim.NumToTensor(torch.size(x, 0))",
        '_0 = getattr(self.layers, "0")\n_1 = (getattr(getattr(self, "1"), "2")).forward(x, )',
        "offset = self.saved_from_files",
    ],
)
def test_code_that_computes_is_let_through(code: str) -> None:
    check_code(archive(code, data__pkl=b"c__torch__.Policy"))


@pytest.mark.parametrize(
    ("code", "what"),
    [
        ('torch.from_file("/etc/passwd", True, 1)', "from_file"),
        ("t = torch\n_0 = t.save(x, path)", "save"),
        ('getattr(torch, "save")(x, path)', "save"),
        ('getattr(torch, "sa" "ve")(x, path)', "getattr"),
        ('getattr(torch, "\\x73ave")(x, path)', "getattr"),
        ("g = getattr", "getattr"),
        ("_0 = fork(__torch__.f, x)", "fork"),
        ("_0 = ops.inductor.accumulate_grad_(x)", "ops.inductor.accumulate_grad_"),
        ("o = ops", "ops"),
        ("_0 = __torch__.torch.classes.rnn.CellParams", "torch.classes"),
    ],
)
def test_code_that_does_more_is_refused(code: str, what: str) -> None:
    with pytest.raises(EngineError, match=r"^the TorchScript: its code names ") as refused:
        check_code(archive(code))
    assert repr(what) in str(refused.value)


def test_an_object_of_native_code_is_refused() -> None:
    with pytest.raises(EngineError, match=r"names 'torch\.classes'"):
        check_code(archive("", constants__pkl=b"c__torch__.torch.classes.rnn\nCellParams\n"))


@pytest.mark.parametrize("name", ["code/a.PY", "other/a.py"])
def test_no_member_with_code_is_left_out(name: str) -> None:
    with pytest.raises(EngineError, match="names 'save'"):
        check_code(archive("torch.save(x, path)", name))


@pytest.mark.parametrize("model", [b"", b"PK", archive(b"\xff")])
def test_what_is_no_archive_of_code_is_refused_in_one_line(model: bytes) -> None:
    with pytest.raises(EngineError, match=r"^the TorchScript is not a readable archive: [^\n]*$"):
        check_code(model)
