"""Recognises TorchScript. It is a program: whoever loads one runs it. Its contents are not checked further."""

from __future__ import annotations

import re
from typing import Final

from pillion_artifacts.errors import InvalidArtifactError
from pillion_artifacts.formats.plain_zip import read_plain_zip
from pillion_artifacts.formats.torch_program import members_of

_NEEDED: Final = ("constants.pkl", "data.pkl", "version")
_MEMBER: Final = re.compile(
    r"constants\.pkl|data\.pkl|version|byteorder|\.data/serialization_id|(data|constants)/\d+|code/[\w./+-]+", re.ASCII
)


def check_torchscript(view: memoryview, what: str) -> None:
    """Raises `InvalidArtifactError` unless the file has the members of TorchScript, and no others."""
    cure = "publish the file itself, with --engine torch and --allow-torchscript"
    members = members_of(read_plain_zip(view, what, cure), what)
    missing = [name for name in _NEEDED if name not in members]
    if missing or not any(name.startswith("code/") for name in members):
        raise InvalidArtifactError(f"{what}: expected TorchScript, got a zip without {[*missing, 'code/'][0]}")
    for name in members:
        if not _MEMBER.fullmatch(name):
            raise InvalidArtifactError(f"{what}: expected the members of TorchScript, got {name!r}")
