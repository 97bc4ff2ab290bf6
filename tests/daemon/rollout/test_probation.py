"""Automatic rollback: the bounds by themselves, and a real daemon, which does not try the version again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import pillion
from pillion_artifacts import Store
from pillion_artifacts.store.aliases import move_alias
from pillion_bench.variants import POLICY, publish_variant
from pilliond.ipc.metrics_page import VERSION_CELLS, MetricsPage, make_page
from pilliond.rollout.live_window import LiveWindow, Reading
from pilliond.rollout.probation import Probation
from pilliond.settings.schema import AutoRollbackSettings
from tests.conftest import StartDaemon
from tests.harness import SMALL_BATCHES, blob_of, publish

METRICS_INDEX = 2
BOUNDS = AutoRollbackSettings(watch_s=60, acts_min=100, p99_us_max=1_000, p99_ratio_max=3)


@pytest.fixture
def page() -> Iterator[MetricsPage]:
    page = MetricsPage(make_page())
    yield page
    page.close()


def judged(page: MetricsPage, acts: int = 0, run_us: int = 40, usual_us: float | None = None, **counts: int) -> str:
    """Returns the bound that these acts and counts cross, or an empty text."""
    version_cells = VERSION_CELLS[METRICS_INDEX]
    # Failures before the switch do not count.
    page.cells[version_cells.failures] = 50
    probation = Probation(BOUNDS, Reading(page, METRICS_INDEX), 10.0, None if usual_us is None else usual_us * 1_000)
    for _ in range(acts):
        page.acts += (0, run_us * 1_000)
        page.batches += (1, 1, 1_000, METRICS_INDEX, 1)
    page.flush()
    for name, count in counts.items():
        page.cells[getattr(version_cells, name)] += count
    fault = probation.fault(Reading(page, METRICS_INDEX))
    return "" if fault is None else fault[0]


@pytest.mark.parametrize(
    ("acts", "counts", "crossed"),
    [
        (1_000, {}, ""),
        (1_000, {"failures": 10}, ""),
        (1_000, {"failures": 11}, "errors"),
        (50, {"failures": 40}, ""),
        (0, {"failures": 100}, "errors"),
        (1_000, {"late": 100}, ""),
        (1_000, {"late": 120}, "deadlines"),
        (1, {"non_finite": 1}, "non_finite"),
    ],
)
def test_a_bound_is_crossed_by_what_came_since_the_switch(
    page: MetricsPage, acts: int, counts: dict[str, int], crossed: str
) -> None:
    assert judged(page, acts, **counts) == crossed


def test_p99_is_bounded_by_itself_and_by_that_of_the_version_before(page: MetricsPage) -> None:
    assert judged(page, 1_000, run_us=200) == ""
    assert judged(page, 1_000, run_us=200, usual_us=100.0) == ""
    assert judged(page, 1_000, run_us=200, usual_us=20.0) == "p99"
    assert judged(page, 1_000, run_us=2_000) == "p99"
    assert judged(page, 150, run_us=2_000) == ""


def test_probation_ends(page: MetricsPage) -> None:
    probation = Probation(BOUNDS, Reading(page, METRICS_INDEX), 10.0, None)
    assert (probation.is_over(69.9), probation.is_over(70.0)) == (False, True)


def test_the_p99_of_a_reading_lies_within_the_bucket_that_holds_it(page: MetricsPage) -> None:
    window = LiveWindow(page)
    window.look(METRICS_INDEX)
    for number in range(1_000):
        page.acts += (0, 400_000 if number < 30 else 15_000)
        page.batches += (1, 1, 1_000, METRICS_INDEX, 1)
    page.flush()
    window.look(METRICS_INDEX)
    recent = window.recent()
    assert recent is not None
    p99_ns = recent[0].p99_ns()
    assert (recent[0].acts, recent[1]) == (1_000, 1)
    assert p99_ns is not None
    assert 300_000 < p99_ns <= 500_000


def publish_steep(store: Store, version: str) -> None:
    """A version whose value is small for what staging draws, and overflows for observations of 1e10."""
    before = store.load(f"{POLICY}@1.0.0")
    model = filled(before.model, b"value.1.0.weight\x4a\x80\x64", 128 * 25, 1e-6)
    model = filled(model, b"value.1.2.weight\x4a\x80\x80\x04", 128 * 128, 1.0)
    model = filled(model, b"value.2.weight\x4a\x80\x04", 128, 3e36)
    card = blob_of(store.root, f"{POLICY}@1.0.0", "model_card.yaml").read_text()
    publish(store.root, POLICY, version, model, card.replace("version: 1.0.0\n", f"version: {version}\n"))


def filled(model: bytes, name: bytes, count: int, value: float) -> bytes:
    """Returns the model with all numbers of an initializer the same. `name` ends with field 9, `raw_data`, and its length."""
    at = model.index(name) + len(name)
    return model[:at] + np.full(count, value, "<f4").tobytes() + model[at + 4 * count :]


def test_a_version_that_answers_with_infinities_is_rolled_back_and_not_tried_again_automatically(
    tmp_path: Path, start_daemon: StartDaemon
) -> None:
    publish_variant(tmp_path / "store", "1.0.0", 0.0)
    store = Store(tmp_path / "store")
    publish_steep(store, "1.1.0")
    move_alias(store, POLICY, "stable", "1.0.0", expected="")
    daemon = start_daemon(policy=f"{POLICY}@stable", store=store.root, settings=SMALL_BATCHES)
    overflow = np.full((5, 5), 1e10, np.float32)
    with pillion.connect(daemon.address) as session:
        session.begin().act(overflow)
        move_alias(store, POLICY, "stable", "1.1.0", expected="1.0.0", reason="promoted")
        daemon.wait_for_event("switch_done")
        episode = session.begin()
        episode.act(overflow)
        assert not np.isfinite(episode.last.outputs["value"])
        taken = daemon.wait_for_event("auto_rollback")
        assert (taken["policy"], taken["fault"]) == (f"{POLICY}@1.1.0", "non_finite")
        daemon.wait_for_event("rollback_done")
        assert session.begin().version == "1.0.0"
    last = store.history(POLICY)[-1]
    assert (last.action, last.version, last.by) == ("rollback", "1.0.0", "pilliond")
    assert last.reason.startswith("automatic rollback: 1 acts were answered with a NaN")
    assert daemon.metric("pillion_auto_rollbacks_total", reason="non_finite") == 1
    move_alias(store, POLICY, "stable", "1.1.0", expected="1.0.0", reason="again")
    daemon.wait_for_event("alias_not_followed")


def test_an_arm_that_answers_with_infinities_ends_by_itself_and_its_share_goes_back_to_the_stable_version(
    tmp_path: Path, start_daemon: StartDaemon
) -> None:
    publish_variant(tmp_path / "store", "1.0.0", 0.0)
    publish_variant(tmp_path / "store", "1.2.0", 100.0)
    store = Store(tmp_path / "store")
    publish_steep(store, "1.1.0")
    daemon = start_daemon(policy=f"{POLICY}@1.0.0", store=store.root, settings=SMALL_BATCHES)
    arms = [{"name": "canary", "version": "1.1.0", "share": 0.5}, {"name": "b", "version": "1.2.0", "share": 0.25}]
    path = f"/v1/policies/{POLICY}"
    assert daemon.operation(daemon.ask("PUT", f"{path}/route", {"arms": arms}))["outcome"] == "done"
    with pillion.connect(daemon.address) as session:
        group = session.begin_many(64, seeds=range(64))
        group.act(np.full((64, 5, 5), 1e10, np.float32))
        assert not np.isfinite(group.last.outputs["value"]).all()
        taken = daemon.wait_for_event("auto_rollback")
        assert (taken["policy"], taken["arm"], taken["fault"]) == (f"{POLICY}@1.1.0", "canary", "non_finite")
        daemon.wait_for_event("route_done", 2)
        reply = daemon.ask("GET", path)[1]
        assert (reply["route"], reply["stable"]) == ([arms[1]], "1.0.0")
        group = session.begin_many(64, seeds=range(64))
        group.act(np.zeros((64, 5, 5), np.float32))
        kept = {store.resolve(f"{POLICY}@{version}").digest for version in ("1.0.0", "1.2.0")}
        assert set(group.last.row_digests) == kept
    last = store.history(POLICY)[-1]
    assert (last.action, last.by) == ("route", "pilliond")
    assert last.reason.startswith("canary 1.1.0 automatic rollback: ")
    assert daemon.metric("pillion_auto_rollbacks_total", reason="non_finite") == 1
    daemon.kill()
    again = start_daemon(policy=f"{POLICY}@1.0.0", store=store.root, settings=SMALL_BATCHES)
    assert again.ask("GET", path)[1]["route"] == [arms[1]]


def test_a_version_whose_answers_are_not_finite_when_it_is_staged_never_serves(
    tmp_path: Path, start_daemon: StartDaemon
) -> None:
    publish_variant(tmp_path, "1.0.0", 0.0)
    publish_variant(tmp_path, "1.1.0", float("nan"))
    daemon = start_daemon(policy=f"{POLICY}@1.0.0", store=tmp_path, settings=SMALL_BATCHES)
    failed = daemon.operation(daemon.ask("POST", f"/v1/policies/{POLICY}/switch", {"version": "1.1.0"}))
    assert (failed["outcome"], failed["error"]) == (
        "failed",
        "output 'value': expected finite numbers, got a NaN or an infinity",
    )
