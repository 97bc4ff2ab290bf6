"""ONNX Runtime on CUDA replays a graph for each bucket, all captured before it is bound. The GPU is a stub.

The stub replays what it captured under a number, whatever is bound then, as ONNX Runtime does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pillion_worker.limits import FALLBACK_CHARS_MAX
from pillion_worker.onnx_engine.graphs import why_unsupported, without
from pilliond.engine.worker import WorkerState
from tests.worker.support.policies import TABLE, looking_up, summing
from tests.worker.support.processes import Host
from tests.worker.support.stub_gpu import StubGpu

ROWS_MAX = 4
BUCKETS = 3
"""1, 2 and 4 rows."""


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StubGpu:
    return StubGpu(tmp_path, monkeypatch)


def answers(host: Host, rows: int) -> bool:
    """Whether batches of so many rows are answered by what they ask, in several memories and again."""
    for shift in range(4):
        asked = [(row + shift) % len(TABLE) for row in range(rows)]
        if host.run(asked) != [TABLE[index] for index in asked]:
            return False
    return True


@pytest.mark.parametrize(
    ("settings", "captured"),
    [
        ({}, BUCKETS),
        # Its memories share them, as do the pieces of a strict batch.
        ({"depth": 2}, BUCKETS),
        ({"strict_rows": 2}, 1),
    ],
)
def test_every_bucket_replays_its_own_graph(gpu: StubGpu, settings: dict[str, Any], captured: int) -> None:
    # No capture can fail later: there is memory for no other graph.
    gpu.set(graphs=captured)
    with Host(looking_up(), ROWS_MAX, device="cuda:0", **settings) as host:
        host.start()
        described = host.engine.describe()
        assert (described["device"], described["graphs"]) == ("cuda:0", "captured")
        assert gpu.captured() == captured
        assert all(answers(host, rows) for rows in range(1, ROWS_MAX + 1))
        # None was captured while it served.
        assert gpu.captured() == captured


def test_states_are_read_and_written_around_a_graph(gpu: StubGpu) -> None:
    with Host(summing(), ROWS_MAX, device="cuda:0") as host:
        host.start()
        assert host.run([1.0, 2.0]) == [1.0, 2.0]
        host.engine.free[0].states[0][0][:2] = host.written[-1][:2]
        assert host.run([3.0, 4.0]) == [4.0, 6.0]
        host.engine.free[0].states[0][0][:1] = host.written[-1][1:2]
        assert host.run([5.0]) == [11.0]
        assert host.engine.describe()["graphs"] == "captured"
        assert gpu.captured() > 0


@pytest.mark.parametrize(
    ("how", "captured", "why"),
    [
        ("refused", 0, "none: onnxruntime cannot load the model: This session cannot use the graph capture feature"),
        (0, 0, "none: capturing a CUDA graph: operation not permitted when stream is capturing"),
        (BUCKETS - 1, BUCKETS - 1, "none: capturing a CUDA graph: operation not permitted when stream is capturing"),
    ],
)
def test_a_model_that_cannot_be_captured_runs_without_graphs_and_says_so(
    gpu: StubGpu, how: object, captured: int, why: str
) -> None:
    gpu.set(graphs=how)
    with Host(looking_up(), ROWS_MAX, device="cuda:0", depth=2) as host:
        host.start()
        described = host.engine.describe()
        # No setting asks for graphs, so that this is no fallback.
        assert (described["device"], described["graphs"], described.get("fallback")) == ("cuda:0", why, None)
        assert all(answers(host, rows) for rows in range(1, ROWS_MAX + 1))
        assert gpu.captured() == captured


def test_without_device_memory_for_tensors_auto_computes_on_the_cpu_and_a_device_by_name_refuses_in_one_line(
    gpu: StubGpu,
) -> None:
    gpu.set(tensors="none")
    why = "onnxruntime: Failed to allocate memory for requested buffer of size 4"
    with Host(looking_up(), ROWS_MAX, device="auto") as host:
        host.start()
        described = host.engine.describe()
        assert (described["device"], described["fallback"]) == ("cpu", f"cuda:0 fails: {why}")
        assert all(answers(host, rows) for rows in range(1, ROWS_MAX + 1))
    with Host(looking_up(), ROWS_MAX, device="cuda:0") as host:
        host.attach()
        host.pump(lambda: host.engine.state is not WorkerState.LOADING)
        assert (host.engine.state, host.engine.reason) == (WorkerState.LOST, why)


def test_the_cpu_says_nothing_of_graphs() -> None:
    with Host(looking_up(), ROWS_MAX) as host:
        host.start()
        assert "graphs" not in host.engine.describe()


def test_versions_that_ignore_the_number_of_a_graph_get_none() -> None:
    assert [why_unsupported(each) for each in ("1.22.0", "1.23.1", "2.0.0", "1.32.0.dev2+cu12")] == [""] * 4
    assert why_unsupported("1.17.3") == "onnxruntime 1.17.3 is older than 1.22"


def test_a_long_reason_stays_a_sentence() -> None:
    assert len(without("x" * 10 * FALLBACK_CHARS_MAX)) == FALLBACK_CHARS_MAX
