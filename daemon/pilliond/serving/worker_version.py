"""A version that runs in a worker, or in several: one on each device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from pilliond.core.progress import Progress
from pilliond.engine.replicas import ReplicaEngine
from pilliond.engine.worker import WorkerEngine, WorkerState
from pilliond.ipc.control_channel import VersionRequest
from pilliond.limits import WORKER_HANG_FACTOR
from pilliond.settings.schema import EngineSettings
from pilliond.versions.loaded_version import Version

_NS_PER_MS: Final = 1_000_000
_NS_PER_S: Final = 1_000_000_000


class WorkerReplica:
    """One of the workers of a version, whichever process it is now."""

    def __init__(self, number: int, engine: WorkerEngine, of: WorkerVersion) -> None:
        self.number = number
        """The index of its device in `engine.device`."""
        self.engine = engine
        self.of = of
        self.batches = 0
        """Batches that its worker has completed."""
        self.progress = Progress()

    @property
    def hang_ns(self) -> int:
        """How long its worker may take for what it owes."""
        settings = self.of.settings
        if self.engine.state is WorkerState.LOADING:
            return int(settings.start_s_max * _NS_PER_S)
        slowest_ns = self.engine.service.slow_ns(self.engine.buckets[-1])
        return max(settings.hang_ms_min * _NS_PER_MS, WORKER_HANG_FACTOR * slowest_ns)


class WorkerVersion:
    """One version that runs in workers, from the first request for one until it is unloaded.

    `engines` has the engine of each worker. Rule: the version can be made once each of them is ready or out, and one is
    ready; where `engine.device_required` is set, none may be out. It is out when all are.
    """

    def __init__(
        self,
        request: VersionRequest,
        model_bytes: int,
        settings: EngineSettings,
        engines: Sequence[WorkerEngine],
        clock: Callable[[], int],
    ) -> None:
        self.request = request
        self.model_bytes = model_bytes
        self.settings = settings
        self.replicas = [WorkerReplica(number, engine, self) for number, engine in enumerate(engines)]
        self.several = ReplicaEngine(engines, clock) if len(engines) > 1 else None
        """What makes one engine of several."""
        self.engine: WorkerEngine | ReplicaEngine = self.several or engines[0]
        self.version: Version | None = None
        """The version, once its first workers were ready."""
        self.began_ns = 0
        self.convicted: set[int] = set()
        """The numbers of the sessions whose acts have ended its workers since one completed a batch."""

    @property
    def is_out(self) -> bool:
        """Whether all its workers are out."""
        return all(replica.engine.state is WorkerState.OUT for replica in self.replicas)

    @property
    def is_settled(self) -> bool:
        """Whether the version can be made of the workers that there are."""
        states = {replica.engine.state for replica in self.replicas}
        return WorkerState.READY in states and states <= {WorkerState.READY, WorkerState.OUT}

    @property
    def is_refused(self) -> bool:
        """Whether it cannot be made any more."""
        some_are_out = any(replica.engine.state is WorkerState.OUT for replica in self.replicas)
        return self.is_out or (some_are_out and self.settings.device_required)

    def name_loss(self, replica: WorkerReplica, reason: str) -> str:
        """Returns why a worker was lost, with its device if there are others."""
        return f"{self.settings.devices[replica.number]}: {reason}" if self.several else reason

    def convict(self, replica: WorkerReplica, sessions: list[int]) -> bool:
        """Takes the sessions whose acts ended a worker; returns whether all have done so since a batch was completed."""
        if replica.batches:
            self.convicted.clear()
        is_repeat = bool(sessions) and self.convicted.issuperset(sessions)
        self.convicted.update(sessions)
        return is_repeat
