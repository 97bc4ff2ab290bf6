"""A client with the interface of a Stable-Baselines3 policy."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pillion.errors import EpisodeLostError, InvalidObservationError
from pillion.limits import TIMEOUT_S
from pillion.session import EpisodeGroup, connect
from pillion.tensors import TEXT_KINDS, Array

Observations = NDArray[Any] | str | list[str] | dict[str, Any]


class Policy:
    """Has Stable-Baselines3's `predict`, so that its `evaluate_policy` accepts this object unchanged.

    The first call with n rows begins an episode group of n rows; row i has the seed `seed` + i. Without an address it
    connects to this user's daemon, as `connect` does, and raises the same errors. For one thread at a time.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        policy: str = "",
        version: str = "",
        seed: int = 0,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self.session = connect(address, policy=policy, version=version, timeout_s=timeout_s)
        self._seed = seed
        self._groups: dict[int, EpisodeGroup] = {}

    def predict(
        self,
        observation: Observations,
        state: tuple[NDArray[Any], ...] | None = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = False,
    ) -> tuple[Array, tuple[NDArray[Any], ...] | None]:
        """Returns the actions, and `state` unchanged.

        `observation` has the spec's shape, or a leading axis of rows; so have the actions. A text is a `str`, or a list
        of them for several rows. `episode_start` (bool [rows]) marks rows that begin a new episode. The daemon keeps the hidden state of a recurrent policy, and `episode_start`
        resets it. Raises the same errors as `EpisodeGroup.act`. After a restart of the daemon it begins new
        episodes by itself.
        """
        batched, is_single = self._with_row_axis(observation)
        rows = self._rows_of(batched)
        starts = None if episode_start is None else np.broadcast_to(np.asarray(episode_start, dtype=bool), (rows,))
        try:
            actions = self._group(rows).act(batched, episode_start=starts, deterministic=deterministic)
        except EpisodeLostError:
            # predict cannot report a lost episode. A policy without hidden state loses nothing by beginning a new one.
            self._groups.clear()
            actions = self._group(rows).act(batched, deterministic=deterministic)
        return (actions[0] if is_single else actions), state

    def close(self) -> None:
        """Closes the session."""
        self.session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _group(self, rows: int) -> EpisodeGroup:
        group = self._groups.get(rows)
        if group is None:
            group = self.session.begin_many(rows, seeds=[self._seed + row for row in range(rows)])
            self._groups[rows] = group
        return group

    def _rows_of(self, batched: dict[str, Array]) -> int:
        first = self.session.spec.observation[0]
        array = batched.get(first.name)
        if array is None:
            raise InvalidObservationError(f"expected an observation {first.name!r}, got {', '.join(batched) or 'none'}")
        if not array.ndim:
            raise InvalidObservationError(
                f"observation {first.name!r}: expected shape {first.shape}, or a leading axis of rows, got shape []"
            )
        return len(array)

    def _with_row_axis(self, observation: Observations) -> tuple[dict[str, Array], bool]:
        specs = self.session.spec.observation
        if isinstance(observation, Mapping):
            arrays = {name: np.asarray(value) for name, value in observation.items()}
        else:
            arrays = {specs[0].name: np.asarray(observation)}
        first = arrays.get(specs[0].name)
        if first is None or first.ndim != (0 if first.dtype.kind in TEXT_KINDS else len(specs[0].shape)):
            return arrays, False
        return {name: array[None] for name, array in arrays.items()}, True
