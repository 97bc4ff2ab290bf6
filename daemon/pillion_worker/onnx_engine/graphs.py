"""CUDA graphs of ONNX Runtime: one for each bucket, captured before anything else is bound.

A session captures a graph in the first runs with a `gpu_graph_id`, and replays it in all later ones with that id, whatever is
bound then: neither shapes nor addresses are compared. So each bucket has an id of its own, and tensors of the device that never move.
"""

from __future__ import annotations

import re
from typing import Any, Final

import onnxruntime

from pillion_worker.buckets import WARM_UP_RUNS
from pillion_worker.errors import EngineError, one_line
from pillion_worker.limits import FALLBACK_CHARS_MAX

CAPTURED: Final = "captured"
"""What an engine says of its graphs if it has them."""
_ID: Final = "gpu_graph_id"
_NEITHER: Final = -1
"""The id of a run that neither captures nor replays."""
_SINCE: Final = (1, 22)
"""Older versions were not tried. Those before 1.18 ignore the id, and would replay one graph for all buckets."""


def why_unsupported(version: str = onnxruntime.__version__) -> str:
    """Why this version of ONNX Runtime gets no graphs; empty if it does."""
    numbers = tuple(int(each) for each in re.findall(r"\d+", version)[:2])
    return "" if numbers >= _SINCE else f"onnxruntime {version} is older than {'.'.join(map(str, _SINCE))}"


def without(why: str) -> str:
    """What an engine says of its graphs if it has none for that reason: a sentence of bounded length."""
    return f"none: {why}"[:FALLBACK_CHARS_MAX]


def run_options(number: int = _NEITHER) -> Any:
    """The options of a run with the graph of that number, from 1 on; without one it neither captures nor replays."""
    options = onnxruntime.RunOptions()
    options.add_run_config_entry(_ID, str(number))
    return options


def capture(session: Any, binding: Any, options: Any) -> None:
    """Captures the graph of a binding; nothing is copied in or out. All later runs only replay. Raises `EngineError`."""
    try:
        for _ in range(WARM_UP_RUNS):
            session.run_with_iobinding(binding, options)
    except Exception as error:  # noqa: BLE001 - ONNX Runtime raises errors of its own, of many kinds
        raise EngineError(f"capturing a CUDA graph: {one_line(error)}") from None
