"""ONNX Runtime inside the serving loop: the worker's engine, bound to memory of this process. Hot path."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from pillion_artifacts.card.model_card import StateCard
from pillion_protocol import Spec
from pillion_worker.buckets import WARM_UP_RUNS, buckets_for
from pillion_worker.engines.onnx import OnnxRuntimeEngine
from pillion_worker.memory import private_memory
from pillion_worker.model_source import Model
from pilliond.engine.batch_memory import BatchMemory
from pilliond.engine.interface import InlineEngine
from pilliond.engine.load_request import load_request
from pilliond.engine.service_time import ServiceTimes

_ANYWHERE: Final[Mapping[str, Any]] = {}


class OnnxEngine(InlineEngine):
    """One ONNX policy on the CPU.

    `model` is the verified file. `spec` states its inputs and outputs, `parameters` the further graph
    outputs (logits, log_std) that the distribution reads, `states` its recurrent state. `strict_rows` is as in
    `Engine`; rows that do not fill the shape leave the old contents behind them. `device` are the fields of a
    `LoadRequest` that say where to compute. Raises `EngineError` if the graph disagrees with its card: a model that lies
    about its shapes never serves.
    """

    def __init__(
        self,
        model: Model,
        spec: Spec,
        parameters: list[str],
        rows_max: int,
        threads: int = 1,
        states: Sequence[StateCard] = (),
        strict_rows: int = 0,
        device: Mapping[str, Any] = _ANYWHERE,
    ) -> None:
        request = load_request(
            spec,
            parameters,
            states,
            engine="onnx",
            rows_max=rows_max,
            threads=threads,
            strict_rows=strict_rows,
            **device,
        )
        self._engine = OnnxRuntimeEngine(model, request)
        self.kind = self._engine.kind
        self._device, self._precision = request.device, request.precision
        self.strict_rows = strict_rows
        self.buckets = self._engine.buckets
        tensors = private_memory(request, self._engine.outputs)
        self.inputs, self.outputs, self.states = tensors.inputs, tensors.outputs, tensors.states
        self.runs = self._engine.bind(tensors)
        self.memories = [BatchMemory(spec, self.inputs, self.outputs, self.states)]
        self.free = self.memories
        self.service = ServiceTimes(self.buckets if not strict_rows else buckets_for(rows_max))

    def warm_up(self) -> None:
        """Runs every bucket, so that no request pays for a first run. The last run of each tells how long one takes."""
        for bucket in self.buckets:
            rows = min(bucket, len(self.runs) - 1)
            for _ in range(WARM_UP_RUNS):
                began_ns = time.monotonic_ns()
                self.runs[rows]()
            self.service.learn(rows, *[time.monotonic_ns() - began_ns] * 2)

    def describe(self) -> dict[str, Any]:
        asked = [self._device] if self._device.startswith("cuda") else []
        asked += [self._precision] if self._precision != "float32" else []
        missed = f"{' and '.join(asked)} was asked for: an inline engine computes on the CPU, as its graph says"
        return {**self._engine.describe(), **({"fallback": missed} if asked else {})}
