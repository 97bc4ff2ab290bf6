"""A policy of prompts, in numpy."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Weights = dict[str, NDArray[np.float32]]
Prompts = dict[str, NDArray[np.uint8]]


def follow(weights: Weights) -> Callable[[Prompts], Weights]:
    """Makes a policy of prompts: how many characters and words each has, times `scale` [2]."""
    scale = weights["scale"]

    def policy(observations: Prompts) -> Weights:
        texts = [bytes(row).rstrip(b"\0").decode() for row in observations["prompt"]]
        return {"action": np.array([[len(text), len(text.split())] for text in texts], np.float32) * scale}

    return policy
