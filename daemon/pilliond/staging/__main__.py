"""The staging process: tries a version apart from the one that serves, at the lowest priority, and hands over its memory.

Started by the control process as `python -m pilliond.staging.__main__ DESCRIPTOR`, one for each version. Verify, load, warm every
bucket, golden pairs, batch certificate; whatever fails, fails here.
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
    """Tries one version; gives the exit code."""
    die_with_parent()
    step_aside()
    end = socket.socket(fileno=int(sys.argv[1]))
    # What is imported from here on is imported at the lowest priority.
    from pilliond.engine.interface import EngineError
    from pilliond.errors import DaemonError
    from pilliond.ipc import staging_channel
    from pilliond.ipc.staging_channel import StageFailed

    order = staging_channel.receive_control_message(end)
    limit_memory(order.memory_mb_max)
    try:
        staged, descriptors = stage(end, order)
    except (DaemonError, EngineError) as error:
        staging_channel.send(end, StageFailed(str(error)))
    except (MemoryError, ImportError) as error:
        # An import that finds no memory fails as one that finds no file.
        what = f"{type(error).__name__}: {error}".rstrip(": ")
        staging_channel.send(end, StageFailed(f"it does not fit into staging.memory_mb_max ({what})"))
    else:
        staging_channel.send(end, staged, descriptors)
    return os.EX_OK


def stage(end: socket.socket, order: StageRequest) -> tuple[Staged, list[int]]:
    """Everything that is asked of a version; raises `BadPolicyError` or `EngineError`."""
    from pillion_artifacts import Resolved, Store
    from pillion_artifacts.card.golden_pairs import decode_golden
    from pilliond.engine.certifier import certify
    from pilliond.errors import BadPolicyError
    from pilliond.ipc import staging_channel
    from pilliond.ipc.sealed_version import seal
    from pilliond.ipc.staging_channel import Staged, StageStep, StagingStep
    from pilliond.staging.preflight import admit
    from pilliond.versions.loader import build_version, read_descriptor

    def report(step: StagingStep) -> None:
        staging_channel.send(end, StageStep(step))

    report(StagingStep.VERIFYING)
    resolved = Resolved(order.policy, order.version, order.digest)
    artifact, signed_by = admit(Store(Path(order.store)), resolved, order.trust)
    report(StagingStep.TRYING)
    sealed = seal(artifact)
    golden = read_descriptor(sealed.golden_descriptor) if sealed.golden_descriptor >= 0 else None
    model = read_descriptor(sealed.model_descriptor)
    version = build_version(sealed.order(), model, golden, order.rows_max, order.engine)
    report(StagingStep.CERTIFYING)
    observations: Arrays | None = None if golden is None else decode_golden(golden).inputs
    certificate = certify(version.engine, version.spec, artifact.card.state, observations, order.rows_max)
    if shortfall := certificate.shortfall(order.certificate):
        raise BadPolicyError(shortfall)
    return Staged(artifact.card, signed_by, certificate), sealed.descriptors()


if __name__ == "__main__":
    sys.exit(main())
