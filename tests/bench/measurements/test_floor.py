"""`pillion bench floor` measures both echoes and the bare engine."""

from __future__ import annotations

from pillion_artifacts import Store
from pillion_bench.exchange import Exchange, exchange_of
from pillion_bench.measurements.floor import Baselines
from pillion_bench.process.placement import Placement
from tests.bench.conftest import report_of, run_pillion
from tests.harness import STORE

NOWHERE = Placement("none", None, None)


def test_the_report_has_a_count_and_percentiles_of_each_baseline() -> None:
    report = report_of("floor", "--seconds", "0.2", "--rows", "3")
    assert report["floors"].keys() == {"zmq", "lane", "engine"}
    for floor in report["floors"].values():
        assert floor.keys() == {"n", "p50", "p90", "p99", "p99.9"}
        assert floor["n"] > 0
    assert report["n"] == report["floors"]["zmq"]["n"]
    assert report["floor_us"] == {"zmq": report["floors"]["zmq"]["p50"], "lane": report["floors"]["lane"]["p50"]}
    assert report["latency_us"].keys() == report["engine_us"].keys() == {"p50", "p90", "p99", "p99.9"}


def test_the_messages_are_as_large_as_a_real_act() -> None:
    spec = Store(STORE).load("lunar-lander").card.spec()
    exchange = exchange_of(spec, 5)
    assert exchange.act_bytes[1:] == [5 * 8 * 4]
    assert exchange.action_bytes[1:] == [5 * 8]
    assert 20 < exchange.act_bytes[0] < exchange.action_bytes[0] < 200


def test_a_message_that_the_socket_cannot_take_has_no_baseline() -> None:
    with Baselines(Exchange([50, 8_000_000], [50, 8]), NOWHERE) as baselines:
        sample = baselines.measure(0.5)
    assert len(sample.zmq_ns) > 0
    assert len(sample.lane_ns) == 0


def test_an_unknown_policy_is_refused_in_one_line() -> None:
    done = run_pillion("bench", "floor", "--policy", "nobody")
    assert done.returncode == 65
    assert done.stderr.count("\n") == 1
