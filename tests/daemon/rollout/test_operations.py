"""The steps of an operation: the table by itself, and verbs and cancels in any order.

The serving process and the staging process are fakes that answer late, fail and lose versions. The store is real.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine, Iterator
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any, cast

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import LogCapture
from structlog.typing import FilteringBoundLogger

from pillion_artifacts import Resolved, Store
from pillion_artifacts.errors import ArtifactError
from pillion_artifacts.store.aliases import move_alias
from pillion_artifacts.verify.trust_policy import TrustPolicy
from pillion_bench.variants import POLICY, publish_variant
from pilliond.errors import BusyError, NotReadyError, SwitchError
from pilliond.ipc.control_channel import Loaded, Switched, Warmed
from pilliond.ipc.metrics_page import MetricsPage, make_page
from pilliond.ipc.sealed_version import SealedVersion
from pilliond.rollout.operation import NEXT_STEPS, Kind, Operation, Outcome, Step, begin_operation
from pilliond.rollout.operations import Operations
from pilliond.rollout.releases import Releases
from pilliond.rollout.restore import admitted
from pilliond.settings.schema import Settings, load_settings
from pilliond.supervision.policy_channel import PolicyChannel
from pilliond.supervision.version_table import VersionTable
from pilliond.traffic_split import Arm

TARGET = Resolved(POLICY, "1.1.0", f"sha256:{1:064}")
FINAL = {Step.DONE, Step.FAILED, Step.CANCELLED}
ENDED = {"done", "failed", "cancelled"}


def operation_at(step: Step) -> Operation:
    operation = begin_operation(1, "switch", TARGET, "1.0.0", "ann", "")
    operation.step = step
    return operation


# The table


def test_the_admin_api_shows_the_texts_of_the_steps() -> None:
    assert [step.value for step in Step] == [
        "waiting",
        "starting",
        "verifying",
        "loading, warming and running the golden pairs",
        "certifying",
        "paused",
        "loading",
        "starting the shadow",
        "holding",
        "warming",
        "switching",
        "done",
        "failed",
        "cancelled",
    ]


@pytest.mark.parametrize(("step", "following"), list(product(Step, Step)))
def test_an_operation_takes_the_steps_of_the_table_and_no_others(step: Step, following: Step) -> None:
    operation = operation_at(step)
    if following in NEXT_STEPS[step] or (following is step and step not in FINAL):
        operation.advance(following)
        assert operation.step is following
        assert operation.outcome == (following.value if following in FINAL else "running")
    else:
        with pytest.raises(AssertionError):
            operation.advance(following)
        assert operation.step is step


def test_every_step_leads_to_every_outcome_and_none_leads_on_from_there() -> None:
    reached = {Step.WAITING}
    while more := {after for step in reached for after in NEXT_STEPS[step]} - reached:
        reached |= more
    assert reached == set(Step)
    for step in set(Step) - FINAL:
        assert {Step.FAILED, Step.CANCELLED} < NEXT_STEPS[step]
        onward = {step}
        while more := {after for each in onward for after in NEXT_STEPS[each]} - onward:
            onward |= more
        assert Step.DONE in onward
    assert {step for step in Step if step.is_final} == FINAL == {step for step in Step if not NEXT_STEPS[step]}


def test_steps_in_which_the_serving_process_acts_are_not_cancelled() -> None:
    uncancellable = {Step.LOADING, Step.HOLDING, Step.SWITCHING}
    assert {step for step in Step if not step.is_cancellable} == uncancellable | FINAL


# One operation at a time


def captured_log() -> tuple[FilteringBoundLogger, list[dict[str, Any]]]:
    """Returns a log, and the list of its entries."""
    capture = LogCapture()
    wrapper = structlog.make_filtering_bound_logger(0)
    log = structlog.wrap_logger(None, processors=[capture], wrapper_class=wrapper)
    return cast(FilteringBoundLogger, log), cast(list[dict[str, Any]], capture.entries)


def endings(log: list[dict[str, Any]]) -> dict[int, list[str]]:
    """Returns the outcomes in the log, by the number of the operation."""
    found: dict[int, list[str]] = {}
    for entry in log:
        kind, _, word = entry["event"].partition("_")
        if word in ENDED and kind in Kind.__args__:  # type: ignore[attr-defined]
            found.setdefault(entry["number"], []).append(word)
    return found


class Pace:
    """Makes the caller wait for a few iterations of the event loop, and sometimes fail."""

    def __init__(self, source: random.Random) -> None:
        self.source = source
        self.is_over = False
        """Whether nothing fails any more."""

    async def __call__(self, *errors: Exception) -> None:
        for _ in range(self.source.randrange(4)):
            await asyncio.sleep(0)
        if errors and not self.is_over and self.source.random() < 0.08:
            raise self.source.choice(errors)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    root = tmp_path_factory.mktemp("store")
    for number in range(4):
        publish_variant(root, f"1.{number}.0", float(number))
    return Store(root)


@pytest.fixture(scope="module")
def stable(store: Store) -> Iterator[SealedVersion]:
    version = admitted(store, f"{POLICY}@1.0.0", TrustPolicy())
    yield version
    version.close()


def walk(operation: Operation, pace: Pace, source: random.Random) -> Coroutine[None, None, None]:
    """Takes random steps of the table until it is done or fails."""

    async def work() -> None:
        while True:
            await pace(SwitchError("no"), NotReadyError("not now"), ArtifactError("no such file"))
            following = sorted(NEXT_STEPS[operation.step] - {Step.FAILED, Step.CANCELLED})
            step = source.choice(following)
            if step is Step.DONE:
                return
            operation.advance(step)

    return work()


@settings(max_examples=200)
@given(
    seed=st.integers(0, 2**64),
    commands=st.lists(st.sampled_from(["begin", "cancel", "make way", "wait", "go on"]), min_size=1, max_size=30),
)
def test_every_operation_ends_once_whatever_is_begun_and_cancelled(
    stable: SealedVersion, seed: int, commands: list[str]
) -> None:
    asyncio.run(run_walks(stable, random.Random(seed), commands))


async def run_walks(stable: SealedVersion, source: random.Random, commands: list[str]) -> None:
    log, entries = captured_log()
    bugs: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: bugs.append(context))
    faults: list[tuple[Operation, bool]] = []
    operations = Operations(VersionTable(stable), log, lambda operation, fault: faults.append((operation, fault)))
    pace = Pace(source)
    begun: list[Operation] = []
    waiting: list[asyncio.Task[Any]] = []
    for command in commands:
        current = operations.current
        assert [each for each in begun if not each.step.is_final] == ([current] if current else [])
        if command == "begin":
            try:
                begun.append(
                    operations.begin("switch", TARGET, "ann", "", lambda operation: walk(operation, pace, source))
                )
            except BusyError:
                assert current is not None
            else:
                assert current is None
        elif command == "cancel":
            waiting.append(asyncio.create_task(cancelled(operations)))
        elif command == "make way":
            waiting.append(asyncio.create_task(operations.make_way("the next one")))
        elif command == "wait":
            waiting.append(asyncio.create_task(operations.wait()))
        else:
            await asyncio.sleep(0)
    await operations.close()
    for result in await asyncio.gather(*waiting):
        assert result is None or result.outcome is Outcome.CANCELLED
    assert operations.current is None
    assert not bugs
    assert endings(entries) == {operation.number: [operation.outcome.value] for operation in begun}
    assert [operation.number for operation in begun] == list(range(1, len(begun) + 1))
    assert [operation for operation, _ in faults] == [each for each in begun if each.outcome is Outcome.FAILED]
    assert sum(operations.switches.values()) == len(begun)


async def cancelled(operations: Operations) -> Operation | None:
    """Cancels the operation that runs, and checks the result."""
    before = operations.current
    result = await operations.cancel("ann wants it")
    if result is not None:
        assert result is before
        assert result.error in ("ann wants it", "the next one")
    return result


def test_an_operation_that_is_cancelled_at_once_cleans_up_after_itself(stable: SealedVersion) -> None:
    cleaned: list[int] = []

    async def work(operation: Operation) -> None:
        try:
            await asyncio.sleep(3_600)
        finally:
            cleaned.append(operation.number)

    async def scenario() -> None:
        operations = Operations(VersionTable(stable), captured_log()[0], lambda operation, fault: None)
        first = operations.begin("hold", TARGET, "ann", "", work)
        assert await operations.cancel("not now") is first
        second = operations.begin("hold", TARGET, "ann", "", work)
        await operations.close()
        assert (first.error, second.error) == ("not now", "it was cancelled")

    asyncio.run(scenario())
    assert cleaned == [1, 2]


def test_a_cancel_changes_nothing_while_the_serving_process_switches(stable: SealedVersion) -> None:
    async def work(operation: Operation) -> None:
        operation.advance(Step.SWITCHING)
        for _ in range(5):
            await asyncio.sleep(0)

    async def scenario() -> None:
        operations = Operations(VersionTable(stable), captured_log()[0], lambda operation, fault: None)
        operation = operations.begin("switch", TARGET, "ann", "", work)
        assert await operations.cancel("not now") is None
        assert operation.step is Step.SWITCHING
        await operations.wait()
        assert (operation.outcome, operation.error) == (Outcome.DONE, "")

    asyncio.run(scenario())


def test_a_step_that_the_table_does_not_have_fails_the_operation_as_a_bug(stable: SealedVersion) -> None:
    bugs: list[dict[str, Any]] = []

    async def work(operation: Operation) -> None:
        operation.advance(Step.CERTIFYING)

    async def scenario() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: bugs.append(context))
        operations = Operations(VersionTable(stable), captured_log()[0], lambda operation, fault: None)
        operation = await operations.run("stage", TARGET, "ann", "", work)
        assert (operation.outcome, operation.error) == (Outcome.FAILED, "a bug: see the log")

    asyncio.run(scenario())
    (bug,) = bugs
    assert isinstance(bug["exception"], AssertionError)


# The verbs


class FakeChannel:
    """A serving process that answers late, refuses, and sometimes unloads a version before it is switched to."""

    def __init__(self, stable: SealedVersion, page: MetricsPage, pace: Pace) -> None:
        self.version_table = VersionTable(stable)
        self.page = page
        self.is_ready = True
        self.is_stopping = False
        self.on_serving = lambda: None
        self._pace = pace

    @property
    def stable(self) -> SealedVersion:
        return self.version_table.stable

    async def load(self, version: SealedVersion) -> Loaded:
        version.metrics_index = self.version_table.free_metrics_index()
        await self._pace(SwitchError("it does not load"), NotReadyError("it died"))
        self.version_table.add(version)
        return Loaded(version.key, {}, 1_000_000, 1_000)

    async def switch(self, version: SealedVersion) -> Switched:
        if self._pace.source.random() < 0.1:
            self.unload(version)
        await self._pace(SwitchError("it died"))
        if self.version_table.find(version.key) is None:
            raise SwitchError("it is not loaded")
        was = self.stable.key
        self.version_table.switch(version.key)
        return Switched(version.key, was, 1)

    def why_out(self, version: SealedVersion) -> str:
        return ""

    async def retry(self, version: SealedVersion) -> None:
        """No version is ever out."""

    async def route(self, arms: list[Arm]) -> None:
        await self._pace(SwitchError("it died"))
        self.version_table.arms = arms

    async def warm(self, version: SealedVersion) -> Warmed:
        await self._pace(NotReadyError("it died"))
        return Warmed(version.key, 1, 1_000)

    def unload(self, version: SealedVersion) -> None:
        in_use = {self.stable.key, *(arm.digest for arm in self.version_table.arms)}
        if self.version_table.find(version.key) is version and version.key not in in_use:
            self.version_table.remove(version.key)

    def end_shadow(self) -> None:
        """No shadow is begun here."""


class FakeStager:
    """Stages in the steps of the staging process, with random pauses and failures."""

    def __init__(self, store: Store, pace: Pace) -> None:
        self._store = store
        self._pace = pace

    async def stage(self, operation: Operation, target: Resolved, live_metrics_index: int) -> SealedVersion:
        for step in (Step.STARTING, Step.VERIFYING, Step.TRYING, Step.CERTIFYING):
            operation.advance(step)
            await self._pace(SwitchError("its golden pairs differ"))
            if self._pace.source.random() < 0.2:
                operation.advance(Step.PAUSED)
                await self._pace(SwitchError("it was paused for too long"))
                if self._pace.source.random() < 0.5:
                    operation.advance(step)
        return admitted(self._store, f"{target.policy}@{target.digest}", TrustPolicy())


VERBS = ["stage", "switch", "route", "roll back", "warm up", "cancel", "go on", "go on", "go far"]


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**64),
    commands=st.lists(st.sampled_from(VERBS), min_size=4, max_size=24),
    follows=st.booleans(),
)
def test_verbs_and_cancels_in_any_order_take_no_illegal_step_and_end_once(
    store: Store, seed: int, commands: list[str], follows: bool
) -> None:
    reset_alias(store)
    asyncio.run(run_verbs(store, random.Random(seed), commands, f"{POLICY}@stable" if follows else POLICY))


def reset_alias(store: Store) -> None:
    now = {alias.alias: alias.version for alias in store.aliases(POLICY)}.get("stable", "")
    if now != "1.0.0":
        move_alias(store, POLICY, "stable", "1.0.0", expected=now, by="a test", reason=datetime.now(UTC).isoformat())


async def run_verbs(store: Store, source: random.Random, commands: list[str], reference: str) -> None:
    bugs: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: bugs.append(context))
    log, entries = captured_log()
    page = MetricsPage(make_page())
    pace = Pace(source)
    channel = FakeChannel(admitted(store, f"{POLICY}@1.0.0", TrustPolicy()), page, pace)
    releases = Releases(settings_of(store.root), cast(PolicyChannel, channel), reference, log)
    releases.stager = cast(Any, FakeStager(store, pace))
    asked: list[asyncio.Task[Any]] = []
    try:
        for command in commands:
            if command.startswith("go"):
                await asyncio.sleep(0 if command == "go on" else 0.01)
            else:
                asked.append(asyncio.create_task(ask(releases, channel, source, command)))
        pace.is_over = True
        await asyncio.gather(*asked)
        while releases.operations.current is not None:
            await releases.operations.wait()
        assert not bugs
        last = releases.operations.last
        count = last.number if last else 0
        by_number = endings(entries)
        assert set(by_number) == set(range(1, count + 1))
        assert all(len(words) == 1 for words in by_number.values())
        for number, (word,) in by_number.items():
            operation = releases.operations.find(number)
            assert operation is not None
            assert operation.outcome == word
        if reference != POLICY:
            assert store.resolve(reference).version == channel.stable.version
    finally:
        await releases.close()
        channel.version_table.close()
        page.close()


async def ask(releases: Releases, channel: FakeChannel, source: random.Random, verb: str) -> None:
    """Asks for a verb on a random version, as the admin port does."""
    target = releases.resolve(f"1.{source.randrange(4)}.0")
    try:
        match verb:
            case "stage":
                releases.stage(target, "ann", "")
            case "switch":
                releases.switch(target, "ann", "")
            case "route":
                others = [number for number in range(4) if channel.stable.version != f"1.{number}.0"]
                versions = source.sample(others, source.randrange(4))
                arms = [(f"arm-{number}", releases.resolve(f"1.{number}.0"), 0.25) for number in versions]
                releases.route(arms, "ann", "")
            case "roll back":
                await releases.roll_back("ann", "")
            case "warm up":
                releases.warm_up(channel.stable, "ann", "")
            case "cancel":
                await releases.operations.cancel("ann wants it")
    except (SwitchError, ArtifactError):
        # Refused: another operation runs, or there is nothing to go back to.
        return


def settings_of(root: Path) -> Settings:
    return load_settings(None, {}, {"store": {"path": str(root), "policy": POLICY}})
