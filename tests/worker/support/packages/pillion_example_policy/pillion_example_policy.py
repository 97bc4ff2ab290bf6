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


def follow(weights: Arrays) -> Callable[[dict[str, NDArray[np.uint8]]], Arrays]:
    """Makes a policy of prompts: how many characters and words each has, times `scale` [2]."""
    scale = weights["scale"]

    def policy(observations: dict[str, NDArray[np.uint8]]) -> Arrays:
        texts = [bytes(row).rstrip(b"\0").decode() for row in observations["prompt"]]
        return {"action": np.array([[len(text), len(text.split())] for text in texts], np.float32) * scale}

    return policy
