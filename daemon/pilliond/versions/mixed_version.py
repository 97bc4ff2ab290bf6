"""Mixed versions: the rows of one episode group lease different versions, and each version runs its own rows.

A `MixedVersion` stands in for a `Version` while a switch moves the rows one by one, so the path of a step does not know
the difference. Such a group is always a batch of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pillion_artifacts.card.model_card import Distribution
from pillion_protocol import Fallback, Lease, RemoteProtocolError
from pillion_protocol.lane import Frame
from pilliond.engine.batch_memory import BatchMemory
from pilliond.engine.interface import Array, Engine, Replica
from pilliond.engine.service_time import ServiceTimes
from pilliond.versions.loaded_version import Version

MIXED_METRICS_INDEX: Final = 0
"""The metrics index of acts that more than one version ran."""


class VersionPartition:
    """A version, and the rows of an episode group that lease it."""

    __slots__ = ("memory", "rows", "states", "version")

    def __init__(self, version: Version, row_versions: list[Version]) -> None:
        self.version = version
        self.rows: NDArray[np.intp] = np.array(
            [row for row, leased in enumerate(row_versions) if leased is version], np.intp
        )
        self.states = list(
            zip(version.first_states(len(row_versions)), version.first_states(len(row_versions)), strict=True)
        )
        """As `Engine.states`, for all rows of the group; only the rows that lease the version are used."""
        self.memory: BatchMemory
        """The memory of the version's engine that its rows run in, or ran in. A worker's is known once it has a batch."""
        if version.engine.is_inline:
            self.memory = version.engine.memories[0]

    def put(self, whole: BatchMemory) -> None:
        """Copies its rows of the group's batch into `memory`."""
        count = len(self.rows)
        for mine, theirs in zip(whole.inputs, self.memory.inputs, strict=True):
            theirs[:count] = mine[self.rows]
        for (before, _), (mine, _) in zip(self.memory.states, self.states, strict=True):
            before[:count] = mine[self.rows]

    def take_states(self) -> None:
        """Copies the states of its rows out of `memory`."""
        count = len(self.rows)
        for (_, after), (_, mine) in zip(self.memory.states, self.states, strict=True):
            kept = mine[self.rows]
            self.version.keep_states(kept, after[:count])
            mine[self.rows] = kept

    def drop_states(self) -> None:
        """Drops those that no group took over."""
        for _, mine in self.states:
            self.version.drop_states(mine)


class MixedEngine:
    """Runs every version on its own rows of one memory, always all `rows` rows."""

    kind = "mixed"
    strict_rows = 0
    state_rows = None
    replicas: Sequence[Replica] = ()

    def __init__(self, parts: list[VersionPartition], rows: int) -> None:
        first = parts[0].version
        self._parts = parts
        self.parts: tuple[Engine, ...] = tuple(part.version.engine for part in parts)
        self.is_inline = all(engine.is_inline for engine in self.parts)
        self.inputs: list[Array] = [
            np.zeros((rows, *tensor.shape), dtype=tensor.dtype) for tensor in first.spec.observation
        ]
        self.outputs: dict[str, Array] = {
            tensor.name: np.zeros((rows, *tensor.shape), tensor.dtype) for tensor in first.spec.outputs
        }
        self.states: list[tuple[Array, Array]] = [pair for part in parts for pair in part.states]
        self.state_row_bytes = sum(part.version.state_row_bytes for part in parts)
        self.runs: list[Callable[[], None]] = [self._run] * (rows + 1)
        self.memories = [BatchMemory(first.spec, self.inputs, self.outputs, self.states)]
        self.service = ServiceTimes([rows])

    @property
    def is_ready(self) -> bool:
        """Whether every engine that it needs is ready."""
        return all(engine.is_ready for engine in self.parts)

    @property
    def free(self) -> list[BatchMemory]:
        """Its memory, if every engine that it needs is free."""
        is_free = self.memories[0].user is None and all(engine.free for engine in self.parts)
        return self.memories if is_free else []

    def choose(self, rows: int) -> BatchMemory:
        """Returns its only memory."""
        return self.memories[0]

    def submit(self, memory: BatchMemory, rows: int) -> None:
        """Starts the engines outside the loop. The others run in `collect`: their memory must not wait for these."""
        outside = [part for part in self._parts if not part.version.engine.is_inline]
        memory.user.runs_left = len(outside)
        for part in outside:
            engine = part.version.engine
            part.memory = engine.choose(len(part.rows))
            part.memory.user = memory.user
            part.put(memory)
        for part in outside:
            part.version.engine.submit(part.memory, len(part.rows))

    def collect(self, memory: BatchMemory) -> None:
        """Runs the inline engines, and copies the results of all."""
        for part in self._parts:
            if part.version.engine.is_inline:
                self._run_inline(part, memory)
            self._take(part)

    def release(self, memory: BatchMemory) -> None:
        """Releases the memories of the engines outside the loop."""
        for part in self._parts:
            if not part.version.engine.is_inline:
                part.drop_states()
                part.memory.user = None
                part.version.engine.release(part.memory)

    def describe(self) -> dict[str, Any]:
        return {"kind": self.kind}

    def take(self, part: VersionPartition, row_indices: NDArray[np.intp]) -> None:
        """Copies the outputs of a part's engine, for these of its rows."""
        for name, output in self.outputs.items():
            output[part.rows[row_indices]] = part.memory.outputs[name][row_indices]

    def _run(self) -> None:
        for part in self._parts:
            self._run_inline(part, self.memories[0])
            self._take(part)

    def _run_inline(self, part: VersionPartition, memory: BatchMemory) -> None:
        part.put(memory)
        part.version.engine.runs[len(part.rows)]()

    def _take(self, part: VersionPartition) -> None:
        part.take_states()
        self.take(part, np.arange(len(part.rows)))


class MixedVersion(Version):
    """The versions that the rows of one episode group lease; all have the same spec."""

    def __init__(self, row_versions: list[Version]) -> None:
        self._rows = len(row_versions)
        distinct = list(dict.fromkeys(row_versions))
        self.parts = [VersionPartition(version, row_versions) for version in distinct]
        engine = MixedEngine(self.parts, len(row_versions))
        self._mixed_engine = engine
        first = distinct[0]
        super().__init__(first.identity, first.spec, Distribution(), engine, metrics_index=MIXED_METRICS_INDEX)
        self.samplable = all(version.samplable for version in distinct)
        self.watched = any(version.watched for version in distinct)
        self.row_leases = [distinct.index(version) for version in row_versions]

    def __str__(self) -> str:
        return ", ".join(str(part.version) for part in self.parts)

    @property
    def out(self) -> RemoteProtocolError | None:
        """Why one of its versions is out; None while all serve."""
        return next((part.version.out for part in self.parts if part.version.out is not None), None)

    @out.setter
    def out(self, error: RemoteProtocolError | None) -> None:
        """The versions of its parts have their own."""

    def owners_of(self, rows: NDArray[np.bool_]) -> list[Version]:
        """As `Version.owners_of`."""
        return [part.version for part in self.parts if rows[part.rows].any()]

    @property
    def state_owners(self) -> list[Version]:
        """As `Version.state_owners`: the version of a part owns each of its states."""
        return [part.version for part in self.parts for _ in part.version.states]

    @property
    def has_lost_states(self) -> bool:
        """As `Version.has_lost_states`, of any part."""
        return any(part.version.has_lost_states for part in self.parts)

    def has_room_for_states(self, rows: int) -> bool:
        """As `Version.has_room_for_states`, of every part."""
        return all(part.version.has_room_for_states(len(part.rows)) for part in self.parts)

    @property
    def named(self) -> list[Lease]:
        """The lease of each part; `row_leases` indexes this list."""
        return [part.version.lease for part in self.parts]

    def resample(
        self, memory: BatchMemory, chosen: NDArray[np.intp], seeds: NDArray[np.uint64], steps: NDArray[np.uint64]
    ) -> None:
        """As `Version.resample`: each version samples for its own rows, which its buffers still hold."""
        for part in self.parts:
            is_of_part = np.zeros(self._rows, bool)
            is_of_part[part.rows] = True
            mine = is_of_part[chosen]
            row_indices = np.searchsorted(part.rows, chosen[mine])
            part.version.resample(part.memory, row_indices, seeds[mine], steps[mine])
            self._mixed_engine.take(part, row_indices)

    def fallback_tensors(self, fallback: Fallback, rows: int, last: Sequence[Frame]) -> Sequence[Frame] | None:
        """As `Version.fallback_tensors`, each row from its own version's card."""
        if fallback is not Fallback.SAFE:
            return super().fallback_tensors(fallback, rows, last)
        safe = [self.parts[part].version.safe_outputs for part in self.row_leases]
        rows_of_outputs = [outputs for outputs in safe if outputs is not None]
        if len(rows_of_outputs) < rows:
            return None
        return [b"".join(row[index] for row in rows_of_outputs) for index in range(len(self.output_bytes))]
