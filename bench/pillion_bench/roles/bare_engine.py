"""The role that runs the engine without a daemon, with the daemon's own class and binding. Hot path."""

from __future__ import annotations

import gc
import time
from array import array
from pathlib import Path

import msgspec

from pillion_artifacts import Store
from pillion_bench.errors import BenchError
from pillion_bench.process.worker import Pipe
from pillion_bench.recordings.observations import real_observations
from pillion_bench.roles.echo import PingRequest, PingResult
from pilliond.engine.interface import Engine, EngineError


class EnginePlan(msgspec.Struct, frozen=True):
    """The store, the policy (`NAME@VERSION`) and the rows of a call."""

    store: str
    reference: str
    rows: int


def run(pipe: Pipe) -> None:
    """Loads the policy, fills the input with observations, and times calls on each request."""
    from pilliond.engine.onnx import OnnxEngine
    from pilliond.limits import ServingLimits

    plan = pipe.receive_plan(EnginePlan)
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
    pipe.send("ready")
    while (request := pipe.receive(PingRequest)) is not None:
        pipe.send(PingResult(_time_calls(engine, plan.rows, request.seconds)))


def _time_calls(engine: Engine, rows: int, seconds: float) -> bytes:
    clock = time.monotonic_ns
    taken = array("q")
    gc.disable()
    end_ns = clock() + int(seconds * 1e9)
    while (started_ns := clock()) < end_ns:
        engine.runs[rows]()
        taken.append(clock() - started_ns)
    gc.enable()
    return taken.tobytes()
