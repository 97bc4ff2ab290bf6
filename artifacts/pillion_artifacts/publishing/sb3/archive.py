"""Reads a Stable-Baselines3 zip without executing anything in it.

`data` is JSON with pickles in base64, which are read inertly. torch's weights-only loader reads `policy.pth`.
"""

from __future__ import annotations

import base64
import binascii
import io
from typing import Any, Final

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from pillion_artifacts.errors import UNREADABLE, InvalidSourceError, first_line
from pillion_artifacts.limits import PICKLE_BYTES_MAX, ZIP_VERSION_BYTES_MAX
from pillion_artifacts.publishing.common.files import Archive
from pillion_artifacts.publishing.common.inert_pickle import InertObject, read_pickle
from pillion_artifacts.publishing.common.spaces import TensorSpace, read_space

_SERIALIZED: Final = ":serialized:"
_OBSERVATION: Final = "observation"
_SHARED: Final = "mlp_extractor.shared_net."
_POLICY: Final = "mlp_extractor.policy_net."
_NEEDED: Final = ("policy_class", "observation_space", "action_space", "policy_kwargs")
"""The last one has the activation, which the weights do not show."""


class Weights:
    """The parameters of a policy by name. Tracks which ones were taken, because parameters left over were not understood."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self._tensors = tensors
        self._taken: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def take(self, name: str) -> NDArray[np.float32]:
        """Takes the parameter of that name. Raises `InvalidSourceError` if it is missing or not float32."""
        tensor = self._tensors.get(name)
        if tensor is None:
            raise InvalidSourceError(f"policy.pth: there is no {name!r}")
        if tensor.dtype != torch.float32:
            raise InvalidSourceError(f"policy.pth: {name}: expected float32, got {tensor.dtype}")
        self._taken.add(name)
        return tensor.detach().numpy()

    def names(self, prefix: str) -> list[str]:
        """The names that start with `prefix`, in order."""
        return [name for name in self._tensors if name.startswith(prefix)]

    def left(self, prefixes: tuple[str, ...]) -> list[str]:
        """The names that start with one of `prefixes` and were not taken."""
        return [name for name in self._tensors if name.startswith(prefixes) and name not in self._taken]

    def of(self, prefixes: tuple[str, ...]) -> dict[str, torch.Tensor]:
        """The parameters whose names start with one of `prefixes`, as tensors."""
        return {name: tensor for name, tensor in self._tensors.items() if name.startswith(prefixes)}


class Sb3Archive(msgspec.Struct, frozen=True):
    """The contents of a zip."""

    policy_class: str
    """Module and qualified name."""
    observation: dict[str, TensorSpace]
    """Spaces by name. A policy without a dictionary space has one, `observation`."""
    is_dict: bool
    action: TensorSpace
    policy_kwargs: dict[str, Any]
    data: dict[str, Any]
    """The plain fields."""
    weights: Weights
    version: str
    """The version of Stable-Baselines3 that saved the zip."""

    def option(self, name: str, default: Any) -> Any:
        """A keyword argument of the policy, or its default."""
        value = self.policy_kwargs.get(name, default)
        return default if value is None else value


def read_archive(data: bytes, what: str) -> Sb3Archive:
    """Reads the zip `data`. Errors start with `what`. Raises `InvalidSourceError`."""
    archive = Archive(data, what)
    fields = _read_fields(archive)
    for name in _NEEDED:
        if name not in fields:
            raise InvalidSourceError(f"{what}: data: expected {name}, which the library saves, got none")
    policy_class = _unfold(fields, "policy_class", what)
    if not isinstance(policy_class, InertObject) or policy_class.arguments is not None:
        raise InvalidSourceError(f"{what}: policy_class: expected a named class, got {policy_class!r}")
    observation = read_space(_unfold(fields, "observation_space", what), "observation_space")
    action = read_space(_unfold(fields, "action_space", what), "action_space")
    if isinstance(action, dict):
        raise InvalidSourceError(f"{what}: action_space: expected one space, got a Dict")
    kwargs = _unfold(fields, "policy_kwargs", what)
    version = (
        archive.read("_stable_baselines3_version", ZIP_VERSION_BYTES_MAX)
        if "_stable_baselines3_version" in archive.names
        else b""
    )
    return Sb3Archive(
        policy_class=policy_class.name,
        observation=observation if isinstance(observation, dict) else {_OBSERVATION: observation},
        is_dict=isinstance(observation, dict),
        action=action,
        policy_kwargs=kwargs if isinstance(kwargs, dict) else {},
        data={name: value for name, value in fields.items() if not isinstance(value, dict | list)},
        weights=Weights(_unshared(_read_weights(archive.read("policy.pth"), f"{what}: policy.pth"))),
        version=version.decode(errors="replace").strip(),
    )


def _read_fields(archive: Archive) -> dict[str, Any]:
    try:
        return msgspec.json.decode(archive.read("data", PICKLE_BYTES_MAX), type=dict[str, Any])
    except UNREADABLE as error:
        raise InvalidSourceError(f"{archive.what}: data: {error}") from None


def _unfold(fields: dict[str, Any], name: str, what: str) -> Any:
    """A field of the JSON, or the inert objects of the pickle in its place."""
    value = fields.get(name)
    if not isinstance(value, dict) or _SERIALIZED not in value:
        return value
    try:
        data = base64.b64decode(value[_SERIALIZED], validate=False)
    except (binascii.Error, ValueError, TypeError) as error:
        raise InvalidSourceError(f"{what}: data: {name}: {error}") from None
    return read_pickle(data, f"{what}: data: {name}")


def _read_weights(data: bytes, what: str) -> dict[str, torch.Tensor]:
    """Reads the tensors of a weights file. Raises `InvalidSourceError`."""
    if data[:2] == b"PK" and not Archive(data, what).is_stored:
        raise InvalidSourceError(f"{what}: expected tensors that are not compressed")
    try:
        loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - torch raises many types for a file that it cannot read
        raise InvalidSourceError(f"{what}: torch cannot read it as weights: {first_line(error)}") from None
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise InvalidSourceError(f"{what}: expected a dictionary of tensors, got a {type(loaded).__name__}")
    return {str(name): value for name, value in loaded.items()}


def _unshared(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Renames layers to those of Stable-Baselines3 since 1.8, where layers shared by actor and critic come first."""
    shared = {name: tensor for name, tensor in tensors.items() if name.startswith(_SHARED)}
    # a layer and its activation have one number each
    depth = 2 * sum(name.endswith(".weight") for name in shared)
    renamed = {}
    for name, tensor in tensors.items():
        if name.startswith(_POLICY):
            number, _, part = name.removeprefix(_POLICY).partition(".")
            renamed[f"{_POLICY}{int(number) + depth if number.isdigit() else number}.{part}"] = tensor
        elif name.startswith(_SHARED):
            renamed[_POLICY + name.removeprefix(_SHARED)] = tensor
        else:
            renamed[name] = tensor
    return renamed
