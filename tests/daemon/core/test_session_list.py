"""Session summaries: oldest first, in pages that keep the serving loop waiting for a short time only."""

from __future__ import annotations

from pilliond.core.session_list import list_sessions
from pilliond.ipc.session_info import SessionInfo
from pilliond.limits import EPISODE_GROUPS_PER_PIECE_MAX, SESSIONS_PER_PIECE_MAX, ServingLimits
from tests.daemon.support.fakes import DataPlane, act, observation


def every_page(plane: DataPlane) -> list[list[SessionInfo]]:
    """Reads page after page, each from the last number of the one before."""
    pages = []
    after, is_last = 0, False
    while not is_last:
        page, is_last = list_sessions(plane.sessions, after, plane.clock())
        pages.append(page)
        after = page[-1].id if page else after
    return pages


def test_a_page_has_a_bounded_number_of_sessions_and_the_pages_have_each_session_once() -> None:
    plane = DataPlane()
    number = 2 * SESSIONS_PER_PIECE_MAX + 1
    for _ in range(number):
        plane.open()
    pages = every_page(plane)
    assert [len(page) for page in pages] == [SESSIONS_PER_PIECE_MAX, SESSIONS_PER_PIECE_MAX, 1]
    assert [info.id for page in pages for info in page] == list(range(1, number + 1))


def test_a_page_ends_early_where_its_sessions_have_many_groups() -> None:
    plane = DataPlane(ServingLimits(rows_max=8, queue_rows_max=16, episodes_max=EPISODE_GROUPS_PER_PIECE_MAX))
    for _ in range(2):
        welcome = plane.open()
        for sequence in range(1, EPISODE_GROUPS_PER_PIECE_MAX + 1):
            plane.begin(welcome, sequence)
    assert [[info.id for info in page] for page in every_page(plane)] == [[1], [2]]


def test_a_session_is_described_without_the_id_in_its_messages() -> None:
    plane = DataPlane()
    welcome = plane.open(lock_step=False)
    ended, begun = plane.begin(welcome, 1, rows=2), plane.begin(welcome, 2, rows=3)
    for group, rows in ((ended, 2), (begun, 3)):
        plane.deliver(b"peer", act(group, 10, rows), observation(rows))
    plane.replies()
    plane.sessions._forget(plane.sessions._groups[ended.episode])
    plane.clock.now_ns += 2_500_000_000
    ((info,),) = every_page(plane)
    assert info == SessionInfo(
        id=1, carrier="zmq", policy="counter", version="1.2.3", is_evaluation=False, groups=1, rows=3, acts=2, lock_step=False,
        fallback="error", idle_s=2.5,
    )  # fmt: skip
    assert info.id != welcome.session


def test_without_sessions_the_first_page_is_empty_and_the_last() -> None:
    assert list_sessions(DataPlane().sessions, 0, 0) == ([], True)
