"""Kills clients of the lane with -9, in each phase of their life and at any moment, and then counts what is left.

    python -m tests.daemon.tools.client_hunt --kills 10000 [--json]

Half of the clients kill themselves as a phase begins; the others use the real client and are killed after a random time,
several at once. Two background clients, one on each carrier, check every answer meanwhile. Exit code 1 where the daemon died,
where a background client got a wrong answer or none, or where a descriptor, mapping or memfd of a dead client is left.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Final, NoReturn

from tests.daemon.support.client_lifecycle import PHASES, act_until_killed, kill_self_at
from tests.daemon.support.policies.wide import publish_wide
from tests.harness import ROOT, WAIT_S_MAX, Daemon, running

AT_ONCE: Final = 4
"""Clients that live at the same time before they are killed at random."""

LIFE_S_MAX: Final = 0.012
"""The longest random life; a session of the real client takes less."""

BATCH_WAIT_US: Final = 500
"""So that acts wait for each other, and some of the dead leave one in the queue."""

WARM_UP_KILLS: Final = 2 * len(PHASES)
"""Before the first count: the serving process has its buffers then."""

MAPPINGS_GROWN_MAX: Final = 8
"""Mappings that the allocator may add by itself; a leak would add one for each client."""


@dataclasses.dataclass(frozen=True)
class Holdings:
    """What the serving process holds, counted in `/proc`."""

    descriptors: int
    memfds: int
    slot_mappings: int
    mappings: int
    sessions: int
    resident_kb: int

    @classmethod
    def of(cls, daemon: Daemon) -> Holdings:
        """Counts them now."""
        health = daemon.health()
        folder = Path(f"/proc/{health['serving']['pid']}")
        open_ones = [_target(entry) for entry in (folder / "fd").iterdir()]
        maps = (folder / "maps").read_text().splitlines()
        return cls(
            descriptors=len(open_ones),
            memfds=sum("memfd:" in target for target in open_ones),
            slot_mappings=sum("pillion-slots" in line for line in maps),
            mappings=len(maps),
            sessions=health["sessions"],
            resident_kb=health["serving"]["resident_bytes"] // 1_024,
        )

    def is_as(self, before: Holdings) -> bool:
        """Whether nothing is held that was not held before."""
        return (
            self.mappings <= before.mappings + MAPPINGS_GROWN_MAX
            and (self.descriptors, self.memfds, self.slot_mappings, self.sessions)
            == (before.descriptors, before.memfds, before.slot_mappings, before.sessions)
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Report:
    """The result of a hunt."""

    kills: int
    kills_in: dict[str, int]
    seconds: float
    background_acts: list[int]
    starts: int
    before: Holdings
    after: Holdings

    @property
    def is_clean(self) -> bool:
        """Whether the daemon lives and holds nothing of the dead."""
        return self.starts == 1 and self.after.is_as(self.before)


def hunt(kills: int, seed: int, on_kill: Callable[[], object]) -> Report:
    """Kills so many clients of a daemon of its own."""
    chance = random.Random(seed)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pillion-")))
        daemon = stack.enter_context(_daemon(folder))
        background_clients = [stack.enter_context(_background_client(address)) for address in daemon.addresses]
        gc.freeze()
        _kill_all(daemon.address, WARM_UP_KILLS, chance, lambda: None)
        before = _settled(daemon, len(background_clients))
        began_s = time.monotonic()
        kills_in = _kill_all(daemon.address, kills, chance, on_kill)
        seconds = time.monotonic() - began_s
        after = _settled(daemon, len(background_clients))
        acts = [_dismiss(client) for client in background_clients]
        starts = daemon.health()["serving"]["starts"]
    return Report(sum(kills_in.values()), dict(kills_in), round(seconds, 1), acts, starts, before, after)


def _daemon(folder: Path) -> AbstractContextManager[Daemon]:
    publish_wide(folder / "store")
    arguments = ["--store", str(folder / "store"), "--policy", "wide", "--admin", "http://127.0.0.1:0"]
    listen = ["--listen", f"lane://{folder}/lane.sock", "--listen", f"ipc://{folder}/zmq.sock"]
    environment = {"PILLION_LIMITS__BATCH_WAIT_US_MAX": str(BATCH_WAIT_US)}
    return running([*arguments, *listen], folder / "stderr", environment)


@contextmanager
def _background_client(address: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.daemon.support.background_client", address]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def _dismiss(client: subprocess.Popen[str]) -> int:
    """Ends a background client and returns how often it acted. Raises `AssertionError` if an answer was wrong."""
    out, _ = client.communicate(timeout=2 * WAIT_S_MAX)
    assert client.returncode == 0, f"the background client ended with {client.returncode}"
    return int(json.loads(out)["acts"])


def _kill_all(address: str, kills: int, chance: random.Random, on_kill: Callable[[], object]) -> Counter[str]:
    killed: Counter[str] = Counter()
    in_phases = kills // 2
    for number in range(in_phases):
        phase = PHASES[number % len(PHASES)]
        _reap(_fork(lambda: kill_self_at(address, phase)))  # noqa: B023 - it is called in this iteration
        killed[phase] += 1
        on_kill()
    for first in range(in_phases, kills, AT_ONCE):
        children = [_fork(lambda: act_until_killed(address)) for _ in range(min(AT_ONCE, kills - first))]
        for child in children:
            time.sleep(chance.uniform(0, LIFE_S_MAX / AT_ONCE))
            os.kill(child, signal.SIGKILL)
        for child in children:
            _reap(child)
            killed["any moment"] += 1
            on_kill()
    return killed


def _fork(act: Callable[[], NoReturn]) -> int:
    child = os.fork()
    if child:
        return child
    try:
        act()
    except BaseException:  # noqa: BLE001 - whatever it is, it must be seen
        traceback.print_exc()
    finally:
        os._exit(1)


def _reap(child: int) -> None:
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), f"a client ended by itself with {status}"
    assert os.WTERMSIG(status) == signal.SIGKILL


def _settled(daemon: Daemon, sessions: int) -> Holdings:
    """Returns what the daemon holds once only the background clients have a session, or when the wait is over."""
    deadline_s = time.monotonic() + WAIT_S_MAX
    while (held := Holdings.of(daemon)).sessions != sessions and time.monotonic() < deadline_s:
        time.sleep(0.05)
    return held


def _target(entry: Path) -> str:
    try:
        return os.readlink(entry)
    except FileNotFoundError:
        return ""


def main() -> int:
    """Hunts as the command line says; returns the exit code."""
    parser = argparse.ArgumentParser(description="Kills clients of the lane and counts what is left of them.")
    parser.add_argument("--kills", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1, help="of the random moments")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    from rich.progress import Progress

    with Progress(transient=True, disable=arguments.json) as progress:
        task = progress.add_task("killing", total=arguments.kills)
        report = hunt(arguments.kills, arguments.seed, lambda: progress.advance(task))
    if arguments.json:
        print(json.dumps(dataclasses.asdict(report) | {"is_clean": report.is_clean}))
    else:
        _print(report)
    return 0 if report.is_clean else 1


def _print(report: Report) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("held by the serving process", "before", "after")
    before, after = dataclasses.asdict(report.before), dataclasses.asdict(report.after)
    for name, value in before.items():
        table.add_row(name.replace("_", " "), f"{value:,}", f"{after[name]:,}")
    console = Console()
    console.print(table)
    acts = " and ".join(f"{number:,}" for number in report.background_acts)
    console.print(
        f"{report.kills:,} clients killed in {report.seconds:g} s, {len(report.kills_in) - 1} phases and any moment; "
        f"background clients acted {acts} times, every answer right; "
        f"{'nothing is left' if report.is_clean else 'SOMETHING IS LEFT, or the daemon died'}"
    )


if __name__ == "__main__":
    sys.exit(main())
