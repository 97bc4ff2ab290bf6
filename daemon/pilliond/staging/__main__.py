"""The staging process: tries a version apart from the live one, at a low priority, and passes on its sealed memory.

The control process starts it as `python -m pilliond.staging DESCRIPTOR`, one for each version. It verifies and loads the version,
warms every bucket, runs the golden pairs, measures the batch certificate and the service times, and decides where it runs. A version that fails, fails here.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pilliond.linux.sandbox import die_with_parent, limit_memory, step_aside

if TYPE_CHECKING:
    from pillion_artifacts.card.golden_pairs import Arrays
    from pilliond.ipc.staging_channel import Staged, StageRequest


def main() -> int:
    """Tries one version; returns the exit code."""
    die_with_parent(int(sys.argv[2]))
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
    from pillion_artifacts.card.golden_pairs import decode_golden
    from pilliond.engine.certifier import certify
    from pilliond.engine.stopwatch import clock_for, measure
    from pilliond.errors import BadPolicyError
    from pilliond.ipc import staging_channel
    from pilliond.ipc.placement import ServiceTime
    from pilliond.ipc.sealed_version import seal
    from pilliond.ipc.staging_channel import Staged, StageStep, StagingStep
    from pilliond.staging.preflight import admit
    from pilliond.versions.loader import build_version, read_descriptor
    from pilliond.versions.placement import decide

    def report(step: StagingStep) -> None:
        staging_channel.send(end, StageStep(step))

    report(StagingStep.VERIFYING)
    resolved = Resolved(request.policy, request.version, request.digest)
    artifact, signed_by = admit(Store(Path(request.store)), resolved, request.trust)
    report(StagingStep.TRYING)
    sealed = seal(artifact)
    golden = read_descriptor(sealed.golden_descriptor) if sealed.golden_descriptor >= 0 else None
    model = read_descriptor(sealed.model_descriptor)
    version = build_version(sealed.request(), model, golden, request.rows_max, request.engine)
    report(StagingStep.CERTIFYING)
    observations: Arrays | None = None if golden is None else decode_golden(golden).inputs
    certificate = certify(version.engine, version.spec, artifact.card.state, observations, request.rows_max)
    if shortfall := certificate.shortfall(request.certificate):
        raise BadPolicyError(shortfall)
    measured = measure(version.engine, clock_for(request.engine.threads))
    service_us = [ServiceTime(rows, p50_ns / 1e3, p99_ns / 1e3) for rows, (p50_ns, p99_ns) in measured.items()]
    p99_us = {each.rows: each.p99_us for each in service_us}
    placement = decide(request.engine.placement, sealed.unbounded, p99_us, request.engine.inline_us_max)
    staged = Staged(artifact.card, signed_by, certificate, sealed.unbounded, placement, service_us)
    return staged, sealed.descriptors()


if __name__ == "__main__":
    sys.exit(main())
