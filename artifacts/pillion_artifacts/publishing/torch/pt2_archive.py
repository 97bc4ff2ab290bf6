"""Disarms files of torch: makes new archives of the parts that were checked, so that torch reads these bytes and no others."""

from __future__ import annotations

import io
from typing import BinaryIO, Final

import msgspec
import torch

from pillion_artifacts.errors import InvalidArtifactError, InvalidSourceError
from pillion_artifacts.formats.plain_zip import PlainZip
from pillion_artifacts.formats.torch_program import (
    CONFIGS,
    MODEL,
    SAMPLE,
    check_config,
    check_members,
    check_texts,
    read_program,
    strip,
)
from pillion_artifacts.publishing.common.files import Archive

_ROOT: Final = "model"
_DEBUG: Final = ".debug_pkl"
_TRACED: Final = "traced_inputs"


def disarm(source: bytes | BinaryIO, what: str) -> bytes:
    """Returns the same program in a plain zip, without sample inputs, guards and traces.

    One member of the source is in memory at a time. Raises `InvalidSourceError` if anything in it could run,
    or if it only holds for some numbers of rows.
    """
    archive = Archive(source, what)
    members = _members(archive)
    try:
        check_members(members, what)
        program = read_program(archive.read(members[MODEL]), what)
        strip(program, what)
        check_texts(program, what)
        for name in CONFIGS:
            if name in members:
                check_config(archive.read(members[name]), f"{what}: {name}")
    except InvalidArtifactError as error:
        raise InvalidSourceError(str(error)) from None
    if SAMPLE in members:
        _check_sample(archive.read(members[SAMPLE]), what)
    return _pack(archive, members, {MODEL: msgspec.json.encode(program), SAMPLE: b""})


def repack(source: bytes | BinaryIO, what: str) -> bytes:
    """Returns the same TorchScript in a plain zip, without notes for its debugger and the inputs that it was traced with.

    Raises `InvalidSourceError`.
    """
    archive = Archive(source, what)
    members = {
        name: whole
        for name, whole in _members(archive).items()
        if not name.endswith(_DEBUG) and not name.startswith(_TRACED)
    }
    return _pack(archive, members, {})


def _check_sample(data: bytes, what: str) -> None:
    """Raises `InvalidSourceError` for sample inputs with code: they are left out, but nobody exports such a file."""
    if not data:
        return
    try:
        torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception:  # noqa: BLE001 - torch raises many types for a file that it cannot read
        raise InvalidSourceError(f"{what}: its sample inputs are not plain tensors") from None


def _members(archive: Archive) -> dict[str, str]:
    """The full name of each member, by its name in the folder that all members are in."""
    root = archive.names[0].partition("/")[0] if archive.names else ""
    members = {name.removeprefix(f"{root}/"): name for name in archive.names}
    if len(members) != len(archive.names):
        raise InvalidSourceError(f"{archive.what}: expected members with names that differ, got some twice")
    return members


def _pack(archive: Archive, members: dict[str, str], replaced: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    packed = PlainZip(made)
    try:
        for name, whole in members.items():
            packed.write(f"{_ROOT}/{name}", replaced[name] if name in replaced else archive.read(whole))
    except ValueError as error:
        raise InvalidSourceError(f"{archive.what}: {error}") from None
    packed.finish()
    return made.getvalue()
