"""A recording: observations, actions, rewards and times of episodes, and the artifact that acted. One safetensors file.

`bench/README.md` describes every key.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from pillion_artifacts.card.model_card import Environment, Tolerance
from pillion_bench.errors import RecordingError
from pillion_bench.limits import COMPRESS_ROW_BYTES_MIN, DECOMPRESSED_BYTES_MAX

Array = NDArray[Any]

FORMAT: Final = "pillion.recording"
FORMAT_VERSION: Final = "1"

_OBSERVATION: Final = "observation."
_ACTION: Final = "action."
_STEP_KEYS: Final = {"reward": "f8", "terminated": "?", "truncated": "?", "episode_start": "?", "step_time_ns": "i8"}


class Compressed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Codec of a compressed tensor, and its dtype and shape before its bytes (C order) were compressed."""

    codec: str
    dtype: str
    shape: list[Annotated[int, msgspec.Meta(ge=0)]]


class Recording(msgspec.Struct, frozen=True, kw_only=True):
    """Episodes of one policy version, one after the other. Every array except `seed` has a row for each step."""

    policy: str
    version: str
    digest: str
    """`sha256:…` of the artifact that acted."""
    environment: Environment
    tolerance: Tolerance
    tools: dict[str, str]
    observation: dict[str, Array]
    """The observations that were sent, under the spec's names: [steps, …]."""
    action: dict[str, Array]
    """Every output that the daemon returned, under the spec's names: [steps, …]."""
    reward: NDArray[np.float64]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    episode_start: NDArray[np.bool_]
    step_time_ns: NDArray[np.int64]
    """The time of each act, relative to the first."""
    seed: NDArray[np.int64]
    """[episodes]"""

    @property
    def steps(self) -> int:
        """The number of steps of all episodes together."""
        return len(self.step_time_ns)

    @property
    def episodes(self) -> int:
        """The number of episodes."""
        return len(self.seed)

    @property
    def duration_s(self) -> float:
        """Seconds from the first act to the last."""
        return float(self.step_time_ns[-1]) / 1e9 if self.steps else 0.0

    def returns(self) -> list[float]:
        """Returns the sum of rewards of each episode."""
        return [float(part.sum()) for part in np.split(self.reward, np.flatnonzero(self.episode_start)[1:])]

    def save(self, path: Path) -> None:
        """Writes the file atomically; raises `RecordingError` if it cannot be written."""
        from safetensors.numpy import save

        tensors, compressed = self._tensors()
        data = save(tensors, self._metadata(compressed))
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(data)
            temporary.replace(path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise RecordingError(f"{path}: {error.strerror}") from None

    @classmethod
    def load(cls, path: Path) -> Recording:
        """Reads a file; raises `RecordingError` if it is not a recording."""
        metadata, tensors = _read(path)
        try:
            return cls._from_parts(metadata, tensors)
        except KeyError as error:
            raise RecordingError(f"{path}: key {error.args[0]!r} is missing") from None
        except (msgspec.MsgspecError, ValueError, TypeError, zlib.error) as error:
            raise RecordingError(f"{path}: {error}") from None

    @classmethod
    def _from_parts(cls, metadata: dict[str, str], tensors: dict[str, Array]) -> Recording:
        if (metadata.get("format"), metadata.get("format_version")) != (FORMAT, FORMAT_VERSION):
            actual = f"{metadata.get('format', 'no format')} {metadata.get('format_version', '')}".strip()
            raise ValueError(f"expected {FORMAT} {FORMAT_VERSION}, got {actual}")
        for name, original in msgspec.json.decode(metadata["compressed"], type=dict[str, Compressed]).items():
            tensors[name] = _decompress(name, tensors[name], original)
        recording = cls(
            policy=metadata["policy"],
            version=metadata["version"],
            digest=metadata["digest"],
            environment=msgspec.json.decode(metadata["environment"], type=Environment),
            tolerance=msgspec.json.decode(metadata["tolerance"], type=Tolerance),
            tools=msgspec.json.decode(metadata["tools"], type=dict[str, str]),
            observation=_named(tensors, _OBSERVATION),
            action=_named(tensors, _ACTION),
            seed=tensors["seed"],
            **{key: tensors[key] for key in _STEP_KEYS},
        )
        recording._check()
        return recording

    def _check(self) -> None:
        for key, kind in _STEP_KEYS.items():
            _check_vector(key, getattr(self, key), kind, self.steps)
        _check_vector("seed", self.seed, "i8", int(self.episode_start.sum()))
        if not self.observation or not self.action:
            raise ValueError("expected at least one observation.… tensor and one action.… tensor")
        for name, array in {**self.observation, **self.action}.items():
            if array.shape[:1] != (self.steps,):
                raise ValueError(f"{name}: expected {self.steps} steps, got shape {list(array.shape)}")
        if not self.steps or not self.episode_start[0]:
            raise ValueError("expected at least one step, and an episode that begins at the first")
        if (np.diff(self.step_time_ns) < 0).any():
            raise ValueError("step_time_ns: expected times in ascending order")

    def _metadata(self, compressed: dict[str, Compressed]) -> dict[str, str]:
        def text(value: Any) -> str:
            return msgspec.json.encode(value, order="deterministic").decode()

        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "policy": self.policy,
            "version": self.version,
            "digest": self.digest,
            "environment": text(self.environment),
            "tolerance": text(self.tolerance),
            "tools": text(self.tools),
            "compressed": text(compressed),
        }

    def _tensors(self) -> tuple[dict[str, Array], dict[str, Compressed]]:
        tensors: dict[str, Array] = {key: getattr(self, key) for key in (*_STEP_KEYS, "seed")}
        tensors |= {f"{_OBSERVATION}{name}": array for name, array in self.observation.items()}
        tensors |= {f"{_ACTION}{name}": array for name, array in self.action.items()}
        tensors = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
        compressed = {}
        for name, array in tensors.items():
            if array.dtype == np.uint8 and array.nbytes >= COMPRESS_ROW_BYTES_MIN * max(1, len(array)):
                compressed[name] = Compressed("deflate", str(array.dtype), list(array.shape))
                tensors[name] = np.frombuffer(zlib.compress(array.tobytes(), 9), np.uint8)
        return tensors, compressed


def _read(path: Path) -> tuple[dict[str, str], dict[str, Array]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise RecordingError(f"{path}: {error.strerror or error}") from None
    except SafetensorError as error:
        raise RecordingError(f"{path}: not a safetensors file: {error}") from None


def _named(tensors: dict[str, Array], prefix: str) -> dict[str, Array]:
    return {name.removeprefix(prefix): array for name, array in tensors.items() if name.startswith(prefix)}


def _check_vector(key: str, array: Array, kind: str, length: int) -> None:
    if array.dtype != np.dtype(kind) or array.shape != (length,):
        raise ValueError(f"{key}: expected {np.dtype(kind)} [{length}], got {array.dtype} {list(array.shape)}")


def _decompress(name: str, data: Array, original: Compressed) -> Array:
    dtype = np.dtype(original.dtype)
    expected = dtype.itemsize * int(np.prod(original.shape, dtype=np.int64))
    if original.codec != "deflate":
        raise ValueError(f"{name}: expected codec deflate, got {original.codec!r}")
    if expected > DECOMPRESSED_BYTES_MAX:
        raise ValueError(f"{name}: expected at most {DECOMPRESSED_BYTES_MAX} bytes, got {expected}")
    # One byte more than expected reveals data that is too long; `max_length` 0 would mean no bound.
    raw = zlib.decompressobj().decompress(data.tobytes(), expected + 1)
    if len(raw) != expected:
        raise ValueError(f"{name}: expected {expected} bytes, got {'more' if len(raw) > expected else len(raw)}")
    return np.frombuffer(raw, dtype).reshape(original.shape)
