"""Reads the observation statistics of Stable-Baselines3's VecNormalize from its pickle, inertly."""

from __future__ import annotations

from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from pillion_artifacts.errors import InvalidSourceError
from pillion_artifacts.oci.manifest import digest_of
from pillion_artifacts.publishing.common.inert_pickle import InertObject, read_pickle
from pillion_artifacts.publishing.common.spaces import TensorSpace

_CLASS: Final = "stable_baselines3.common.vec_env.vec_normalize.VecNormalize"

Statistics = dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]


class Normaliser(msgspec.Struct, frozen=True):
    """The normalisation of observations: minus the mean, divided by the deviation, clipped to ± `clip`."""

    statistics: Statistics
    """Mean and deviation by observation. Observations without an entry are not normalised."""
    clip: float
    digest: str
    """The digest of the pickle."""

    def apply(self, observation: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The observations as the policy saw them in training, as float32."""
        return {name: self._apply_one(name, values) for name, values in observation.items()}

    def _apply_one(self, name: str, values: NDArray[Any]) -> NDArray[Any]:
        if name not in self.statistics:
            return values
        mean, deviation = self.statistics[name]
        scaled: NDArray[Any] = np.clip((values - mean) / deviation, -self.clip, self.clip).astype(np.float32)
        return scaled


def read_normaliser(data: bytes, observation: dict[str, TensorSpace], what: str) -> Normaliser | None:
    """Reads the normaliser of a pickle, None if it does not change observations. Raises `InvalidSourceError`."""
    record = read_pickle(data, what)
    if not isinstance(record, InertObject) or record.name != _CLASS:
        raise InvalidSourceError(f"{what}: expected a VecNormalize, got {record!r}")
    state = record.state
    if not state.get("norm_obs", True):
        return None
    try:
        statistics = _read_statistics(state, list(observation))
        _check_shapes(statistics, observation, what)
        return Normaliser(statistics, float(state["clip_obs"]), digest_of(data))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InvalidSourceError(f"{what}: cannot read the statistics: {error!r}") from None


def _read_statistics(state: dict[str, Any], names: list[str]) -> Statistics:
    kept = state["obs_rms"]
    by_name = kept if isinstance(kept, dict) else {names[0]: kept}
    epsilon = float(state["epsilon"])
    chosen = state.get("norm_obs_keys") or list(by_name)
    return {
        str(name): (
            np.asarray(by_name[name].state["mean"], np.float64),
            np.sqrt(np.asarray(by_name[name].state["var"], np.float64) + epsilon),
        )
        for name in chosen
    }


def _check_shapes(statistics: Statistics, observation: dict[str, TensorSpace], what: str) -> None:
    for name, (mean, deviation) in statistics.items():
        if name not in observation:
            raise InvalidSourceError(f"{what}: statistics of {name!r}, which the policy does not observe")
        shape = tuple(observation[name].shape)
        if mean.shape != shape or deviation.shape != shape:
            raise InvalidSourceError(f"{what}: {name}: expected statistics of shape {shape}, got {mean.shape}")
        if not (np.isfinite(mean).all() and np.isfinite(deviation).all() and (deviation > 0).all()):
            raise InvalidSourceError(f"{what}: {name}: expected finite means and positive deviations")
