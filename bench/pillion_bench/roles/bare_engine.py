"""The role that runs an engine without a daemon: ONNX with the daemon's own class and binding, else a torch call. Hot path."""

from __future__ import annotations

import gc
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from pillion_artifacts import Store
from pillion_bench.errors import BenchError
from pillion_bench.process.worker import Pipe
from pillion_bench.recordings.observations import real_observations
from pillion_bench.roles.echo import PingRequest, PingResult
from pilliond.engine.interface import EngineError

_WARM_UP_CALLS: Final = 3


class EnginePlan(msgspec.Struct, frozen=True):
    """The store, the policy (`NAME@VERSION`), the rows of a call, and the engine."""

    store: str
    reference: str
    rows: int
    engine: str = "onnx"


def run(pipe: Pipe) -> None:
    """Loads the policy, fills the input with observations, and times calls on each request."""
    plan = pipe.receive_plan(EnginePlan)
    # The owner of the call's memory must live as long as the call.
    call, _owner = _onnx_call(plan) if plan.engine == "onnx" else _torch_call(plan)
    pipe.send("ready")
    while (request := pipe.receive(PingRequest)) is not None:
        pipe.send(PingResult(_time_calls(call, request.seconds)))


def _onnx_call(plan: EnginePlan) -> tuple[Callable[[], object], object]:
    from pilliond.engine.onnx import OnnxEngine
    from pilliond.limits import ServingLimits

    artifact = Store(Path(plan.store)).load(plan.reference)
    distribution = artifact.card.distribution
    parameters = [name for name in (distribution.logits, distribution.log_std) if name]
    rows_max = max(plan.rows, ServingLimits().rows_max)
    try:
        engine = OnnxEngine(artifact.model, artifact.card.spec(), parameters, rows_max, states=artifact.card.state)
        engine.warm_up()
    except EngineError as error:
        raise BenchError(f"{plan.reference}: {error}") from None
    observations = real_observations(artifact.policy, artifact.card.spec())
    view = engine.memories[0].views.make(0, plan.rows)
    for tensor, frame in zip(view.inputs, observations.frames(0, plan.rows), strict=True):
        tensor[:] = frame
    return engine.runs[plan.rows], engine


def _torch_call(plan: EnginePlan) -> tuple[Callable[[], object], object]:
    """Returns a call of the image policy, on one thread as a worker's: what somebody would write without Pillion."""
    import torch

    from pillion_bench.torch_policies import shipped_image

    torch.set_num_threads(1)
    module = shipped_image()
    card = Store(Path(plan.store)).load(plan.reference).card
    (rows,) = real_observations(card.name, card.spec()).arrays(0, plan.rows)
    observation = torch.from_numpy(rows)

    def call() -> object:
        with torch.inference_mode():
            return module(observation)

    for _ in range(_WARM_UP_CALLS):
        call()
    return call, module


def _time_calls(call: Callable[[], object], seconds: float) -> bytes:
    clock = time.monotonic_ns
    taken = array("q")
    gc.disable()
    end_ns = clock() + int(seconds * 1e9)
    while (started_ns := clock()) < end_ns:
        call()
        taken.append(clock() - started_ns)
    gc.enable()
    return taken.tobytes()
