"""A worker in another interpreter (`engine.python`), beside one in the daemon's own."""

from __future__ import annotations

import sysconfig
import tempfile
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from pillion_bench.measurements.engines.daemons import WORKER, act_for, engine_daemon, expect_workers
from pillion_bench.measurements.engines.series import Series, order
from pillion_bench.measurements.engines.subjects import Subject
from pillion_bench.process.placement import Placement

OWN, FOREIGN = "own", "foreign"
KINDS: Final = (OWN, FOREIGN)


def measure_interpreter(
    subject: Subject,
    placement: Placement,
    seconds: float,
    rounds: int,
    python: str,
    advance: Callable[[str], None],
) -> dict[str, Any]:
    """Returns the round trips of one client with both workers. `python` is the other interpreter; empty: one made for it."""
    series = {kind: Series() for kind in KINDS}
    with (
        _interpreter(python) as path,
        engine_daemon(subject.store, subject.small, WORKER, placement, more=subject.settings) as own,
        engine_daemon(
            subject.store, subject.small, WORKER, placement, more={**subject.settings, "PILLION_ENGINE__PYTHON": path}
        ) as foreign,
    ):
        daemons = {OWN: own, FOREIGN: foreign}
        for daemon in daemons.values():
            expect_workers(daemon, 1)
        for kind in order(KINDS, rounds):
            advance(f"{kind} interpreter")
            series[kind].segments_ns.append(act_for(daemons[kind], subject.small, placement.server, seconds))
    figures = {kind: each.figures() for kind, each in series.items()}
    rounds_us = zip(*(series[kind].p50s_us_of_rounds() for kind in (FOREIGN, OWN)), strict=True)
    return {
        "policy": subject.small,
        "python": python or "a virtual environment with the packages of the daemon's",
        "n": sum(each["n"] for each in figures.values()),
        **{f"{kind}_us": each for kind, each in figures.items()},
        "foreign_over_own": round(figures[FOREIGN]["p50"] / figures[OWN]["p50"], 3),
        "foreign_over_own_of_rounds": [round(foreign_us / own_us, 3) for foreign_us, own_us in rounds_us],
        "noise": {kind: each.noise() for kind, each in series.items()},
    }


@contextmanager
def _interpreter(python: str) -> Iterator[str]:
    """Yields the path of the other interpreter: by default that of a new environment, with the packages of this one."""
    if python:
        yield python
        return
    with tempfile.TemporaryDirectory(prefix="pillion-bench-") as folder:
        venv.create(folder, with_pip=False, symlinks=True)
        site = sysconfig.get_path("purelib", vars={"base": folder, "platbase": folder})
        # Unlike a bare path, this also reads the .pth files of editable installs there.
        Path(site, "own.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
        yield str(Path(folder, "bin", "python"))
