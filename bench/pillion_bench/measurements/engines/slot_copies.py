"""What copying an observation out of its slot costs the daemon, beside one copy of as many bytes and the round trip."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import numpy as np

from pillion_artifacts import Store
from pillion_bench.limits import ANSWER_S_MAX
from pillion_bench.measurements.engines.daemons import INLINE, act_for, engine_daemon
from pillion_bench.measurements.frames import publish_frame_policy
from pillion_bench.percentiles import nanoseconds, percentiles_us, relative_difference
from pillion_bench.process.daemon_process import DaemonProcess
from pillion_bench.process.placement import Placement
from pillion_bench.process.worker import Worker
from pillion_bench.roles.frame_driver import FramePlan, FrameRequest, FrameResult
from pillion_bench.shipped import examples_folder
from pillion_protocol.limits import SLOT_BYTES_MIN

IMAGE_POLICY: Final = "cart-pole-pixels"
STACK_BYTES: Final = 84 * 84 * 4
FRAME_BYTES: Final = 1_400_000
_SMALL_BYTES: Final = 64
"""Batching an observation of this size has all of the daemon's work but the copy."""

SIZES: Final = (_SMALL_BYTES, STACK_BYTES, FRAME_BYTES)


def measure_slot_copies(
    placement: Placement, seconds: float, rounds: int, advance: Callable[[str], None]
) -> dict[str, Any]:
    """Returns a row for each size, and the round trip of an image policy of the smaller one."""
    results: dict[int, list[FrameResult]] = {size: [] for size in SIZES}
    with tempfile.TemporaryDirectory(prefix="pillion-bench-") as folder, ExitStack() as stack:
        store = Path(folder, "store")
        for size in SIZES:
            publish_frame_policy(Store(store), size)
        daemons = {
            size: stack.enter_context(engine_daemon(store, f"frame-{size}", INLINE, placement, rows_max=1))
            for size in SIZES
        }
        for number in range(rounds):
            for size in reversed(SIZES) if number % 2 else SIZES:
                advance(f"{size:,} bytes")
                results[size].append(_act(daemons[size], size, placement, seconds))
        image = stack.enter_context(engine_daemon(examples_folder(), IMAGE_POLICY, INLINE, placement, rows_max=1))
        advance(IMAGE_POLICY)
        image_ns = act_for(image, IMAGE_POLICY, placement.server, seconds)
    small_us = _p50_us([result.batching_ns for result in results[_SMALL_BYTES]])
    rows = [_row(size, results[size], small_us) for size in SIZES[1:]]
    image_us = {"n": len(image_ns), **percentiles_us(image_ns)}
    return {
        "rows": rows,
        "image_policy": IMAGE_POLICY,
        "image_round_trip_us": image_us,
        "stack_share_of_image_round_trip": round(rows[0]["daemon_copy_us"] / image_us["p50"], 4),
    }


def _act(daemon: DaemonProcess, size: int, placement: Placement, seconds: float) -> FrameResult:
    plan = FramePlan(daemon.address, size >= SLOT_BYTES_MIN)
    with Worker("frame", plan, placement.server) as client:
        return client.request(FrameRequest(seconds), FrameResult, seconds + ANSWER_S_MAX)


def _row(size: int, results: list[FrameResult], small_us: float) -> dict[str, Any]:
    copy_us = _p50_us([result.copy_ns for result in results])
    carrier_us = _p50_us([result.added_ns for result in results])
    daemon_copy_us = round(_p50_us([result.batching_ns for result in results]) - small_us, 2)
    rounds = [_p50_us([result.batching_ns]) for result in results]
    return {
        "bytes": size,
        "n": sum(len(nanoseconds(result.added_ns)) for result in results),
        "daemon_copy_us": daemon_copy_us,
        "copy_us": copy_us,
        "carrier_us": carrier_us,
        "daemon_copy_over_copy": round(daemon_copy_us / copy_us, 3) if copy_us else 0.0,
        "beyond_copy_share_of_carrier": round((daemon_copy_us - copy_us) / carrier_us, 4) if carrier_us else 0.0,
        "noise": round(relative_difference(min(rounds), max(rounds)), 4),
    }


def _p50_us(parts: list[bytes]) -> float:
    return percentiles_us(np.concatenate([nanoseconds(part) for part in parts]))["p50"]
