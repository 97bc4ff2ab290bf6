"""Builds the TensorRT engine of a version, or compiles its program, before it is tried: the workers that try and serve it only
load what was built.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from msgspec.structs import replace

from pilliond.engine.interface import EngineError
from pilliond.ipc.control_channel import VersionRequest
from pilliond.linux.orphans import no_orphans_left
from pilliond.settings.schema import EngineSettings
from pilliond.versions.trial_worker import TrialWorker


def build_engine(
    request: VersionRequest, rows_max: int, settings: EngineSettings, code: Sequence[str], model_descriptor: int
) -> None:
    """Builds the engine in a worker of its own, unless the cache has it.

    A build that fails, crashes or takes longer than `engine.build_s_max` is ended, with the compiler and all else that it has
    started. Why stands in the cache, so that the workers that then compute without it say it as their `fallback`. Does
    nothing for a version of which nothing is to be built.
    """
    if not _is_built(request.engine.kind, settings):
        return
    # What is required of a version is decided where it is tried.
    lenient = replace(settings, device_required=False)
    most_s = settings.build_s_max
    with (
        no_orphans_left(),
        TrialWorker(request, rows_max, lenient, code, most_s, builds=True) as worker,
        suppress(EngineError),
    ):
        worker.start(model_descriptor)


def _is_built(kind: str, settings: EngineSettings) -> bool:
    """Whether something is built of a version of this kind: a TensorRT engine for a GPU, or a compiled program."""
    if kind == "onnx":
        return settings.provider == "tensorrt" and settings.devices[0] != "cpu"
    return kind == "torch" and settings.compile
