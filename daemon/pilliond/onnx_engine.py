"""ONNX Runtime inside the serving loop: one buffer, bound once for each bucket of rows. Hot path."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import onnxruntime

from pillion_artifacts.card import StateCard
from pillion_protocol import Spec, TensorSpec
from pilliond.engine import Array, EngineError

WARM_UP_RUNS: Final = 3
"""Runs of each bucket before READY: the first allocates, the second plans memory, the third is as all others."""

_ORT_ERROR_ONLY: Final = 3


def buckets_for(rows_max: int) -> list[int]:
    """The row counts that are bound and warmed: powers of two, and `rows_max` itself."""
    powers = [1 << exponent for exponent in range(rows_max.bit_length())]
    return sorted({rows for rows in powers if rows < rows_max} | {rows_max})


class OnnxEngine:
    """One ONNX policy on the CPU.

    `model` holds the bytes of the file, which were verified. `spec` says which inputs and outputs it must have,
    `parameters` which further graph outputs (logits, log_std) the distribution reads, `states` what it carries from step
    to step. Raises `EngineError` where
    the graph disagrees: a model that lies about its shapes never serves.
    """

    kind = "onnxruntime"

    def __init__(
        self,
        model: bytes,
        spec: Spec,
        parameters: list[str],
        rows_max: int,
        threads: int = 1,
        states: Sequence[StateCard] = (),
    ) -> None:
        self.threads = threads
        self._session = _open_session(model, threads)
        self.inputs: list[Array] = [
            np.zeros((rows_max, *tensor.shape), dtype=tensor.dtype) for tensor in spec.observation
        ]
        self.input_views = [array.data.cast("B") for array in self.inputs]
        self._names = [tensor.name for tensor in spec.observation]
        self._states = states
        _check_inputs(self._session, [*self._names, *(state.name for state in states)])
        self.outputs: dict[str, Array] = self._make_outputs(spec, parameters, rows_max)
        shapes = [((rows_max, *state.shape), state.dtype) for state in states]
        self.states: list[tuple[Array, Array]] = [
            (np.zeros(shape, dtype), np.zeros(shape, dtype)) for shape, dtype in shapes
        ]
        self.buckets = buckets_for(rows_max)
        runs = [self._run_of(self._bind(self.inputs, rows)) for rows in self.buckets]
        self.runs = [runs[self._bucket_index(rows)] for rows in range(rows_max + 1)]

    def bind(self, inputs: list[Array], rows: int) -> Callable[[], None] | None:
        """As `InlineEngine.bind`; only for rows that are a bucket, since no other shape is warm."""
        return self._run_of(self._bind(inputs, rows)) if rows in self.buckets else None

    def _run_of(self, binding: onnxruntime.IOBinding) -> Callable[[], None]:
        run_session = self._session.run_with_iobinding

        def run() -> None:
            try:
                run_session(binding)
            except Exception as error:
                raise EngineError(f"onnxruntime: {type(error).__name__}") from error

        return run

    def warm_up(self) -> None:
        """Runs every bucket, so that no request pays for the first time."""
        for rows in self.buckets:
            for _ in range(WARM_UP_RUNS):
                self.runs[rows]()

    def describe(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "version": onnxruntime.__version__,
            "provider": self._session.get_providers()[0],
            "threads": self.threads,
            "buckets": self.buckets,
        }

    def _bucket_index(self, rows: int) -> int:
        return next(index for index, bucket in enumerate(self.buckets) if bucket >= rows)

    def _make_outputs(self, spec: Spec, parameters: list[str], rows_max: int) -> dict[str, Array]:
        """One buffer for each output, made to the shapes that the graph really gives for a row."""
        made = [tensor.name for tensor in spec.outputs] + parameters
        names = made + [state.output for state in self._states]
        offered = {output.name for output in self._session.get_outputs()}
        missing = [name for name in names if name not in offered]
        if missing:
            raise EngineError(f"the graph has no output {missing[0]!r}, it has {', '.join(sorted(offered))}")
        given: list[TensorSpec | StateCard] = [*spec.observation, *self._states]
        feed = {tensor.name: np.zeros((2, *tensor.shape), tensor.dtype) for tensor in given}
        try:
            came = dict(zip(names, self._session.run(names, feed), strict=True))
        except Exception as error:  # noqa: BLE001 - as in `run`
            raise EngineError(f"the graph does not run on two rows of its card: {error}") from None
        for tensor in spec.outputs:
            _check_output(tensor, came[tensor.name])
        for name in parameters:
            if came[name].shape[:1] != (2,) or came[name].dtype.kind != "f":
                raise EngineError(
                    f"output {name!r} of two rows: expected floats, came {came[name].dtype} {came[name].shape}"
                )
        for state in self._states:
            _check_output(TensorSpec(state.output, state.dtype, state.shape), came[state.output])
        return {name: np.zeros((rows_max, *came[name].shape[1:]), dtype=came[name].dtype) for name in made}

    def _bind(self, inputs: list[Array], rows: int) -> onnxruntime.IOBinding:
        binding = self._session.io_binding()
        for name, array in zip(self._names, inputs, strict=True):
            binding.bind_input(name, "cpu", 0, array.dtype, [rows, *array.shape[1:]], array.ctypes.data)
        for name, array in self.outputs.items():
            binding.bind_output(name, "cpu", 0, array.dtype, [rows, *array.shape[1:]], array.ctypes.data)
        for state, (before, after) in zip(self._states, self.states, strict=True):
            shape = [rows, *state.shape]
            binding.bind_input(state.name, "cpu", 0, before.dtype, shape, before.ctypes.data)
            binding.bind_output(state.output, "cpu", 0, after.dtype, shape, after.ctypes.data)
        return binding


def _open_session(model: bytes, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ORT_ERROR_ONLY
    # A spinning pool would take the core that the simulator runs on.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 - as in `run`
        raise EngineError(f"onnxruntime cannot load the model: {error}") from None


def _check_inputs(session: onnxruntime.InferenceSession, names: list[str]) -> None:
    offered = sorted(entry.name for entry in session.get_inputs())
    if sorted(names) != offered:
        raise EngineError(f"the graph's inputs are not the card's: expected {sorted(names)}, came {offered}")


def _check_output(tensor: TensorSpec, came: Array) -> None:
    expected = (2, *tensor.shape)
    if came.shape != expected or came.dtype != np.dtype(tensor.dtype):
        raise EngineError(
            f"output {tensor.name!r} of two rows: expected {tensor.dtype} {list(expected)}, "
            f"came {came.dtype} {list(came.shape)}"
        )
