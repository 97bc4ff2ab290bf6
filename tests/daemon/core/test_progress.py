"""Whether a worker hangs is judged by what it owes, and by time that this process has seen pass."""

from __future__ import annotations

from pilliond.core.progress import Progress
from pilliond.limits import LOOK_NS_MAX, NEVER_NS


def test_what_is_owed_grows_from_look_to_look_and_ends_with_the_step() -> None:
    progress = Progress()
    owed = []
    for owes_since_ns, now_ns in [(NEVER_NS, 0), (5, 100), (5, 200), (5, 350), (360, 400), (360, 450), (NEVER_NS, 500)]:
        progress.look(owes_since_ns, now_ns)
        owed.append(progress.owed_ns)
    assert owed == [0, 0, 100, 250, 0, 50, 0]


def test_the_time_of_a_process_that_was_stopped_itself_does_not_count() -> None:
    progress = Progress()
    progress.look(5, 10)
    progress.look(5, 3_600 * 1_000_000_000)
    assert progress.owed_ns == LOOK_NS_MAX


def test_a_worker_that_owes_one_step_after_another_does_not_hang() -> None:
    progress = Progress()
    for number in range(1_000):
        progress.look(number, number * 100)
        assert progress.owed_ns == 0
