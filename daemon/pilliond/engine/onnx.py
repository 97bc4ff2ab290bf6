"""ONNX Runtime inside the serving loop: one set of buffers, bound once per bucket of rows. Hot path.

A kernel may round the first and last elements of an array differently from those in between. Then the answer for a row
depends on the number of rows in the run and on their memory address (see `aligned`). With `strict_rows` every run has
that many rows, each at an aligned address.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import onnxruntime

from pillion_artifacts.card.model_card import StateCard
from pillion_protocol import Spec, TensorSpec
from pilliond.engine.aligned import Piece, aligned_zeros
from pilliond.engine.batch_memory import BatchMemory
from pilliond.engine.buckets import buckets_for
from pilliond.engine.interface import Array, EngineError, InlineEngine

WARM_UP_RUNS: Final = 3
"""Runs of each bucket before READY: the first allocates, the second plans memory, the third is like all later ones."""

_ORT_ERROR_ONLY: Final = 3


class OnnxEngine(InlineEngine):
    """One ONNX policy on the CPU.

    `model` holds the verified bytes of the file. `spec` states its inputs and outputs, `parameters` the further graph
    outputs (logits, log_std) that the distribution reads, `states` its recurrent state. `strict_rows` is as in
    `Engine`; rows that do not fill the shape leave the old contents behind them. Raises `EngineError` if the graph
    disagrees with its card: a model that lies about its shapes never serves.
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
        strict_rows: int = 0,
    ) -> None:
        self.threads = threads
        self.strict_rows = strict_rows
        self.buckets = [strict_rows] if strict_rows else buckets_for(rows_max)
        room = _round_up(rows_max, strict_rows or 1)
        self._session = _open_session(model, threads)
        self.inputs: list[Array] = [aligned_zeros((room, *tensor.shape), tensor.dtype) for tensor in spec.observation]
        self._names = [tensor.name for tensor in spec.observation]
        self._states = states
        _check_inputs(self._session, [*self._names, *(state.name for state in states)])
        self.outputs: dict[str, Array] = self._make_outputs(spec, parameters, room)
        self.states: list[tuple[Array, Array]] = [
            (aligned_zeros((room, *state.shape), state.dtype), aligned_zeros((room, *state.shape), state.dtype))
            for state in states
        ]
        read, written = self._tensors(self.inputs)
        self._scratch = {
            name: aligned_zeros((strict_rows, *array.shape[1:]), array.dtype)
            for name, array in (read | written).items()
        }
        runs = self._strict_runs(room) if strict_rows else self._bucket_runs()
        self.runs: list[Callable[[], None]] = runs[: rows_max + 1]
        self.memories = [BatchMemory(spec, self.inputs, self.outputs, self.states)]
        self.free = self.memories

    def _bucket_runs(self) -> list[Callable[[], None]]:
        runs = [self._run_of([self._whole(self.inputs, rows)]) for rows in self.buckets]
        return [runs[self._bucket_index(rows)] for rows in range(self.buckets[-1] + 1)]

    def _strict_runs(self, room: int) -> list[Callable[[], None]]:
        pieces = self._pieces(self.inputs, room)
        runs = [self._run_of(pieces[: number + 1]) for number in range(len(pieces))]
        return [runs[max(0, rows - 1) // self.strict_rows] for rows in range(room + 1)]

    def _whole(self, inputs: list[Array], rows: int) -> Piece:
        return self._piece(inputs, 0, rows, {})

    def _pieces(self, inputs: list[Array], rows: int) -> list[Piece]:
        """The rows in pieces of the strict shape."""
        step = self.strict_rows
        return [self._piece(inputs, first, step, self._scratch) for first in range(0, rows, step)]

    def _piece(self, inputs: list[Array], first: int, rows: int, scratch: Mapping[str, Array]) -> Piece:
        read, written = self._tensors(inputs)
        return Piece(
            self._session,
            {name: array[first : first + rows] for name, array in read.items()},
            {name: array[first : first + rows] for name, array in written.items()},
            scratch,
        )

    def _tensors(self, inputs: list[Array]) -> tuple[dict[str, Array], dict[str, Array]]:
        """The arrays that a run reads, and those that it writes, by name."""
        carried = list(zip(self._states, self.states, strict=True))
        read = dict(zip(self._names, inputs, strict=True)) | {state.name: before for state, (before, _) in carried}
        return read, self.outputs | {state.output: after for state, (_, after) in carried}

    def _run_of(self, pieces: list[Piece]) -> Callable[[], None]:
        run_session = self._session.run_with_iobinding
        steps = [(piece.before, piece.binding, piece.after) for piece in pieces]

        def run() -> None:
            try:
                for before, binding, after in steps:
                    for to, source in before:
                        to[:] = source
                    run_session(binding)
                    for to, source in after:
                        to[:] = source
            except Exception as error:
                raise EngineError(f"onnxruntime: {type(error).__name__}") from error

        return run

    def warm_up(self) -> None:
        """Runs every bucket, so that no request pays for a first run."""
        for rows in self.buckets:
            for _ in range(WARM_UP_RUNS):
                self.runs[min(rows, len(self.runs) - 1)]()

    def describe(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "version": onnxruntime.__version__,
            "provider": self._session.get_providers()[0],
            "threads": self.threads,
            "buckets": self.buckets,
            "strict": bool(self.strict_rows),
        }

    def _bucket_index(self, rows: int) -> int:
        return next(index for index, bucket in enumerate(self.buckets) if bucket >= rows)

    def _make_outputs(self, spec: Spec, parameters: list[str], rows_max: int) -> dict[str, Array]:
        """Makes a buffer per output, with the shape that the graph really returns for a row."""
        made = [tensor.name for tensor in spec.outputs] + parameters
        names = made + [state.output for state in self._states]
        offered = {output.name for output in self._session.get_outputs()}
        missing = [name for name in names if name not in offered]
        if missing:
            raise EngineError(f"the graph has no output {missing[0]!r}, it has {', '.join(sorted(offered))}")
        given: list[TensorSpec | StateCard] = [*spec.observation, *self._states]
        feed = {tensor.name: np.zeros((2, *tensor.shape), tensor.dtype) for tensor in given}
        try:
            actual = dict(zip(names, self._session.run(names, feed), strict=True))
        except Exception as error:  # noqa: BLE001 - as in `run`
            raise EngineError(f"the graph does not run on two rows of its card's shapes: {error}") from None
        for tensor in spec.outputs:
            _check_output(tensor, actual[tensor.name])
        for name in parameters:
            if actual[name].shape[:1] != (2,) or actual[name].dtype.kind != "f":
                raise EngineError(
                    f"output {name!r} of two rows: expected floats, got {actual[name].dtype} {actual[name].shape}"
                )
        for state in self._states:
            _check_output(TensorSpec(state.output, state.dtype, state.shape), actual[state.output])
        return {name: aligned_zeros((rows_max, *actual[name].shape[1:]), actual[name].dtype) for name in made}


def _round_up(rows: int, step: int) -> int:
    return -(-rows // step) * step


def _open_session(model: bytes, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ORT_ERROR_ONLY
    # A spinning pool would take the core from the simulator.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 - as in `run`
        raise EngineError(f"onnxruntime cannot load the model: {error}") from None


def _check_inputs(session: onnxruntime.InferenceSession, names: list[str]) -> None:
    offered = sorted(entry.name for entry in session.get_inputs())
    if sorted(names) != offered:
        raise EngineError(f"the graph's inputs are not the card's: expected {sorted(names)}, got {offered}")


def _check_output(tensor: TensorSpec, actual: Array) -> None:
    expected = (2, *tensor.shape)
    if actual.shape != expected or actual.dtype != np.dtype(tensor.dtype):
        raise EngineError(
            f"output {tensor.name!r} of two rows: expected {tensor.dtype} {list(expected)}, "
            f"got {actual.dtype} {list(actual.shape)}"
        )
