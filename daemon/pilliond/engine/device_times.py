"""How long a device took for a batch, as its worker says. Hot path, but only of versions on a device."""

from __future__ import annotations

from pillion_protocol.action_steps import NO_DEVICE_TIMES, DeviceTimes
from pillion_worker.arena import COPY_IN_NS, COPY_OUT_NS


def read_device_times(cells: memoryview, block: int, run_ns: int) -> DeviceTimes:
    """Returns the times in the block of a batch that the worker ran for `run_ns`.

    The worker may have written anything. Each time is read once, and together they are cut to `run_ns`.
    """
    copy_in_ns, compute_ns, copy_out_ns = cells[block + COPY_IN_NS : block + COPY_OUT_NS + 1]
    copy_in_ns = min(copy_in_ns, run_ns)
    compute_ns = min(compute_ns, run_ns - copy_in_ns)
    copy_out_ns = min(copy_out_ns, run_ns - copy_in_ns - compute_ns)
    if not (copy_in_ns or compute_ns or copy_out_ns):
        return NO_DEVICE_TIMES
    return DeviceTimes(copy_in_ns, compute_ns, copy_out_ns)
