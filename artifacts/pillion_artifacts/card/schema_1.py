"""Schema 1 of the model card, frozen: published cards of schema 1 stay readable. Do not change this module."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from pillion_protocol.specs import DType, Space


class TensorCard(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    dtype: DType
    shape: list[Annotated[int, msgspec.Meta(ge=1)]] = []
    space: Space = "Box"
    low: list[float] = []
    high: list[float] = []
    finite: bool = True


class Distribution(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    kind: Literal["deterministic", "categorical", "diagonal_gaussian"] = "deterministic"
    logits: str = ""
    log_std: str = ""


class Tolerance(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    absolute: float = 1e-5
    relative: float = 1e-5


class Wrapper(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    kwargs: dict[str, Any] = {}


class Environment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: str
    module: str = ""
    kwargs: dict[str, Any] = {}
    wrappers: list[Wrapper] = []


class Metric(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    value: float
    standard_deviation: float
    episodes: Annotated[int, msgspec.Meta(ge=1)]
    first_seed: int = 0
    deterministic: bool = True


class Lineage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    script: str = ""
    algorithm: str = ""
    timesteps: int = 0
    seed: int = 0
    parent: str = ""
    tool_versions: dict[str, str] = {}


class ModelCard(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    schema: Literal[1]
    name: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=128)]
    version: str
    description: str
    licence: str
    observation: Annotated[list[TensorCard], msgspec.Meta(min_length=1)]
    outputs: Annotated[list[TensorCard], msgspec.Meta(min_length=1)]
    distribution: Distribution = Distribution()
    safe_action: list[float] | None = None
    tolerance: Tolerance = Tolerance()
    environment: Environment | None = None
    metrics: dict[str, Metric] = {}
    lineage: Lineage = Lineage()


def upgrade(card: ModelCard) -> dict[str, Any]:
    """The same card with the fields of the current schema; each later schema only adds optional ones."""
    fields: dict[str, Any] = msgspec.to_builtins(card)
    return {**fields, "schema": 3}
