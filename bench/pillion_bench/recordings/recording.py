"""A recorded play: what was observed, what the policy did, when, and by which artifact. One safetensors file each.

`bench/README.md` says what each key holds.
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

Array = NDArray[Any]

FORMAT: Final = "pillion.recording"
FORMAT_VERSION: Final = "1"

_OBSERVATION: Final = "observation."
_ACTION: Final = "action."
_STEP_KEYS: Final = {"reward": "f8", "terminated": "?", "truncated": "?", "episode_start": "?", "step_time_ns": "i8"}
_COMPRESS_ROW_BYTES_MIN: Final = 1_024
_COMPRESSED_BYTES_MAX: Final = 1 << 30
"""What a compressed tensor may come to: a file of a few KB must not fill the memory."""


class Compressed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a tensor was before its bytes (C order) were compressed."""

    codec: str
    dtype: str
    shape: list[Annotated[int, msgspec.Meta(ge=0)]]


class Recording(msgspec.Struct, frozen=True, kw_only=True):
    """Episodes of one policy version, one after the other; every array but `seed` has a row for each step."""

    policy: str
    version: str
    digest: str
    """`sha256:…` of the artifact that acted."""
    environment: Environment
    tolerance: Tolerance
    tools: dict[str, str]
    observation: dict[str, Array]
    """What was sent, by the spec's names: [steps, …]."""
    action: dict[str, Array]
    """Every output that came back, by the spec's names: [steps, …]."""
    reward: NDArray[np.float64]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    episode_start: NDArray[np.bool_]
    step_time_ns: NDArray[np.int64]
    """When each act was due, counted from the first."""
    seed: NDArray[np.int64]
    """One for each episode."""

    @property
    def steps(self) -> int:
        return len(self.step_time_ns)

    @property
    def episodes(self) -> int:
        return len(self.seed)

    @property
    def duration_s(self) -> float:
        """From the first act to the last."""
        return float(self.step_time_ns[-1]) / 1e9 if self.steps else 0.0

    def returns(self) -> list[float]:
        """The sum of rewards of each episode."""
        return [float(part.sum()) for part in np.split(self.reward, np.flatnonzero(self.episode_start)[1:])]

    def save(self, path: Path) -> None:
        """Writes the file, whole or not at all; raises `RecordingError` where it cannot be written."""
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
        """Reads a file; raises `RecordingError` where it holds no recording."""
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
            actual = f"{metadata.get('format', 'nothing')} {metadata.get('format_version', '')}".strip()
            raise ValueError(f"expected {FORMAT} {FORMAT_VERSION}, got {actual}")
        for name, was in msgspec.json.decode(metadata["compressed"], type=dict[str, Compressed]).items():
            tensors[name] = _inflate(name, tensors[name], was)
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
            raise ValueError("expected observation.… and action.… tensors, got none")
        for name, array in {**self.observation, **self.action}.items():
            if array.shape[:1] != (self.steps,):
                raise ValueError(f"{name}: expected {self.steps} steps, got shape {list(array.shape)}")
        if not self.steps or not self.episode_start[0]:
            raise ValueError("expected at least one step, the first of which begins an episode")
        if (np.diff(self.step_time_ns) < 0).any():
            raise ValueError("step_time_ns: expected times that do not go back")

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
            if array.dtype == np.uint8 and array.nbytes >= _COMPRESS_ROW_BYTES_MIN * max(1, len(array)):
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


def _inflate(name: str, data: Array, was: Compressed) -> Array:
    dtype = np.dtype(was.dtype)
    expected = dtype.itemsize * int(np.prod(was.shape, dtype=np.int64))
    if was.codec != "deflate":
        raise ValueError(f"{name}: expected codec deflate, got {was.codec!r}")
    if expected > _COMPRESSED_BYTES_MAX:
        raise ValueError(f"{name}: expected at most {_COMPRESSED_BYTES_MAX} bytes, got {expected}")
    # One byte more than expected shows what is too long; `max_length` 0 would mean no bound.
    raw = zlib.decompressobj().decompress(data.tobytes(), expected + 1)
    if len(raw) != expected:
        raise ValueError(f"{name}: expected {expected} bytes, got {'more' if len(raw) > expected else len(raw)}")
    return np.frombuffer(raw, dtype).reshape(was.shape)
