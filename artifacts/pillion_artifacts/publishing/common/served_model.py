"""Runs a model on the engine that will serve it: ONNX Runtime, or an engine of the worker."""

from __future__ import annotations

import contextlib
import gc
import itertools
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

import numpy as np

from pillion_artifacts.card.golden_pairs import Arrays
from pillion_artifacts.card.model_card import ModelCard
from pillion_artifacts.errors import InvalidSourceError
from pillion_artifacts.limits import PARITY_BATCH_ROWS
from pillion_artifacts.publishing.common.onnx_model import OnnxModel

if TYPE_CHECKING:
    from pillion_worker.tensors import LoadRequest, TensorMemory

_WORKER_ENGINES: Final = {"torch": "torch", "torchscript": "torch", "python": "python"}
"""The worker's engine for each kind of a card's engine."""

Result = TypeVar("Result")


class ServedModel(Protocol):
    """A model on its engine."""

    def run(self, inputs: Arrays) -> Arrays:
        """Returns all outputs by name. Raises `InvalidSourceError` if the model cannot run on these inputs."""

    def close(self) -> None:
        """Frees the model."""


def open_model(data: bytes, card: ModelCard, allowed_code: list[str]) -> ServedModel:
    """Loads a model on the engine of its card, on the CPU. Raises `InvalidSourceError` if the engine refuses it.

    The caller closes it. A Python policy runs here, in this process, if its package is among `allowed_code`.
    """
    if card.engine.kind == "onnx":
        return OnnxModel(data)
    return WorkerModel(data, card, allowed_code)


class WorkerModel:
    """A model on one of the worker's engines, in a thread of its own: what an engine sets for its thread ends there.

    The first row runs alone and the others in batches, since a policy must answer both alike.
    """

    def __init__(self, data: bytes, card: ModelCard, allowed_code: list[str]) -> None:
        self._thread = ThreadPoolExecutor(1, "engine")
        request = _request(card, allowed_code)
        self._states = request.states
        self._inputs = [tensor.name for tensor in request.observation]
        try:
            with _same_torch_threads():
                self._memory, self._runs = self._on_engine(lambda: _load(data, request))
        except BaseException:
            self.close()
            raise

    def run(self, inputs: Arrays) -> Arrays:
        """As `ServedModel.run`."""
        rows = len(inputs[self._inputs[0]])
        bounds = [0, *range(1, rows, PARITY_BATCH_ROWS), rows]
        parts = [self._batch(inputs, first, last) for first, last in itertools.pairwise(bounds)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def close(self) -> None:
        """Frees the model, and ends the thread."""
        self._runs = []
        self._thread.shutdown()
        # a torch program refers to itself
        gc.collect()

    def _batch(self, inputs: Arrays, first: int, last: int) -> Arrays:
        memory, rows = self._memory, last - first
        given = dict(zip(self._inputs, memory.inputs, strict=True))
        given |= {state.name: before for state, (before, _) in zip(self._states, memory.states, strict=True)}
        for name, array in given.items():
            array[:rows] = inputs[name][first:last]
        self._on_engine(self._runs[rows])
        made = dict(memory.outputs)
        made |= {state.output: after for state, (_, after) in zip(self._states, memory.states, strict=True)}
        return {name: array[:rows].copy() for name, array in made.items()}

    def _on_engine(self, call: Callable[[], Result]) -> Result:
        from pillion_worker.errors import EngineError

        try:
            # what a package prints is not part of the command's output
            with contextlib.redirect_stdout(sys.stderr):
                return self._thread.submit(call).result()
        except EngineError as error:
            raise InvalidSourceError(f"the engine that will serve it: {error}") from None


@contextlib.contextmanager
def _same_torch_threads() -> Iterator[None]:
    """Keeps the publisher's number of torch threads, which an engine sets for its process."""
    torch: Any = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch is not None else 0
    try:
        yield
    finally:
        if threads:
            torch.set_num_threads(threads)


def _load(data: bytes, request: LoadRequest) -> tuple[TensorMemory, list[Callable[[], None]]]:
    from pillion_worker.engines.interface import load_engine
    from pillion_worker.memory import private_memory

    engine = load_engine(data, request)
    memory = private_memory(request, engine.outputs)
    return memory, engine.bind(memory)


def _request(card: ModelCard, allowed_code: list[str]) -> LoadRequest:
    from pillion_worker.tensors import LoadRequest, State, Tensor

    engine = card.engine
    outputs = {tensor.name for tensor in card.outputs}
    code: dict[str, Any] = {}
    if engine.kind == "python":
        code = {
            "entry_point": engine.entry_point,
            "distribution": engine.distribution,
            "requires": engine.requires,
            "arguments": engine.arguments,
            "allowed": allowed_code,
        }
    return LoadRequest(
        engine=_WORKER_ENGINES[engine.kind],
        observation=[Tensor(tensor.name, tensor.dtype, list(tensor.shape)) for tensor in card.observation],
        outputs=[Tensor(tensor.name, tensor.dtype, list(tensor.shape)) for tensor in card.outputs],
        parameters=[name for name in card.distribution.parameters() if name not in outputs],
        states=[State(state.name, state.output, state.dtype, list(state.shape)) for state in card.state],
        rows_max=PARITY_BATCH_ROWS,
        model_kind=engine.kind,
        code=code,
        device="cpu",
    )
