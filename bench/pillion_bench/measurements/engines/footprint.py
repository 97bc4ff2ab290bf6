"""What a version costs before its first act: the time from `publish` until it serves, and the serving process's memory."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, Final

import msgspec
import psutil

from pillion_artifacts import Store
from pillion_artifacts.card.layers import MODEL_NAMES
from pillion_artifacts.store.aliases import move_alias
from pillion_bench.errors import DaemonStartError
from pillion_bench.limits import BY_HAND_S_MAX
from pillion_bench.measurements.engines.daemons import WORKER, act_for, engine_daemon, expect_workers
from pillion_bench.measurements.engines.subjects import TABLE, Subject, make_table, settings_of
from pillion_bench.percentiles import relative_difference
from pillion_bench.process.placement import Placement
from pillion_bench.process.worker import Worker
from pillion_bench.roles.by_hand import ByHandPlan, ByHandResult
from pillion_bench.shipped import IMAGE, examples_folder
from pilliond.commands.admin_client import AdminClient

BY_HAND, START, SWITCH = "by_hand", "start", "switch"
START_KINDS: Final = (BY_HAND, START, SWITCH)

ONNX_WORKER: Final = "onnx_worker"
MEMORY_KINDS: Final = (ONNX_WORKER, WORKER)

_LIBRARY: Final = "torch"
"""What no process of the daemon but a worker may have in its memory."""

_NS: Final = 1e9


def measure_start(
    engine: str, placement: Placement, rounds: int, model_mb: float, advance: Callable[[str], None]
) -> dict[str, Any]:
    """Measures a model of `model_mb`: loading it by hand, starting a daemon with it, and switching a running one to it."""
    by_hand: list[dict[str, float]] = []
    publish_s: list[float] = []
    start_cpu_s: list[float] = []
    taken_s: dict[str, list[float]] = {kind: [] for kind in START_KINDS}
    with tempfile.TemporaryDirectory(prefix="pillion-bench-") as folder:
        small, large = Path(folder, "small"), Path(folder, "large")
        make_table(small, engine, "1.0.0", 0.0)
        make_table(large, engine, "1.1.0", model_mb)
        (model,) = (large / name for name in MODEL_NAMES.values() if (large / name).exists())
        for number in range(rounds):
            advance(f"{model_mb:g} MB by hand")
            by_hand.append(_by_hand(engine, model, placement))
            taken_s[BY_HAND].append(by_hand[-1]["process"])
            advance(f"{model_mb:g} MB, a daemon that starts")
            published_s, ready_s, cpu_s = _start(Path(folder, f"start-{number}"), engine, large, placement)
            publish_s.append(published_s)
            start_cpu_s.append(cpu_s)
            taken_s[START].append(published_s + ready_s)
            advance(f"{model_mb:g} MB, a daemon that switches")
            taken_s[SWITCH].append(_switch(Path(folder, f"switch-{number}"), engine, small, large, placement))
        model_bytes = model.stat().st_size
    middle_s = {kind: median(each) for kind, each in taken_s.items()}
    by_hand_s = {name: round(median(each[name] for each in by_hand), 4) for name in by_hand[0]}
    bare_s = by_hand_s["read"] + by_hand_s["hash"] + by_hand_s["load"]
    return {
        "model_bytes": model_bytes,
        "n": rounds,
        "by_hand_s": by_hand_s,
        "publish_s": round(median(publish_s), 4),
        **{f"{kind}_s": round(middle_s[kind], 4) for kind in (START, SWITCH)},
        "cpu_s": {BY_HAND: by_hand_s["cpu"], START: round(median(start_cpu_s), 4)},
        "over_by_hand": {kind: round(middle_s[kind] / middle_s[BY_HAND], 3) for kind in (START, SWITCH)},
        "over_read_hash_load": {kind: round(middle_s[kind] / bare_s, 3) for kind in (START, SWITCH)},
        "noise": {kind: round(relative_difference(min(each), max(each)), 4) for kind, each in taken_s.items()},
        "s_of_rounds": {kind: [round(taken, 4) for taken in each] for kind, each in taken_s.items()},
    }


def _by_hand(engine: str, model: Path, placement: Placement) -> dict[str, float]:
    """Returns the seconds of each step, of the processor, and from the start of the process to the loaded model."""
    began_s = time.monotonic()
    with Worker("by-hand", ByHandPlan(engine, str(model)), placement.client) as reader:
        result = reader.receive(ByHandResult, BY_HAND_S_MAX)
        process_s = time.monotonic() - began_s
    parts = {name.removesuffix("_ns"): taken_ns / _NS for name, taken_ns in msgspec.structs.asdict(result).items()}
    return {**parts, "process": process_s}


def _start(root: Path, engine: str, large: Path, placement: Placement) -> tuple[float, float, float]:
    """Returns the seconds of the publication, of the start of a daemon with it, to its first welcome, and of the processor for both."""
    began_s, began_cpu_s = time.monotonic(), time.process_time()
    Store(root).publish(TABLE, "1.1.0", large)
    published_s, published_cpu_s = time.monotonic() - began_s, time.process_time() - began_cpu_s
    with engine_daemon(root, TABLE, WORKER, placement, more=settings_of(engine)) as daemon:
        return published_s, daemon.ready_s, published_cpu_s + daemon.cpu_s()


def _switch(root: Path, engine: str, small: Path, large: Path, placement: Placement) -> float:
    """Returns the seconds from the publication until a daemon that runs has staged and loaded it, and serves it."""
    store = Store(root)
    store.publish(TABLE, "1.0.0", small)
    move_alias(store, TABLE, "stable", "1.0.0", expected="", by="the bench")
    settings = settings_of(engine)
    with engine_daemon(root, f"{TABLE}@stable", WORKER, placement, more=settings, has_admin=True) as daemon:
        admin = AdminClient(f"unix://{daemon.admin_path}")
        began_ns = time.monotonic_ns()
        store.publish(TABLE, "1.1.0", large)
        body = {"version": "1.1.0", "reason": "the bench", "by": "the bench"}
        operation = admin.ended(admin.post(f"/v1/policies/{TABLE}/switch", body))
        if operation["outcome"] != "done":
            raise DaemonStartError(f"{TABLE}@1.1.0: {operation['error']}", os.EX_SOFTWARE)
        return float(operation["effect_ns"] - began_ns) / _NS


def measure_memory(
    subject: Subject, placement: Placement, seconds: float, advance: Callable[[str], None]
) -> dict[str, Any]:
    """Returns the serving process's memory while an ONNX worker serves the image policy, and while this engine's does."""
    stores = {ONNX_WORKER: examples_folder(), WORKER: subject.store}
    resident: dict[str, list[int]] = {kind: [] for kind in MEMORY_KINDS}
    for kind in (*MEMORY_KINDS, *reversed(MEMORY_KINDS)):
        advance(f"memory, {kind}")
        with engine_daemon(stores[kind], IMAGE, WORKER, placement, more=subject.settings) as daemon:
            (worker,) = expect_workers(daemon, 1)
            act_for(daemon, IMAGE, placement.server, seconds)
            (serving,) = daemon.serving_pids()
            resident[kind].append(psutil.Process(serving).memory_info().rss)
            worker_bytes = psutil.Process(worker).memory_info().rss
            mapping = {"control": daemon.pid, "serving": serving, "worker": worker}
            has_library = {name: _has_library(pid) for name, pid in mapping.items()}
            if kind == WORKER:
                of_engine = {"worker_mb": round(worker_bytes / 1e6, 2), "has_torch": has_library}
    serving_mb = {kind: round(sum(each) / len(each) / 1e6, 2) for kind, each in resident.items()}
    return {
        "policy": IMAGE,
        "n": len(resident[WORKER]),
        "serving_mb": serving_mb,
        "added_mb": round(serving_mb[WORKER] - serving_mb[ONNX_WORKER], 2),
        "noise_mb": {kind: round((max(each) - min(each)) / 1e6, 2) for kind, each in resident.items()},
        **of_engine,
    }


def _has_library(pid: int) -> bool:
    return f"/{_LIBRARY}/" in Path(f"/proc/{pid}/maps").read_text()
