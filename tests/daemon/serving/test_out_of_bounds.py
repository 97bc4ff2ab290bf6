"""An integer that is out of the card's bounds is refused before anything runs, and no other act of its batch notices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import pillion
from pillion.errors import RefusedError
from pillion_artifacts.card.model_card import Distribution
from pillion_protocol import Error, ErrorCode, decode
from pilliond.engine.onnx import OnnxEngine
from pilliond.versions.loaded_version import Identity, Version
from tests.conftest import StartDaemon
from tests.daemon.support.fakes import DIGEST, DataPlane, act
from tests.daemon.support.policies.graphs import ENTRIES, SPEC, publish_table, table_model
from tests.harness import Daemon

OUTSIDE = [ENTRIES, -1, 2**62, -(2**63)]


class TablePlane(DataPlane):
    """A data plane that serves `table`."""

    def first_version(self, safe_action: list[float] | None) -> Version:
        engine = OnnxEngine(table_model(), SPEC, [], self.limits.rows_max)
        return Version(Identity("table", "1.0.0", DIGEST), SPEC, Distribution(), engine, safe_action)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("table")
    publish_table(root)
    return root


@pytest.fixture
def table_daemon(root: Path, short_path: Path, start_daemon: StartDaemon) -> Daemon:
    listen = [f"{carrier}://{short_path}/table-{carrier}.sock" for carrier in ("ipc", "lane")]
    return start_daemon(policy="table", store=root, listen=listen)


def numbers(*values: int) -> bytes:
    return np.array(values, np.int64).tobytes()


@pytest.mark.parametrize("carrier", [0, 1])
def test_an_observation_out_of_bounds_is_refused_and_its_episode_goes_on(table_daemon: Daemon, carrier: int) -> None:
    with pillion.connect(table_daemon.addresses[carrier]) as session, session.begin(seed=1) as episode:
        for number in OUTSIDE:
            with pytest.raises(RefusedError) as refused:
                episode.act(np.int64(number))
            error = refused.value
            assert (error.code, error.expected, error.actual) == ("out_of_bounds", "0 to 15", f"{number} in row 0")
            assert "observation 'observation' is out of its bounds" in str(error)
            assert episode.act(np.int64(5)) == 2.5
    assert table_daemon.metric("pillion_requests_total", outcome="out_of_bounds") == len(OUTSIDE)


def test_only_the_act_with_the_bad_number_is_refused_in_a_batch() -> None:
    plane = TablePlane()
    welcome = plane.open()
    first, bad, last = (plane.begin(welcome, number, rows=2) for number in (1, 2, 3))
    plane.deliver(b"peer", act(first, 4, rows=2), numbers(1, 2))
    plane.deliver(b"peer", act(bad, 5, rows=2), numbers(3, ENTRIES))
    plane.deliver(b"peer", act(last, 6, rows=2), numbers(4, 5))
    plane.run()
    sent = {decode(bytes(message[1])).sequence: message for message in plane.transport.sent}
    error = decode(bytes(sent[5][1]))
    assert isinstance(error, Error)
    assert (error.code, error.actual) == (ErrorCode.OUT_OF_BOUNDS, "16 in row 1")
    assert np.frombuffer(sent[4][2], np.float32).tolist() == [0.5, 1.0]
    assert np.frombuffer(sent[6][2], np.float32).tolist() == [2.0, 2.5]


def test_a_refused_row_is_not_left_where_a_batch_of_fewer_rows_would_run_it() -> None:
    plane = TablePlane()
    welcome = plane.open()
    sound, bad = plane.begin(welcome, 1, rows=5), plane.begin(welcome, 2)
    plane.deliver(b"peer", act(sound, 3, rows=5), numbers(1, 2, 3, 4, 5))
    plane.deliver(b"peer", act(bad, 4), numbers(2**40))
    replies = {reply.sequence: reply for reply in plane.replies()}
    assert [type(replies[number]).__name__ for number in (3, 4)] == ["Action", "Error"]
    assert plane.events == []
