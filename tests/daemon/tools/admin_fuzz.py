"""Sends requests to a daemon's admin port with schemathesis: some that its description allows, and others.

    python -m tests.daemon.tools.admin_fuzz --examples 2000 [--seed 7] [--operators 2]

Meanwhile an onlooker acts, and compares every answer with the first that the same weights gave, bit for bit. Exit code 1
where schemathesis found something, where the onlooker got a wrong answer or none, or where the daemon is not as before.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import numpy as np

import pillion
from pillion_artifacts import Store
from pillion_artifacts.store.aliases import move_alias
from pillion_bench.variants import POLICY, publish_variant
from tests.daemon.support.tokens import make_token
from tests.harness import ROOT, WAIT_S_MAX, Daemon, running

CONFIG: Final = ROOT / "tests" / "daemon" / "tools" / "schemathesis.toml"
VERSIONS: Final = ("1.0.0", "1.1.0", "1.2.0")
STEP: Final = 100.0
"""By how much the value of a version is above that of the one before."""

OBSERVATION: Final = np.linspace(-1, 1, 25, dtype=np.float32).reshape(5, 5)
ACTS_OF_EPISODE: Final = 10
OPERATIONS_MIN: Final = 5
"""That must have come of what was asked, else nothing was tried."""

PAUSE_S: Final = 0.005
"""So that the onlooker leaves a core to the others."""


class Onlooker:
    """Acts in a thread of its own, one episode after the other. Owns its session; `close` raises what it met with."""

    def __init__(self, address: str) -> None:
        self.acts = 0
        self.answers: dict[str, bytes] = {}
        """The first answer of each weights, by their digest."""
        self.values: dict[str, float] = {}
        """The value in it, by version."""
        self._address = address
        self._error: BaseException | None = None
        self._is_over = threading.Event()
        self._has_acted = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._has_acted.wait(WAIT_S_MAX), self._error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        self._thread.join(WAIT_S_MAX)
        assert not self._thread.is_alive()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            with pillion.connect(self._address, timeout_s=WAIT_S_MAX) as session:
                while not self._is_over.is_set():
                    with session.begin(seed=1) as episode:
                        for _ in range(ACTS_OF_EPISODE):
                            self._act(episode)
        except BaseException as error:  # noqa: BLE001 - given to the caller by `__exit__`
            self._error = error

    def _act(self, episode: pillion.Episode) -> None:
        action = episode.act(OBSERVATION)
        outputs = episode.last.outputs
        answer = np.asarray(action).tobytes() + b"".join(outputs[name].tobytes() for name in sorted(outputs))
        first = self.answers.setdefault(episode.last.digest, answer)
        assert answer == first, f"{episode.version} answered otherwise than before"
        self.values.setdefault(episode.version, float(outputs["value"]))
        self.acts += 1
        self._has_acted.set()
        self._is_over.wait(PAUSE_S)


def publish(root: Path) -> Store:
    """A store with the versions; `stable` is the first."""
    for number, version in enumerate(VERSIONS):
        publish_variant(root, version, number * STEP)
    store = Store(root)
    move_alias(store, POLICY, "stable", VERSIONS[0], expected="", by="a fuzzer")
    return store


def ask(admin: str, secret: str, folder: Path, examples: int, seeds: list[int]) -> bool:
    """Runs a schemathesis for each seed, all at once, as operators do not wait for each other either.

    Prints what they print; returns whether they found nothing. `folder` is where they leave their caches.
    """
    words = [
        str(Path(sys.executable).with_name("schemathesis")), "--config-file", str(CONFIG), "run", f"{admin}/openapi.json",
        "--max-examples", str(examples), "--phases", "coverage,fuzzing,stateful", "--generation-database", "none",
        "--warnings", "off", "--no-color", "--header", f"Authorization: Bearer {secret}",
    ]  # fmt: skip
    with ThreadPoolExecutor(len(seeds)) as pool:
        result = list(pool.map(lambda seed: _run([*words, "--seed", str(seed)], folder / str(seed)), seeds))
    print(*(each.stdout + each.stderr for each in result), sep="\n")
    return all(each.returncode == 0 for each in result)


def _run(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    folder.mkdir()
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)


def check_as_before(daemon: Daemon, onlooker: Onlooker, store: Store) -> None:
    """Raises where the daemon or its store is not as it should be, or where nothing was tried."""
    assert daemon.process.poll() is None
    assert daemon.health()["serving"]["starts"] == 1
    assert "Traceback" not in daemon.stderr
    last = daemon.ask("GET", f"/v1/policies/{POLICY}")[1]["operation"]
    assert last["number"] >= OPERATIONS_MIN
    daemon.operation((HTTPStatus.OK, last, {}))
    body = {"version": VERSIONS[0], "reason": "as before", "by": "a fuzzer"}
    done = daemon.operation(daemon.ask("POST", f"/v1/policies/{POLICY}/switch", body))
    assert done["outcome"] == "done", done
    assert done["digest"] in onlooker.answers
    assert onlooker.acts > 100
    for number, version in enumerate(VERSIONS):
        if version in onlooker.values:
            assert abs(onlooker.values[version] - onlooker.values[VERSIONS[0]] - number * STEP) < 1e-3
    words = [sys.executable, "-m", "pillion", "artifact", "fsck", "--store", str(store.root)]
    subprocess.run(words, check=True)


def main() -> int:
    """Fuzzes until every request was sent; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=2_000, help="for each endpoint")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**31))
    parser.add_argument(
        "--operators", type=int, default=2, help="who ask at once; they take this seed and the next ones"
    )
    words = parser.parse_args()
    print(f"--seed {words.seed}", flush=True)
    seeds = [words.seed + number for number in range(words.operators)]
    with tempfile.TemporaryDirectory(prefix="pillion-") as name:
        folder = Path(name)
        store = publish(folder / "store")
        secret = make_token(folder / "tokens", "fuzzer", "admin")
        flags = [
            "--store",
            str(store.root),
            "--policy",
            f"{POLICY}@stable",
            "--listen",
            f"lane://{folder / 'lane.sock'}",
        ]
        for address in (f"unix://{folder / 'admin.sock'}", "http://127.0.0.1:0"):
            flags += ["--admin", address]
        with running(flags, folder / "stderr", {"PILLION_ADMIN__TOKENS_FILE": str(folder / "tokens")}) as daemon:
            with Onlooker(daemon.address) as onlooker:
                is_good = ask(daemon.tcp_admin, secret, folder, words.examples, seeds)
                check_as_before(daemon, onlooker, store)
            print(f"the onlooker acted {onlooker.acts} times, {len(daemon.events('switch_done'))} switches were done")
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
