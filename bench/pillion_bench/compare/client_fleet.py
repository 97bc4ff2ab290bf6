"""The client fleet of one system: a process for each client, driven by `bench/peers/driver.py` in its own environment."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any, Final, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from pillion_artifacts import Artifact
from pillion_bench.compare.systems import System, peers_python
from pillion_bench.errors import BadOptionError
from pillion_bench.limits import ANSWER_S_MAX, FIRST_ANSWER_S_MAX
from pillion_bench.percentiles import Nanoseconds, nanoseconds
from pillion_bench.process.placement import CpuSet
from pillion_bench.process.worker import Worker
from pillion_bench.recordings.observations import real_observations
from pillion_bench.roles.load_driver import LoadRequest
from pillion_bench.shipped import peers_folder
from pillion_protocol import Spec, TensorSpec

OBSERVATIONS: Final = 64
"""Different observations, sent one after the other."""

_DELIVERY_S: Final = 0.05
"""Time for a request to reach every client, added to the warm-up."""


class Workload(msgspec.Struct, frozen=True):
    """The observations that every system gets, and the expected actions: onnxruntime's own answers."""

    policy: str
    version: str
    digest: str
    source: str
    """Where the observations come from."""
    observation: TensorSpec
    action: TensorSpec
    observations: NDArray[Any]
    """[OBSERVATIONS, …]"""
    actions: NDArray[Any]
    """[OBSERVATIONS, …]"""
    absolute: float
    relative: float
    """The tolerance of floating-point actions, from the model card."""

    @classmethod
    def of(cls, artifact: Artifact) -> Workload:
        """Returns the workload of a policy; raises `BadOptionError` if it takes more than one tensor."""
        spec = artifact.card.spec()
        observation, action = _tensors(artifact.policy, spec)
        real = real_observations(artifact.policy, spec)
        (observations,) = real.arrays(0, OBSERVATIONS)
        actions = _expected_actions(artifact.model, observation, action, observations)
        tolerance = artifact.card.tolerance
        return cls(
            artifact.policy, artifact.version, artifact.digest, real.source,
            observation, action, observations, actions, tolerance.absolute, tolerance.relative,
        )  # fmt: skip

    @property
    def kind(self) -> str:
        """`image` for pixels, else `vector`."""
        is_image = self.observation.dtype == "uint8" and len(self.observation.shape) >= 2
        return "image" if is_image else "vector"


class FleetPlan(msgspec.Struct, frozen=True):
    """The `Plan` of `bench/peers/driver.py`, which describes its fields.

    The driver also runs in the peers' environment, which cannot import this package: so both declare the fields.
    """

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


class FleetResult(msgspec.Struct, frozen=True):
    """The `Result` of `bench/peers/driver.py`."""

    latency_ns: bytes
    engine_ns: bytes
    mismatches: int


class FleetFigures(msgspec.Struct, frozen=True):
    """Round trip and engine time of each act of all clients in `seconds`, in ns; and the number of wrong answers."""

    latency_ns: Nanoseconds
    engine_ns: Nanoseconds
    mismatches: int
    seconds: float


class ClientFleet:
    """Owns the processes of `clients` clients, which connect and wait for `drive`; a context manager."""

    def __init__(
        self,
        system: System,
        address: str,
        clients: int,
        workload: Workload,
        cpus: CpuSet | None,
        attempt_s_max: float = FIRST_ANSWER_S_MAX,
    ) -> None:
        python = peers_python() if system.is_peer else sys.executable
        command = [str(python), str(peers_folder() / "driver.py"), system.client]
        self._worker = Worker(system.name, _plan(system, address, clients, workload, attempt_s_max), cpus, command)

    @property
    def pid(self) -> int:
        """The process id of the driver, which forks the clients."""
        return self._worker.pid

    def drive(self, seconds: float, warmup_s: float) -> FleetFigures:
        """Drives every client in a closed loop. Counts for `seconds`, after a warm-up of `warmup_s`."""
        self._worker.receive(str, ANSWER_S_MAX)
        request = LoadRequest.after(warmup_s + _DELIVERY_S, seconds)
        result = self._worker.request(request, FleetResult, warmup_s + seconds + ANSWER_S_MAX)
        return FleetFigures(nanoseconds(result.latency_ns), nanoseconds(result.engine_ns), result.mismatches, seconds)

    def __enter__(self) -> Self:
        self._worker.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._worker.__exit__(kind, error, traceback)


def _plan(system: System, address: str, clients: int, workload: Workload, attempt_s_max: float) -> FleetPlan:
    return FleetPlan(
        address,
        clients,
        workload.observation.dtype,
        list(workload.observations.shape),
        workload.observations.tobytes(),
        workload.action.dtype,
        list(workload.action.shape),
        workload.actions.tobytes(),
        workload.absolute,
        workload.relative,
        attempt_s_max,
        system.busy_poll_us,
    )


def _tensors(policy: str, spec: Spec) -> tuple[TensorSpec, TensorSpec]:
    if len(spec.observation) != 1:
        raise BadOptionError(
            f"--policies: expected policies with one observation tensor, got {policy} with {len(spec.observation)}"
        )
    return spec.observation[0], spec.outputs[0]


def _expected_actions(
    model: bytes, observation: TensorSpec, action: TensorSpec, observations: NDArray[Any]
) -> NDArray[Any]:
    """Returns onnxruntime's action for each observation by itself: [observations, …]."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    answers = [session.run([action.name], {observation.name: row[np.newaxis]})[0] for row in observations]
    return np.concatenate(answers).astype(action.dtype)
