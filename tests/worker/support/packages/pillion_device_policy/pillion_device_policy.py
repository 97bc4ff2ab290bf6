"""A policy that takes memory of the devices of `stub_gpu`, as a library of its own would."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def make(weights: dict[str, Any], **values: int) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Doubles its observation. `values` go to the files of the host: `elsewhere_mb_N`, say."""
    for name, value in values.items():
        Path(os.environ["STUB_FOLDER"], name).write_text(str(value))
    return lambda observations: {"action": 2 * observations["observation"]}
