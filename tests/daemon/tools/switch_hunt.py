"""Kills a daemon's processes with -9 at every step of staging and switching, and checks what is served and left then.

    python -m tests.daemon.tools.switch_hunt --kills 200 [--seed 1] [--json]

After each kill: the daemon, restarted if its control process died, serves what the alias points to; `fsck` finds nothing;
nothing else locks a version in the store; no process and no memfd is left. Exit code 1 if that is not so.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil

import pillion
from pillion_artifacts import Store
from pillion_artifacts.cli.verification_report import verify_and_report
from pillion_artifacts.store.aliases import move_alias
from pillion_artifacts.store.daemon_locks import locked_digests
from pillion_artifacts.store.transaction import locked
from pillion_bench.variants import POLICY, publish_variant
from tests.daemon.support.process_resources import children_running
from tests.harness import START_S_MAX, WAIT_S_MAX, Daemon

PATH: Final = f"/v1/policies/{POLICY}"
VERSIONS: Final = ("1.0.0", "1.1.0")
STEP: Final = 100.0
VICTIMS: Final = ("control", "serving", "staging")

STAGE_STEPS: Final = ("starting", "verifying", "loading, warming and running the golden pairs", "certifying")
"""The steps with a staging process. A caller may see one too late, and then sees the next."""

DELAY_S_MAX: Final = 1.2
"""Longest random time between the request and the kill. On an idle machine an operation takes less."""


class Broken(Exception):  # noqa: N818 - what was found, not what went wrong here
    """Something is wrong after a kill."""


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + START_S_MAX
    while not condition():
        if time.monotonic() > deadline_s:
            raise Broken(f"waited in vain until {what}")
        time.sleep(0.01)


class Scene:
    """A store with two versions, and a daemon that follows `stable`. Owns the daemon."""

    def __init__(self, folder: Path) -> None:
        self.store = Store(folder / "store")
        for number, version in enumerate(VERSIONS):
            publish_variant(self.store.root, version, number * STEP)
        move_alias(self.store, POLICY, "stable", VERSIONS[0], expected="", by="a test")
        self._folder = folder
        self._starts = 0
        self.daemon = self._start()

    # The world

    @property
    def stable(self) -> str:
        """Returns the version that the alias points to."""
        return self.store.resolve(f"{POLICY}@stable").version

    @property
    def other(self) -> str:
        return VERSIONS[1 - VERSIONS.index(self.stable)]

    def close(self) -> None:
        if self.daemon.process.poll() is None:
            self.daemon.stop()

    def request(self, verb: str) -> dict[str, Any]:
        """Asks the daemon to stage, switch to, roll back to, or give a share to the other version; returns the operation."""
        if verb == "route":
            body: dict[str, Any] = {"arms": [{"name": "canary", "version": self.other, "share": 0.5}]}
            return self._ask("PUT", f"{PATH}/route", body)
        body = {} if verb == "rollback" else {"version": self.other}
        return self._ask("POST", f"{PATH}/{verb}", body)

    def finish(self, verb: str) -> None:
        """Asks for a verb and waits until its operation has ended."""
        reply = self.request(verb)
        wait_until(lambda: self.operation(reply)["outcome"] != "running", f"{verb} ends")

    def operation(self, reply: dict[str, Any]) -> dict[str, Any]:
        return self._ask("GET", f"/v1/operations/{reply['number']}")

    def wait_for_step(self, reply: dict[str, Any], step: str) -> None:
        """Waits until an operation is at a step, or past it."""
        while (now := self.operation(reply))["outcome"] == "running" and now["step"] != step:
            if step in STAGE_STEPS and now["step"] in STAGE_STEPS[STAGE_STEPS.index(step) :]:
                return
            time.sleep(0.002)

    def wait_for_alias(self, version: str) -> None:
        wait_until(lambda: self.stable == version, f"the alias names {version}")

    def children(self, module: str) -> list[psutil.Process]:
        """Returns the living processes of the daemon that run a module."""
        return children_running(self.daemon.pid, module)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Makes every change of the store wait meanwhile."""
        with locked(self.store.root):
            yield

    @contextmanager
    def serving_stopped(self) -> Iterator[None]:
        """Stops the serving process meanwhile."""
        pid = self.daemon.serving_pid
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    # The kill, and the checks after it

    def kill(self, victim: str) -> None:
        """Sends SIGKILL to one of its processes; to none, if the victim is `staging` and nothing is staged."""
        if victim == "control":
            children = psutil.Process(self.daemon.pid).children(recursive=True)
            self.daemon.kill()
            wait_until(lambda: not any(_lives(child) for child in children), "its children are gone")
        else:
            for child in self.children(f"pilliond.{victim}"):
                with suppress(psutil.NoSuchProcess):
                    child.kill()

    def check(self, victim: str) -> None:
        """Raises `Broken` if anything is wrong."""
        if victim == "control":
            self.daemon = self._start()
        try:
            self._check_daemon()
        finally:
            if self.daemon.process.poll() is not None:
                raise Broken(f"the daemon ended: {self.daemon.stderr}")
        self._check_store()

    def _check_daemon(self) -> None:
        wait_until(self._is_settled, f"the daemon serves what the alias says, {self.stable}, and nothing is under way")
        with pillion.connect(self.daemon.address, timeout_s=WAIT_S_MAX) as session, session.begin() as episode:
            episode.act(np.zeros((5, 5), np.float32))
            answered = (episode.last.version, episode.last.digest)
        shares = [arm["version"] for arm in self._state()["route"]]
        if answered not in [(each, self.store.resolve(f"{POLICY}@{each}").digest) for each in (self.stable, *shares)]:
            raise Broken(f"expected answers of {self.stable}, got {answered}")
        wait_until(lambda: not self.children("pilliond.staging"), "no staging process is left")
        if len(self.children("pilliond.serving")) != 1:
            raise Broken("expected one serving process")
        # One memfd for the model of each loaded version.
        wait_until(lambda: _memfds(self.daemon.pid) == len(self._state()["resident"]), "no memfd is left")

    def _is_settled(self) -> bool:
        if self.daemon.health()["phase"] != "ready":
            return False
        state = self._state()
        is_busy = state["operation"] is not None and state["operation"]["outcome"] == "running"
        return state["stable"] == self.stable and not is_busy

    def _check_store(self) -> None:
        report = verify_and_report(self.store, (), everything=True)
        if not report.intact:
            raise Broken(f"fsck: {report}")
        held = {self.store.resolve(f"{POLICY}@{each['version']}").digest for each in self._state()["resident"]}
        if (leased := locked_digests(self.store.root)) != held:
            raise Broken(f"leases: expected those of {held}, got {leased}")

    def _state(self) -> dict[str, Any]:
        return self._ask("GET", PATH)

    def _ask(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        status, reply, _ = self.daemon.ask(method, path, body)
        if status not in (200, 202):
            raise Broken(f"{method} {path}: {reply}")
        return reply

    def _start(self) -> Daemon:
        self._starts += 1
        own = self._folder / str(self._starts)
        own.mkdir()
        flags = [
            "--store",
            str(self.store.root),
            "--policy",
            f"{POLICY}@stable",
            "--admin",
            f"unix://{self._folder}/admin.sock",
        ]
        # It kills far more often than a daemon that is to be given up on would end by itself.
        environment = {"PILLION_SERVING__RESTARTS_MAX": "1000"}
        daemon = Daemon([*flags, "--listen", f"ipc://{own}/z.sock"], own / "stderr", environment)
        daemon.wait_ready()
        return daemon


def _lives(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


def _memfds(pid: int) -> int:
    found = 0
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found += "memfd:pillion-artifact" in str(entry.readlink())
    return found


# The moments: each brings the scene to a point and is there while its block runs


def _staging_at(step: str) -> Callable[[Scene], AbstractContextManager[None]]:
    @contextmanager
    def at(scene: Scene) -> Iterator[None]:
        scene.wait_for_step(scene.request("switch"), step)
        yield

    return at


@contextmanager
def _waiting(scene: Scene) -> Iterator[None]:
    with scene.locked():
        scene.request("switch")
        yield


@contextmanager
def _loading(scene: Scene) -> Iterator[None]:
    with scene.serving_stopped():
        scene.wait_for_step(scene.request("switch"), "loading")
        yield


@contextmanager
def _alias_not_moved(scene: Scene) -> Iterator[None]:
    scene.finish("stage")
    with scene.locked():
        scene.wait_for_step(scene.request("switch"), "switching")
        yield


@contextmanager
def _alias_moved_not_flipped(scene: Scene) -> Iterator[None]:
    scene.finish("stage")
    other = scene.other
    with scene.serving_stopped():
        scene.request("switch")
        scene.wait_for_alias(other)
        yield


@contextmanager
def _switched(scene: Scene) -> Iterator[None]:
    scene.finish("switch")
    yield


@contextmanager
def _flipped_back_alias_not_moved(scene: Scene) -> Iterator[None]:
    scene.finish("switch")
    previous = scene.other
    with scene.locked(), _rollback_asked(scene.daemon):
        wait_until(lambda: bool(scene.daemon.ask("GET", PATH)[1]["stable"] == previous), "it is rolled back")
        yield


@contextmanager
def _rolling_back_not_flipped(scene: Scene) -> Iterator[None]:
    scene.finish("switch")
    with scene.serving_stopped(), _rollback_asked(scene.daemon):
        wait_until(lambda: scene.daemon.ask("GET", PATH)[1]["operation"]["kind"] == "rollback", "it rolls back")
        yield


@contextmanager
def _routed_not_noted(scene: Scene) -> Iterator[None]:
    scene.finish("stage")
    with scene.locked():
        scene.request("route")
        wait_until(lambda: bool(scene.daemon.ask("GET", PATH)[1]["route"]), "the route is taken")
        yield


@contextmanager
def _staged_not_noted(scene: Scene) -> Iterator[None]:
    reply = scene.request("stage")
    scene.wait_for_step(reply, "certifying")
    with scene.locked():
        wait_until(lambda: len(scene.daemon.ask("GET", PATH)[1]["resident"]) == 2, "it is loaded")
        yield


@contextmanager
def _rollback_asked(daemon: Daemon) -> Iterator[None]:
    """Asks for a rollback and does not wait for the answer, which comes when the rollback is done."""
    connection = daemon.admin_connection()
    connection.request("POST", f"{PATH}/rollback", b"{}")
    try:
        yield
    finally:
        connection.close()


MOMENTS: Final[dict[str, Callable[[Scene], AbstractContextManager[None]]]] = {
    "waiting for the store": _waiting,
    **{step: _staging_at(step) for step in STAGE_STEPS},
    "loading": _loading,
    "staged, not noted": _staged_not_noted,
    "switching, the alias not moved": _alias_not_moved,
    "the alias moved, not switched": _alias_moved_not_flipped,
    "switched": _switched,
    "rolling back, not switched": _rolling_back_not_flipped,
    "rolled back, the alias not moved": _flipped_back_alias_not_moved,
    "routed, not noted": _routed_not_noted,
}


def kill_at(scene: Scene, moment: str, victim: str) -> None:
    """Brings the daemon to that moment, kills, and checks; raises `Broken`."""
    with MOMENTS[moment](scene):
        scene.kill(victim)
    try:
        scene.check(victim)
    except Broken as broken:
        raise Broken(f"{victim} killed at {moment!r}: {broken}") from None


def kill_at_any_moment(scene: Scene, delay_s: float, verb: str, victim: str) -> None:
    """Does the same after a time instead of at a moment."""
    if verb == "rollback":
        scene.finish("switch")
    with _rollback_asked(scene.daemon) if verb == "rollback" else nullcontext():
        if verb != "rollback":
            scene.request(verb)
        time.sleep(delay_s)
        scene.kill(victim)
    try:
        scene.check(victim)
    except Broken as broken:
        raise Broken(f"{victim} killed {delay_s * 1e3:.1f} ms after {verb}: {broken}") from None


@contextmanager
def a_scene() -> Iterator[Scene]:
    with tempfile.TemporaryDirectory(prefix="pillion-") as folder:
        scene = Scene(Path(folder))
        try:
            yield scene
        finally:
            scene.close()


def main() -> int:
    """Kills, and prints how often at each moment; returns 1 if something was broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    chosen = parser.parse_args()
    draw = random.Random(chosen.seed)
    counted: Counter[str] = Counter()
    with a_scene() as scene:
        for number in range(chosen.kills):
            victim = draw.choice(VICTIMS)
            if number % 2:
                moment = draw.choice(list(MOMENTS))
                kill_at(scene, moment, victim)
            else:
                moment, verb = "any moment", draw.choice(["stage", "switch", "rollback", "route"])
                kill_at_any_moment(scene, draw.random() ** 2 * DELAY_S_MAX, verb, victim)
            counted[f"{victim}: {moment}"] += 1
    report = {"kills": chosen.kills, "seed": chosen.seed, "killed": dict(sorted(counted.items()))}
    print(json.dumps(report, indent=None if chosen.json else 2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
