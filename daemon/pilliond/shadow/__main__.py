"""The shadow process: runs a version on the batches that the live one answered, and compares. It answers no client.

The control process starts it as `python -m pilliond.shadow DESCRIPTOR`. It loads at a low priority, and runs at the
lowest until it is killed, as does the worker that it starts for a version that is no ONNX graph. Its counts are in the shared page, so they survive it.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pilliond.linux.sandbox import die_with_parent, end_group_with_leader, limit_memory, run_when_idle, step_aside

if TYPE_CHECKING:
    from pilliond.ipc.shadow_channel import ShadowRequest
    from pilliond.shadow.replayer import Replayer


def main() -> int:
    """Shadows until it is killed; returns an exit code if it fails before."""
    die_with_parent(int(sys.argv[2]))
    end_group_with_leader()
    step_aside()
    # The control process decides when to stop, as in `serving`.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end = socket.socket(fileno=int(sys.argv[1]))
    # Imported here, so that the imports, too, run at the low priority.
    from pilliond.engine.interface import EngineError
    from pilliond.errors import DaemonError
    from pilliond.ipc import shadow_channel
    from pilliond.ipc.shadow_channel import ShadowFailed, ShadowReady
    from pilliond.shadow.ring import RingError

    try:
        request, model_descriptor, page_descriptor = shadow_channel.receive_request(end)
        limit_memory(request.memory_mb_max)
        with prepared(request, model_descriptor, page_descriptor) as replayer:
            run_when_idle()
            shadow_channel.send_report(end, ShadowReady())
            replayer.run()
    except (DaemonError, EngineError, RingError) as error:
        shadow_channel.send_report(end, ShadowFailed(str(error)))
    except (MemoryError, ImportError, OSError) as error:
        # Out of memory, an import fails as if a file were missing, and a mapping with an OSError.
        what = f"{type(error).__name__}: {error}".rstrip(": ")
        shadow_channel.send_report(end, ShadowFailed(f"it does not fit into staging.memory_mb_max ({what})"))
    return os.EX_SOFTWARE


@contextmanager
def prepared(request: ShadowRequest, model_descriptor: int, page_descriptor: int) -> Iterator[Replayer]:
    """Makes a replayer with the requested version, warm; raises `EngineError`. Where the version needs a worker, starts one."""
    from pillion_worker.model_source import path_of
    from pilliond.ipc.shadow_page import ShadowPage
    from pilliond.shadow.replayer import Replayer
    from pilliond.versions.loader import build_version
    from pilliond.versions.placement import place_by_kind
    from pilliond.versions.trial_worker import TrialWorker

    settings, rows_max = request.engine, request.rows_max
    page = ShadowPage(page_descriptor)
    os.close(page_descriptor)
    if place_by_kind(settings.placement, request.version.engine.kind, settings.devices) is None:
        version = build_version(request.version, path_of(model_descriptor), None, rows_max, settings)
        os.close(model_descriptor)
        yield Replayer(request, version, page)
        return
    with TrialWorker(request.version, rows_max, settings, request.code) as worker:
        version = worker.start(model_descriptor)
        os.close(model_descriptor)
        run_when_idle(worker.pid)
        yield Replayer(request, version, page, worker.cpu_clock, worker.check_memory)


if __name__ == "__main__":
    sys.exit(main())
