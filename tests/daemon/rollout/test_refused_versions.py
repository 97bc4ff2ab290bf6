"""A version that fails a check is refused during staging. A version with another spec serves new sessions only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pillion
from pillion_artifacts import Store
from pillion_artifacts.card.golden_pairs import Golden
from pillion_artifacts.store.aliases import move_alias
from pillion_artifacts.store.daemon_locks import locked_digests
from pillion_artifacts.verify.keys import generate_keys, open_signer, public_path
from pillion_artifacts.verify.signing import sign
from tests.conftest import StartDaemon
from tests.daemon.support.policies.batch_sensitive import ROUNDED_WIDTH, publish_plain, publish_rounded
from tests.harness import Daemon

PATH = "/v1/policies/rounded"
OBSERVATION = np.linspace(0.1, 1, ROUNDED_WIDTH, dtype=np.float32)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """`stable` is 1.0.0, which passes every check; each test publishes its own 1.1.0."""
    publish_plain(tmp_path / "store", "1.0.0")
    store = Store(tmp_path / "store")
    move_alias(store, "rounded", "stable", "1.0.0", expected="", by="a test")
    return store


def switch(daemon: Daemon) -> dict[str, Any]:
    return daemon.operation(daemon.ask("POST", f"{PATH}/switch", {"version": "1.1.0"}))


def check_is_refused(daemon: Daemon, store: Store, why: str) -> None:
    """Switches, and checks that nothing has changed for a running episode and for the next one."""
    with pillion.connect(daemon.address) as session, session.begin() as episode:
        before = episode.act(OBSERVATION).tobytes()
        failed = switch(daemon)
        assert failed["outcome"] == "failed"
        assert why in failed["error"]
        assert "\n" not in failed["error"]
        assert episode.act(OBSERVATION).tobytes() == before
        assert session.begin().version == "1.0.0"
    assert daemon.events("switch_failed")[0]["error"] == failed["error"]
    assert store.resolve("rounded@stable").version == "1.0.0"
    assert locked_digests(store.root) == {store.resolve("rounded@1.0.0").digest}


def test_one_whose_certificate_is_below_the_gate(store: Store, start_daemon: StartDaemon) -> None:
    publish_rounded(store.root, version="1.1.0")
    settings = {"staging__certificate": "exact"}
    daemon = start_daemon(policy="rounded@stable", store=store.root, settings=settings)
    check_is_refused(daemon, store, "batch certificate: expected exact, got within 1e-6: an output differs by")


def test_one_that_does_not_answer_its_golden_pairs(store: Store, start_daemon: StartDaemon) -> None:
    observations = np.stack([OBSERVATION] * 3)
    wrong = np.maximum(observations * np.float32(0.7), 0)
    wrong[2, 5] += 0.25
    publish_plain(store.root, "1.1.0", Golden({"observation": observations}, {"action": wrong}))
    daemon = start_daemon(policy="rounded@stable", store=store.root)
    check_is_refused(daemon, store, "output 'action', row 2, element 5: expected")


def test_one_that_nobody_signed(store: Store, tmp_path: Path, start_daemon: StartDaemon) -> None:
    generate_keys(tmp_path / "ann")
    sign(store, "rounded@1.0.0", open_signer(str(tmp_path / "ann"), None))
    publish_plain(store.root, "1.1.0")
    settings = tmp_path / "pillion.toml"
    settings.write_text(
        f'[[trust.keys]]\nname = "ann"\npath = "{public_path(tmp_path / "ann")}"\n'
        '[[trust.rules]]\npolicies = ["*"]\nkeys = ["ann"]\n'
    )
    daemon = start_daemon("--config", str(settings), policy="rounded@stable", store=store.root)
    check_is_refused(daemon, store, "expected signatures of 1 of ann, got none that count")
    sign(store, "rounded@1.1.0", open_signer(str(tmp_path / "ann"), None))
    assert switch(daemon)["outcome"] == "done"


def test_sessions_that_are_connected_stay_on_a_version_of_their_spec_and_new_ones_see_the_other(
    store: Store, start_daemon: StartDaemon
) -> None:
    publish_rounded(store.root, width=7, version="1.1.0")
    daemon = start_daemon(policy="rounded@stable", store=store.root)
    with pillion.connect(daemon.address) as old, old.begin() as under_way:
        before = under_way.act(OBSERVATION).tobytes()
        assert switch(daemon)["outcome"] == "done"
        with pillion.connect(daemon.address) as new, new.begin() as episode:
            assert (new.version, new.spec.observation[0].shape, new.certificate) == ("1.1.0", [7], "within 1e-6")
            assert episode.act(OBSERVATION[:7]).shape == (7,)
            assert under_way.act(OBSERVATION).tobytes() == before
        with old.begin() as next_one:
            assert next_one.act(OBSERVATION).tobytes() == before
            assert (next_one.last.version, old.certificate) == ("1.0.0", "exact")
