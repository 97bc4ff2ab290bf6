"""A policy in numpy: a multilayer perceptron."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Arrays = dict[str, Array]
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"tanh": np.tanh, "relu": lambda x: np.maximum(x, 0)}


def mlp(weights: Arrays, activation: str = "tanh") -> Callable[[Arrays], Arrays]:
    """Makes the policy of `0.weight` [out, in], `0.bias` [out], `1.weight` and so on, as torch lays them out."""
    layers = [(weights[f"{n}.weight"].T, weights[f"{n}.bias"]) for n in range(len(weights) // 2)]
    bend = ACTIVATIONS[activation]

    def policy(observations: Arrays) -> Arrays:
        x = observations["observation"]
        for weight, bias in layers[:-1]:
            x = bend(x @ weight + bias)
        weight, bias = layers[-1]
        return {"action": x @ weight + bias}

    return policy
