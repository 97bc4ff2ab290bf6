"""What a worker's engine needs to know of a policy, in the worker's plain words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pillion_artifacts.card.model_card import StateCard
from pillion_protocol import Spec, TensorSpec
from pillion_worker.tensors import LoadRequest, State, Tensor


def load_request(spec: Spec, parameters: list[str], states: Sequence[StateCard], **settings: Any) -> LoadRequest:
    """Describes a policy. `settings` are the other fields of `LoadRequest`."""
    return LoadRequest(
        observation=_tensors(spec.observation),
        outputs=_tensors(spec.outputs),
        parameters=parameters,
        states=[State(state.name, state.output, state.dtype, list(state.shape)) for state in states],
        **settings,
    )


def _tensors(specs: list[TensorSpec]) -> list[Tensor]:
    return [Tensor(tensor.name, tensor.dtype, list(tensor.shape)) for tensor in specs]
