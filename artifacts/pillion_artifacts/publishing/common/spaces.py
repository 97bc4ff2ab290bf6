"""Gymnasium's spaces: read from a pickle's inert objects, written to a card, made again for a reference policy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from pillion_artifacts.card.model_card import TensorCard
from pillion_artifacts.errors import InvalidSourceError
from pillion_artifacts.publishing.common.inert_pickle import InertObject
from pillion_protocol.specs import Space

if TYPE_CHECKING:
    import gymnasium

_MODULES: Final = ("gymnasium.spaces.", "gym.spaces.")
_INTEGER: Final = "int64"


class TensorSpace(msgspec.Struct, frozen=True):
    """A space without inner spaces. `low` and `high` have its shape, and are inclusive."""

    kind: Space
    dtype: str
    shape: list[int]
    low: NDArray[Any]
    high: NDArray[Any]

    @property
    def is_image(self) -> bool:
        """Whether Stable-Baselines3 treats it as an image: three axes of bytes from 0 to 255."""
        return (
            self.kind == "Box"
            and len(self.shape) == 3
            and self.dtype == "uint8"
            and not self.low.any()
            and bool((self.high == 255).all())
        )

    @property
    def choices(self) -> list[int]:
        """The number of values of each element of a Discrete or MultiDiscrete space, in C order."""
        return [int(most) + 1 for most in self.high.ravel()]

    def card(self, name: str) -> TensorCard:
        """The card of this space: one bound if all elements share it, none if any element has none."""
        return TensorCard(
            name=name,
            dtype=self.dtype,  # type: ignore[arg-type]  # parse_card refuses what is not a DType
            shape=self.shape,
            space=self.kind,
            low=_bound(self.low),
            high=_bound(self.high),
        )

    def make(self) -> gymnasium.Space[Any]:
        """Makes the Gymnasium space."""
        from gymnasium import spaces

        match self.kind:
            case "Discrete":
                return spaces.Discrete(int(self.high) + 1)
            case "MultiDiscrete":
                return spaces.MultiDiscrete(np.array(self.choices).reshape(self.shape))
            case "MultiBinary":
                return spaces.MultiBinary(self.shape if len(self.shape) > 1 else self.shape[0])
        return spaces.Box(self.low, self.high, tuple(self.shape), np.dtype(self.dtype).type)


def read_space(record: Any, what: str) -> TensorSpace | dict[str, TensorSpace]:
    """Reads a space from an inert object; a Dict becomes a dictionary. Raises `InvalidSourceError`."""
    kind = _kind(record, what)
    if kind != "Dict":
        return _read_tensor_space(record, kind, what)
    inner = record.state.get("spaces")
    if not isinstance(inner, dict) or not inner:
        raise InvalidSourceError(f"{what}: a Dict space without spaces")
    return {
        str(name): _read_tensor_space(part, _kind(part, f"{what}[{name}]"), f"{what}[{name}]")
        for name, part in inner.items()
    }


def _kind(record: Any, what: str) -> str:
    name = record.name if isinstance(record, InertObject) else type(record).__name__
    if not name.startswith(_MODULES):
        raise InvalidSourceError(f"{what}: expected a space of Gymnasium's, got {name}")
    return str(name.rpartition(".")[2])


def _read_tensor_space(record: InertObject, kind: str, what: str) -> TensorSpace:
    readers = {
        "Box": _read_box,
        "Discrete": _read_discrete,
        "MultiDiscrete": _read_multi_discrete,
        "MultiBinary": _read_multi_binary,
    }
    if kind not in readers:
        raise InvalidSourceError(f"{what}: expected one of {', '.join(readers)} or Dict, got {kind}")
    try:
        return readers[kind](record.state)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InvalidSourceError(f"{what}: cannot read this {kind} space: {error!r}") from None


def _read_box(state: dict[str, Any]) -> TensorSpace:
    low, high = state["low"], state["high"]
    if low.shape != high.shape:
        raise ValueError(f"bounds of shape {low.shape} and {high.shape}")
    # older versions of gym do not store the dtype
    dtype = np.dtype(state["dtype"].arguments[0]) if isinstance(state.get("dtype"), InertObject) else low.dtype
    return TensorSpace("Box", str(dtype), list(low.shape), low, high)


def _read_discrete(state: dict[str, Any]) -> TensorSpace:
    if int(state.get("start", 0)) != 0:
        raise ValueError(f"start {int(state['start'])}: Stable-Baselines3 counts from 0")
    return TensorSpace("Discrete", _INTEGER, [], np.array(0), np.array(int(state["n"]) - 1))


def _read_multi_discrete(state: dict[str, Any]) -> TensorSpace:
    sizes = np.asarray(state["nvec"], np.int64)
    if np.asarray(state.get("start", 0)).any():
        raise ValueError("start: Stable-Baselines3 counts from 0")
    return TensorSpace("MultiDiscrete", _INTEGER, list(sizes.shape), np.zeros_like(sizes), sizes - 1)


def _read_multi_binary(state: dict[str, Any]) -> TensorSpace:
    shape = [int(size) for size in np.atleast_1d(np.asarray(state["n"]))]
    return TensorSpace("MultiBinary", "int8", shape, np.zeros(shape, np.int8), np.ones(shape, np.int8))


def _bound(values: NDArray[Any]) -> list[float]:
    if not np.isfinite(values).all():
        return []
    # the shortest decimal reads back as the same float32; + 0.0 turns -0.0 into 0.0
    numbers = [float(str(value + 0)) + 0.0 for value in values.ravel()]
    return numbers[:1] if len(set(numbers)) == 1 else numbers
