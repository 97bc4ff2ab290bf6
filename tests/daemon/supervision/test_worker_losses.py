"""Whether and when a lost worker is replaced."""

from __future__ import annotations

from pilliond.limits import (
    WORKER_DELAY_S_MAX,
    WORKER_DELAY_S_MIN,
    WORKER_LOSSES_MAX,
    WORKER_SERVING_DELAY_S_MAX,
    WORKER_STEADY_S_MIN,
)
from pilliond.supervision.worker_losses import WorkerLosses

STEADY_NS = int(WORKER_STEADY_S_MIN * 1e9)


def lose(losses: WorkerLosses, *, batches: int = 0, reruns: int = 0, served_ns: int = 0) -> float | None:
    """Starts a worker and loses it; returns the pause in seconds."""
    losses.started(1)
    return losses.lost(1 + served_ns, batches, reruns, is_refused=False)


def test_the_pause_grows_and_a_version_that_completes_nothing_is_out() -> None:
    losses = WorkerLosses()
    pauses = [lose(losses) for _ in range(WORKER_LOSSES_MAX)]
    assert pauses == [0.0, *(WORKER_DELAY_S_MIN * 2**n for n in range(WORKER_LOSSES_MAX - 2)), None]


def test_a_refused_model_is_out_at_once() -> None:
    assert WorkerLosses().lost(1, 0, 0, is_refused=True) is None


def test_acts_of_one_session_count_once() -> None:
    losses = WorkerLosses()
    assert losses.lost(1, 0, 0) is not None
    for _ in range(20):
        assert losses.lost(1, 0, 0, is_repeat=True) is not None
    for _ in range(WORKER_LOSSES_MAX - 2):
        assert losses.lost(1, 0, 0) is not None
    assert losses.lost(1, 0, 0) is None


def test_a_version_that_completes_batches_is_never_out_and_its_pauses_stay_short() -> None:
    losses = WorkerLosses()
    pauses = [lose(losses, batches=1) for _ in range(3 * WORKER_LOSSES_MAX)]
    assert pauses[-1] == WORKER_SERVING_DELAY_S_MAX < WORKER_DELAY_S_MAX


def test_losses_whose_acts_run_again_have_no_pause_and_no_end() -> None:
    losses = WorkerLosses()
    assert {lose(losses, reruns=8) for _ in range(3 * WORKER_LOSSES_MAX)} == {0.0}


def test_an_act_that_is_alone_counts_again_and_a_batch_that_was_completed_in_between_clears_that() -> None:
    losses = WorkerLosses()
    for _ in range(3 * WORKER_LOSSES_MAX):
        assert lose(losses, batches=5, reruns=1) == 0.0
        assert lose(losses) is not None
    outcomes = []
    for _ in range(WORKER_LOSSES_MAX):
        lose(losses, reruns=1)
        outcomes.append(lose(losses))
    assert outcomes[-1] is None


def test_a_worker_that_served_steadily_clears_the_pause() -> None:
    losses = WorkerLosses()
    for _ in range(5):
        lose(losses, batches=1)
    assert lose(losses, batches=1, served_ns=STEADY_NS) == 0.0


def test_a_shortage_has_a_pause_from_the_first_on_and_never_takes_a_version_out() -> None:
    losses = WorkerLosses()
    pauses = []
    for number in range(3 * WORKER_LOSSES_MAX):
        now_ns = number * STEADY_NS
        losses.started(now_ns)
        pauses.append(losses.short(now_ns))
    assert pauses[:3] == [WORKER_DELAY_S_MIN, WORKER_DELAY_S_MIN, 2 * WORKER_DELAY_S_MIN]
    assert pauses[-1] == WORKER_SERVING_DELAY_S_MAX
    assert losses.barren == 0
