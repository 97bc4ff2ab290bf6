"""The clients of one contestant: a process each, driven by `bench/peers/driver.py` in the environment they need."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Final, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from pillion_artifacts import Artifact
from pillion_bench.compare.systems import Contestant, peers_python
from pillion_bench.errors import BadOptionError
from pillion_bench.measurements.floor import ANSWER_S_MAX
from pillion_bench.percentiles import Nanoseconds
from pillion_bench.process.placement import CpuSet
from pillion_bench.process.worker import Worker
from pillion_bench.recordings.observations import real_observations
from pillion_bench.roles.load_driver import LoadOrder
from pillion_bench.shipped import peers_folder
from pillion_protocol import Spec, TensorSpec

OBSERVATIONS: Final = 64
"""Different ones, sent in turn."""

ATTEMPT_S_MAX: Final = 20.0
"""How long a client tries to get its first answer; below `ANSWER_S_MAX`, so that it can say why there was none."""

_TOGETHER_S: Final = 0.05
"""From the order to the first counted moment, beside the warm-up: every client has it by then."""


class Task(msgspec.Struct, frozen=True):
    """What everybody is asked, and what is right: real observations, and onnxruntime's own answers to them."""

    policy: str
    version: str
    digest: str
    source: str
    observation: TensorSpec
    action: TensorSpec
    observations: NDArray[Any]
    actions: NDArray[Any]
    absolute: float
    relative: float

    @classmethod
    def of(cls, artifact: Artifact) -> Task:
        """The task of a policy; raises `BadOptionError` where it takes more than one tensor."""
        spec = artifact.card.spec()
        observation, action = _tensors(artifact.policy, spec)
        drawn = real_observations(artifact.policy, spec)
        (observations,) = drawn.arrays(0, OBSERVATIONS)
        actions = _right_actions(artifact.model, observation, action, observations)
        tolerance = artifact.card.tolerance
        return cls(
            artifact.policy, artifact.version, artifact.digest, drawn.source,
            observation, action, observations, actions, tolerance.absolute, tolerance.relative,
        )  # fmt: skip

    @property
    def kind(self) -> str:
        """`image` for pixels, else `vector`."""
        is_image = self.observation.dtype == "uint8" and len(self.observation.shape) >= 2
        return "image" if is_image else "vector"


class CrowdPlan(msgspec.Struct, frozen=True):
    """The `Plan` of `bench/peers/driver.py`, which says what each field is."""

    address: str
    clients: int
    observation_dtype: str
    observation_shape: list[int]
    observations: bytes
    action_dtype: str
    action_shape: list[int]
    actions: bytes
    absolute: float
    relative: float
    attempt_s_max: float
    busy_poll_us: int


class CrowdResult(msgspec.Struct, frozen=True):
    """The `Result` of `bench/peers/driver.py`."""

    latency_ns: bytes
    engine_ns: bytes
    mismatches: int


class Counted(msgspec.Struct, frozen=True):
    """What all clients together counted in `seconds`: round trips and engine, act by act, in ns; and wrong answers."""

    latency_ns: Nanoseconds
    engine_ns: Nanoseconds
    mismatches: int
    seconds: float


class Crowd:
    """Owns the processes of `clients` clients, which are connected and wait for the word; a context manager."""

    def __init__(
        self,
        contestant: Contestant,
        address: str,
        clients: int,
        task: Task,
        cpus: CpuSet | None,
        attempt_s_max: float = ATTEMPT_S_MAX,
    ) -> None:
        python = peers_python() if contestant.is_peer else sys.executable
        command = [str(python), str(peers_folder() / "driver.py"), contestant.client]
        self._worker = Worker(contestant.name, _plan(contestant, address, clients, task, attempt_s_max), cpus, command)

    @property
    def pid(self) -> int:
        """The process that forks the clients."""
        return self._worker.pid

    def drive(self, seconds: float, warmup_s: float) -> Counted:
        """Every client acts as soon as it is answered; the first `warmup_s` do not count."""
        self._worker.hear(str, ANSWER_S_MAX)
        from_ns = time.monotonic_ns() + int((warmup_s + _TOGETHER_S) * 1e9)
        order = LoadOrder(from_ns, from_ns + int(seconds * 1e9))
        result = self._worker.ask(order, CrowdResult, warmup_s + seconds + ANSWER_S_MAX)
        latency_ns, engine_ns = (np.frombuffer(part, np.int64) for part in (result.latency_ns, result.engine_ns))
        return Counted(latency_ns, engine_ns, result.mismatches, seconds)

    def __enter__(self) -> Self:
        self._worker.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._worker.__exit__(kind, error, traceback)


def _plan(contestant: Contestant, address: str, clients: int, task: Task, attempt_s_max: float) -> CrowdPlan:
    return CrowdPlan(
        address,
        clients,
        task.observation.dtype,
        list(task.observations.shape),
        task.observations.tobytes(),
        task.action.dtype,
        list(task.action.shape),
        task.actions.tobytes(),
        task.absolute,
        task.relative,
        attempt_s_max,
        contestant.busy_poll_us,
    )


def _tensors(policy: str, spec: Spec) -> tuple[TensorSpec, TensorSpec]:
    if len(spec.observation) != 1:
        raise BadOptionError(f"--policies: expected policies of one observation, {policy} has {len(spec.observation)}")
    return spec.observation[0], spec.outputs[0]


def _right_actions(
    model: bytes, observation: TensorSpec, action: TensorSpec, observations: NDArray[Any]
) -> NDArray[Any]:
    """onnxruntime's answer to each observation by itself."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    answers = [session.run([action.name], {observation.name: row[np.newaxis]})[0] for row in observations]
    return np.concatenate(answers).astype(action.dtype)
