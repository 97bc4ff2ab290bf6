"""A loaded version: a verified artifact and the engine that runs it."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from functools import lru_cache
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from pillion_artifacts.card.model_card import Distribution
from pillion_artifacts.version_range import VersionRange
from pillion_protocol import Fallback, Lease, RemoteProtocolError, Spec, TensorSpec, encode_spec, spec_hash
from pillion_protocol.lane import Frame
from pillion_protocol.slots import SlotLayout
from pillion_worker.runs.state_table import START
from pilliond.engine.batch_memory import BatchMemory
from pilliond.engine.interface import Array, Engine, EngineError
from pilliond.engine.sampling import sample_categorical, sample_diagonal_gaussian, sample_squashed_gaussian
from pilliond.ipc.batch_certificate import Certificate
from pilliond.ipc.placement import Placement
from pilliond.limits import NEVER_NS, SPEC_BYTES_MAX

ACTION: Final = "action"
LOG_PROBABILITY: Final = "log_probability"


class Identity(msgspec.Struct, frozen=True):
    """The names of a policy version."""

    policy: str
    version: str
    digest: bytes
    """The 32 bytes of the artifact digest."""


class Version:
    """One policy version, ready to answer."""

    def __init__(
        self,
        identity: Identity,
        spec: Spec,
        distribution: Distribution,
        engine: Engine,
        safe_action: list[float] | None = None,
        metrics_index: int = 0,
    ) -> None:
        self.metrics_index = metrics_index
        """Its index into `VERSION_CELLS` of the metrics page."""
        self.leases = 0
        """Episode groups that lease it."""
        self.watched = False
        """Whether its outputs are checked for NaN and infinity: it is new."""
        self.held = False
        """Whether it is held for an evaluation, so that nothing unloads it."""
        self.out: RemoteProtocolError | None = None
        """Why its engine keeps failing, for the acts that are refused for it; None while it serves."""
        self.placement: Placement | None = None
        """Where its engine runs, and why."""
        self.model_bytes = 0
        self.certificate: Certificate | None = None
        """How much the rest of a batch changes its answers; None if not measured yet."""
        self.retired_ns = NEVER_NS
        """When it stopped being current; `NEVER_NS` while it is."""
        self.gone = False
        """Whether it was unloaded: then it has a name and a spec, but no engine."""
        self.ended_leases = 0
        """Episode groups whose lease was ended early, so that the version can be unloaded."""
        self.identity = identity
        self.digest = identity.digest
        self.spec = spec
        self.spec_bytes = encode_spec(spec)
        if len(self.spec_bytes) > SPEC_BYTES_MAX:
            raise EngineError(
                f"the card's spec is too large for a welcome: expected at most {SPEC_BYTES_MAX} bytes, "
                f"got {len(self.spec_bytes)}; one bound may stand for every element"
            )
        self.spec_hash = spec_hash(self.spec_bytes)
        self.lease = Lease(identity.version, identity.digest)
        self.engine = engine
        self.service = engine.service
        """How long its batches take."""
        self.samplable = distribution.kind != "deterministic"
        self.observation_bytes = [tensor.row_bytes for tensor in spec.observation]
        self.states = engine.memories[0].states
        self.state_row_bytes = engine.state_row_bytes
        self.output_bytes = [tensor.row_bytes for tensor in spec.outputs]
        self._distribution = distribution
        self._bounds = self._action_bounds()
        self._check_parameters()
        self.safe_outputs = None if safe_action is None else self._safe_outputs(safe_action)

    def __str__(self) -> str:
        return f"{self.identity.policy}@{self.identity.version}"

    @property
    def resident_bytes(self) -> int:
        """An estimate of its memory: the model once, or once for each of its replicas, and its buffers."""
        return self.model_bytes + sum(memory.nbytes for memory in self.engine.memories)

    @property
    def state_owners(self) -> list[Version]:
        """The version that owns each of its states."""
        return [self] * len(self.states)

    def owners_of(self, rows: NDArray[np.bool_]) -> list[Version]:
        """The versions that answer the rows of an act which this mask selects; shape [rows]."""
        return [self] if rows.any() else []

    def without_engine(self) -> Version:
        """A copy for episode groups that outlive it: everything but the engine and its buffers."""
        left = copy(self)
        left.gone = True
        left.held = False
        left.leases = 0
        left.states = []
        del left.engine
        return left

    def suits(self, other: Version, version_range: str, fallback: Fallback) -> bool:
        """Whether a session opened on `other`, with this range and fallback, can move to this version."""
        return (
            self.spec_hash == other.spec_hash
            and self.samplable >= other.samplable
            and (fallback is not Fallback.SAFE or self.safe_outputs is not None)
            and _is_in(version_range, self.identity.version)
        )

    def first_states(self, rows: int) -> list[Array]:
        """What an episode group keeps of `rows` rows at the start of their episodes: zeros, an array per state.

        Where the engine has `state_rows`, they are numbers of these.
        """
        return [np.zeros((rows, *before.shape[1:]), before.dtype) for before, _ in self.states]

    def keep_states(self, kept: Array, made: Array) -> None:
        """Replaces what a group keeps of a state by what its act made ([rows, …] each), and takes that over."""
        if self.engine.state_rows is None:
            kept[:] = made
        else:
            self.engine.state_rows.give(kept)
            kept[:] = made
            made[:] = START

    @property
    def has_lost_states(self) -> bool:
        """Whether episodes that began on it may have lost their states."""
        return self.engine.state_rows is not None and self.engine.state_rows.has_lost

    def has_room_for_states(self, rows: int) -> bool:
        """Whether a run of so many rows finds room for the states that it makes."""
        return self.engine.state_rows is None or self.engine.state_rows.room >= rows

    def are_lost(self, kept: Array) -> NDArray[np.bool_]:
        """Which rows of a state that a group keeps were lost; shape [rows]."""
        rows = self.engine.state_rows
        return np.zeros(len(kept), bool) if rows is None else rows.are_lost(kept)

    def drop_states(self, kept: Array) -> None:
        """Lets rows of a state that a group keeps begin anew."""
        if self.engine.state_rows is not None:
            self.engine.state_rows.give(kept)
        kept[:] = 0

    def slot_layout(self, rows: int) -> SlotLayout:
        """The layout of a slot for `rows` rows."""
        return SlotLayout(self.spec, rows)

    def resample(
        self, memory: BatchMemory, chosen: NDArray[np.intp], seeds: NDArray[np.uint64], steps: NDArray[np.uint64]
    ) -> None:
        """Replaces the deterministic action of the rows `chosen` of a batch by a sampled one."""
        outputs = memory.outputs
        action = outputs[ACTION]
        drawn: NDArray[Any]
        if self._distribution.kind == "categorical":
            drawn, density = sample_categorical(outputs[self._distribution.logits][chosen], seeds, steps)
            drawn += int(self._action_start())
        else:
            mean = outputs[self._distribution.mean or ACTION][chosen]
            log_std = outputs[self._distribution.log_std][chosen]
            low, high = self._bounds
            if self._distribution.kind == "squashed_gaussian":
                drawn, density = sample_squashed_gaussian(mean, log_std, low, high, seeds, steps)
            else:
                drawn, density = sample_diagonal_gaussian(mean, log_std, seeds, steps)
                drawn = np.clip(drawn, low, high)
        action[chosen] = drawn
        if LOG_PROBABILITY in outputs:
            outputs[LOG_PROBABILITY][chosen] = density

    def fallback_tensors(self, fallback: Fallback, rows: int, last: Sequence[Frame]) -> Sequence[Frame] | None:
        """The output tensors that replace `rows` rows that did not run; None if the fallback has none."""
        match fallback:
            case Fallback.ZEROS:
                return [bytes(size * rows) for size in self.output_bytes]
            case Fallback.SAFE if self.safe_outputs is not None:
                return [row * rows for row in self.safe_outputs]
            case Fallback.LAST if last:
                return last
        return None

    def _check_parameters(self) -> None:
        """Raises `EngineError` if the distribution's parameters do not fit the action."""
        outputs = self.engine.outputs
        action = outputs[ACTION]
        logits = self._distribution.logits
        if logits and outputs[logits].ndim != 2:
            raise EngineError(f"output {logits!r}: expected [rows, n], got {list(outputs[logits].shape)}")
        for name in (self._distribution.mean, self._distribution.log_std):
            if name and outputs[name].shape != action.shape:
                raise EngineError(
                    f"output {name!r}: expected the shape of the action, {list(action.shape)}, "
                    f"got {list(outputs[name].shape)}"
                )

    def _safe_outputs(self, safe_action: list[float]) -> list[bytes]:
        """One row of every output: the safe action, and zeros for the others."""
        action = self._action_spec()
        row = np.array(safe_action, dtype=action.dtype).tobytes()
        if len(row) != action.row_bytes:
            raise EngineError(f"safe_action: expected {action.row_bytes // np.dtype(action.dtype).itemsize} elements")
        return [row if tensor.name == ACTION else bytes(tensor.row_bytes) for tensor in self.spec.outputs]

    def _action_spec(self) -> TensorSpec:
        return next(tensor for tensor in self.spec.outputs if tensor.name == ACTION)

    def _action_start(self) -> float:
        low = self._action_spec().low
        return float(low[0]) if low else 0.0

    def _action_bounds(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The bounds of the action, infinite where it has none: the shape of a row, or one number."""
        tensor = self._action_spec()
        low = np.array(tensor.low or [-np.inf]).reshape(tensor.shape if len(tensor.low) > 1 else ())
        high = np.array(tensor.high or [np.inf]).reshape(tensor.shape if len(tensor.high) > 1 else ())
        return low, high


@lru_cache(1_024)
def _is_in(version_range: str, version: str) -> bool:
    return version in VersionRange(version_range)
