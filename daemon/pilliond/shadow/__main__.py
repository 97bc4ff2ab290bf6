"""The shadow process: runs a version on what the live one answered, at the lowest priority, and compares. It sends nothing.

Started by the control process as `python -m pilliond.shadow.__main__ DESCRIPTOR`. It ends when it is killed: what it found lies in
the shared page.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from typing import TYPE_CHECKING

from pilliond.linux.sandbox import die_with_parent, limit_memory, step_aside

if TYPE_CHECKING:
    from pilliond.ipc.shadow_channel import ShadowRequest
    from pilliond.shadow.replayer import Replayer


def main() -> int:
    """Shadows until it is killed; gives the exit code of whatever ended it before."""
    die_with_parent()
    step_aside()
    # The control process decides when to stop, as in `serving`.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end = socket.socket(fileno=int(sys.argv[1]))
    # What is imported from here on is imported at the lowest priority.
    from pilliond.engine.interface import EngineError
    from pilliond.errors import DaemonError
    from pilliond.ipc import shadow_channel
    from pilliond.ipc.shadow_channel import ShadowFailed, ShadowReady
    from pilliond.shadow.ring import RingError

    order, model_descriptor, page_descriptor = shadow_channel.receive_control_message(end)
    limit_memory(order.memory_mb_max)
    try:
        replayer = prepare(order, model_descriptor, page_descriptor)
        shadow_channel.send_report(end, ShadowReady())
        replayer.run()
    except (DaemonError, EngineError, RingError) as error:
        shadow_channel.send_report(end, ShadowFailed(str(error)))
    except (MemoryError, ImportError, OSError) as error:
        # An import that finds no memory fails as one that finds no file, a mapping as a call that the kernel refuses.
        what = f"{type(error).__name__}: {error}".rstrip(": ")
        shadow_channel.send_report(end, ShadowFailed(f"it does not fit into staging.memory_mb_max ({what})"))
    return os.EX_SOFTWARE


def prepare(order: ShadowRequest, model_descriptor: int, page_descriptor: int) -> Replayer:
    """The version of the order, warm, and the ring that it reads; raises `EngineError`."""
    from pilliond.ipc.shadow_page import ShadowPage
    from pilliond.shadow.replayer import Replayer
    from pilliond.versions.loader import build_version, read_descriptor

    model = read_descriptor(model_descriptor)
    version = build_version(order.version, model, None, order.rows_max, order.engine)
    page = ShadowPage(page_descriptor)
    for descriptor in (model_descriptor, page_descriptor):
        os.close(descriptor)
    return Replayer(order, version, page)


if __name__ == "__main__":
    sys.exit(main())
