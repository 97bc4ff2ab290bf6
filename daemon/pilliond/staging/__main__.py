"""The staging process: tries a version apart from the live one, at a low priority, and passes on its sealed memory.

The control process starts it as `python -m pilliond.staging DESCRIPTOR`, one for each version. It verifies and loads the version,
warms every bucket, runs the golden pairs, measures the batch certificate and the service times, and decides where it runs.
A version that is no ONNX graph is tried in a worker, which this process starts for itself. A version that fails, fails here.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pilliond.linux.sandbox import die_with_parent, end_group_with_leader, limit_memory, step_aside

if TYPE_CHECKING:
    from collections.abc import Callable

    from pillion_artifacts.card.model_card import StateCard
    from pilliond.ipc.batch_certificate import Certificate
    from pilliond.ipc.placement import ServiceTime
    from pilliond.ipc.staging_channel import Staged, StageRequest
    from pilliond.versions.loaded_version import Version


def main() -> int:
    """Tries one version; returns the exit code."""
    die_with_parent(int(sys.argv[2]))
    end_group_with_leader()
    step_aside()
    end = socket.socket(fileno=int(sys.argv[1]))
    # Imported here, so that the imports, too, run at the low priority.
    from pilliond.engine.interface import EngineError
    from pilliond.errors import DaemonError
    from pilliond.ipc import staging_channel
    from pilliond.ipc.staging_channel import StageFailed

    request = staging_channel.receive_request(end)
    limit_memory(request.memory_mb_max)
    try:
        staged, descriptors = stage(end, request)
    except (DaemonError, EngineError) as error:
        staging_channel.send(end, StageFailed(str(error)))
    except (MemoryError, ImportError) as error:
        # Out of memory, an import fails as if a file were missing.
        what = f"{type(error).__name__}: {error}".rstrip(": ")
        staging_channel.send(end, StageFailed(f"it does not fit into staging.memory_mb_max ({what})"))
    else:
        staging_channel.send(end, staged, descriptors)
    return os.EX_OK


def stage(end: socket.socket, request: StageRequest) -> tuple[Staged, list[int]]:
    """Tries a version; returns the report and its descriptors (the model, then perhaps golden pairs).

    Raises `BadPolicyError` or `EngineError`.
    """
    from pillion_artifacts import Resolved, Store
    from pillion_worker.model_source import path_of
    from pilliond.engine.load_request import has_cuda
    from pilliond.engine.stopwatch import clock_for
    from pilliond.ipc import staging_channel
    from pilliond.ipc.sealed_version import seal
    from pilliond.ipc.staging_channel import Staged, StageStep, StagingStep
    from pilliond.staging.preflight import admit
    from pilliond.versions.engine_build import build_engine
    from pilliond.versions.loader import build_version, read_descriptor
    from pilliond.versions.placement import decide, place_by_kind
    from pilliond.versions.trial_worker import TrialWorker

    def report(step: StagingStep) -> None:
        staging_channel.send(end, StageStep(step))

    report(StagingStep.VERIFYING)
    settings, rows_max = request.engine, request.rows_max
    resolved = Resolved(request.policy, request.version, request.digest)
    artifact, signed_by = admit(Store(Path(request.store)), resolved, request.trust)
    placement = place_by_kind(settings.placement, artifact.card.engine.kind, settings.devices)
    is_graph, fallback, device_memory_mb = placement is None, "", 0
    report(StagingStep.TRYING)
    sealed = seal(artifact)
    states = artifact.card.state
    golden = read_descriptor(sealed.golden_descriptor) if sealed.golden_descriptor >= 0 else None
    if placement is None:
        version = build_version(sealed.request(), path_of(sealed.model_descriptor), golden, rows_max, settings)
        report(StagingStep.CERTIFYING)
        certificate, service_us = examine(version, states, golden, request, clock_for(settings.threads))
        p99_us = {each.rows: each.p99_us for each in service_us}
        placement = decide(settings.placement, sealed.unbounded, p99_us, settings.inline_us_max)
    if placement.where == "worker" and (
        settings.python or not is_graph or (settings.devices != ["cpu"] and has_cuda())
    ):
        # What runs there is another engine than this process has.
        trial = sealed.request()
        build_engine(trial, rows_max, settings, request.trust.code, sealed.model_descriptor)
        with TrialWorker(trial, rows_max, settings, request.trust.code, looks_apart=True) as worker:
            version = worker.start(sealed.model_descriptor, golden)
            report(StagingStep.CERTIFYING)
            certificate, service_us = examine(version, states, golden, request, time.monotonic_ns)
            worker.check_memory()
            fallback = worker.request.fallback
            if artifact.card.engine.kind == "python":
                device_memory_mb = version.engine.describe().get("device_memory_mb", 0)
    staged = Staged(
        artifact.card, signed_by, certificate, sealed.unbounded, placement, service_us, fallback, golden is not None,
        device_memory_mb,
    )  # fmt: skip
    return staged, sealed.descriptors()


def examine(
    version: Version, states: list[StateCard], golden: bytes | None, request: StageRequest, clock: Callable[[], int]
) -> tuple[Certificate, list[ServiceTime]]:
    """Measures the batch certificate and the service times of a version; raises `BadPolicyError` or `EngineError`."""
    from pillion_artifacts.card.golden_pairs import decode_golden
    from pilliond.engine.certifier import certify
    from pilliond.engine.stopwatch import measure
    from pilliond.errors import BadPolicyError
    from pilliond.ipc.placement import ServiceTime

    observations = None if golden is None else decode_golden(golden).inputs
    certificate = certify(version.engine, version.spec, states, observations, request.rows_max)
    if shortfall := certificate.shortfall(request.certificate):
        raise BadPolicyError(shortfall)
    measured = measure(version.engine, clock)
    return certificate, [ServiceTime(rows, p50_ns / 1e3, p99_ns / 1e3) for rows, (p50_ns, p99_ns) in measured.items()]


if __name__ == "__main__":
    sys.exit(main())
