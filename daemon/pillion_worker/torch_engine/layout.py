"""Channels last: images, and the weights of convolutions, as some devices compute faster with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch

_IMAGE_AXES: Final = 4
"""Rows, channels, height and width."""


def channels_last(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of four axes with the second one last in memory; any other as it is. Shapes stay as they are."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == _IMAGE_AXES else tensor


def with_channels_last(call: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, of inputs with channels last."""

    def call_with_channels_last(*inputs: torch.Tensor) -> Any:
        return call(*map(channels_last, inputs))

    return call_with_channels_last
