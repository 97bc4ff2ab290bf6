"""Checks the code of a TorchScript before torch reads it: reading it already runs the `__setstate__` of its classes.

Only the standard library is used here. The graph that torch makes of `forward` does not show these methods, nor those that
are called through an interface, so every word of the code counts, wherever it stands.
"""

from __future__ import annotations

import re
import zipfile
from typing import Final

from pillion_worker.errors import EngineError
from pillion_worker.limits import PT2_MEMBERS_MAX
from pillion_worker.model_source import Model, open_model

_REFUSED: Final = re.compile(
    r"\b(?:from_file|save|fork|rpc_async|rpc_sync|rpc_remote)\b"  # read or write files, or compute elsewhere
    r"|\bops\b(?!\.(?:aten|prims?)\.)(?:\.\w+)*|\btorch\.classes\b"  # are not torch's own
)
_GETATTR: Final = re.compile(r'\bgetattr\([\w.]+, "\w+"\)')
"""As torch writes it, for submodules with names such as `0`. A text that is put together could name anything."""
_CLASSES: Final = b"torch.classes"


def check_code(model: Model) -> None:
    """Raises `EngineError` if the code of a TorchScript names an operator that does more than compute."""
    try:
        with open_model(model) as file, zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if len({member.filename for member in members}) != len(members) or len(members) > PT2_MEMBERS_MAX:
                raise EngineError("the TorchScript: expected an archive of torch.jit.save, got other members")
            for member in members:
                name = member.filename.lower()
                if name.endswith(".py"):
                    _check_text(archive.read(member).decode())
                elif name.endswith(".pkl") and _CLASSES in archive.read(member):
                    raise _refused("torch.classes")
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise EngineError(f"the TorchScript is not a readable archive: {error}") from None


def _check_text(text: str) -> None:
    if found := _REFUSED.search(text):
        raise _refused(found.group())
    plain = 1
    while plain:
        text, plain = _GETATTR.subn("x", text)
    if re.search(r"\bgetattr\b", text):
        raise _refused("getattr")


def _refused(what: str) -> EngineError:
    return EngineError(f"the TorchScript: its code names {what!r}: expected torch's own operators that only compute")
