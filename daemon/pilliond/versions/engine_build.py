"""Builds the TensorRT engine of a version before it is tried: the workers that try and serve it only load what was built."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from msgspec.structs import replace

from pilliond.engine.interface import EngineError
from pilliond.ipc.control_channel import VersionRequest
from pilliond.settings.schema import EngineSettings
from pilliond.versions.trial_worker import TrialWorker


def build_engine(
    request: VersionRequest, rows_max: int, settings: EngineSettings, code: Sequence[str], model_descriptor: int
) -> None:
    """Builds the engine in a worker of its own, unless the cache has it.

    A build that fails, crashes or takes longer than `engine.build_s_max` is ended. Why stands in the cache, so that
    the workers that then compute without an engine say it as their `fallback`. Does nothing for a version that is no
    ONNX graph on a CUDA device, or where `engine.provider` is not `tensorrt`.
    """
    if settings.provider != "tensorrt" or settings.devices[0] == "cpu" or request.engine.kind != "onnx":
        return
    # What is required of a version is decided where it is tried.
    lenient = replace(settings, device_required=False)
    most_s = settings.build_s_max
    with (
        TrialWorker(request, rows_max, lenient, code, most_s, builds=True) as worker,
        suppress(EngineError),
    ):
        worker.start(model_descriptor)
