"""`pillion bench compare` measures all systems alike, and withholds the figures of one that answers wrongly."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest

from pillion import cli
from pillion_artifacts import Store
from pillion_bench.compare import systems
from pillion_bench.compare.client_fleet import ClientFleet, FleetFigures, Workload
from pillion_bench.compare.compare import CompareOptions
from pillion_bench.compare.peer_server import PeerServer
from pillion_bench.compare.report import Series, first_error, ratios
from pillion_bench.compare.systems import PEERS_STAMP, SYSTEMS, Selection, System, choose, versions
from pillion_bench.errors import BenchError, PeerError, PeersMissingError
from pillion_bench.process.daemon_process import DaemonProcess
from tests.bench.conftest import report_of, run_pillion
from tests.harness import STORE, WAIT_S_MAX

SHORT = ("--seconds", "0.3", "--warmup", "0.05")
FIGURES = {"name", "clients", "error", "n", "rows_per_s", "latency_us", "engine_us", "added_us"}
PERCENTILES = {"p50", "p90", "p99", "p99.9"}
PEERS = [system for system in SYSTEMS if system.is_peer]


@pytest.fixture(scope="module")
def compared() -> dict[str, Any]:
    """The baselines and both carriers with one policy, with one client and with three."""
    return report_of(
        "compare", *SHORT, "--contestants", "floor,lane,zmq", "--policies", "lunar-lander", "--clients", "1,3",
    )  # fmt: skip


@pytest.fixture
def peers_environment() -> None:
    """Skips the test if the environment of `make peers` is missing."""
    if choose([]).left_out.get("openpi"):
        message = "the environment of the peers is missing: make peers"
        if os.environ.get("PILLION_REQUIRE_SYSTEM_PACKAGES"):
            pytest.fail(message)
        pytest.skip(message)


@pytest.fixture
def lander() -> Workload:
    """The workload of lunar-lander."""
    return Workload.of(Store(STORE).load("lunar-lander"))


@pytest.fixture
def lane_address() -> Iterator[str]:
    """A daemon that serves lunar-lander over the lane."""
    with DaemonProcess(STORE, "lunar-lander", carrier="lane") as daemon:
        yield daemon.address


def system(name: str) -> System:
    (found,) = [system for system in SYSTEMS if system.name == name]
    return found


def test_every_system_is_measured_with_each_number_of_clients(compared: dict[str, Any]) -> None:
    (trial,) = compared["trials"]
    measured = [(row["name"], row["clients"]) for row in trial["rows"]]
    assert measured == [
        ("floor-lane", 1), ("floor-zmq", 1), ("lane", 1), ("lane", 3), ("zmq", 1), ("zmq", 3), ("lane, again", 1), ("lane, again", 3),
    ]  # fmt: skip
    for row in trial["rows"]:
        assert row.keys() - {"added_us_p50_of_rounds"} == FIGURES
        assert row["error"] == ""
        assert row["n"] > 0
        assert row["added_us"].keys() == row["latency_us"].keys() == row["engine_us"].keys() == PERCENTILES
    assert compared["n"] == sum(row["n"] for row in trial["rows"])
    assert trial["kind"] == "vector"
    assert compared["left_out"] == {}


def test_rows_per_second_are_the_counted_acts_per_second(compared: dict[str, Any]) -> None:
    for row in compared["trials"][0]["rows"]:
        if not row["name"].startswith("floor"):
            assert row["rows_per_s"] == pytest.approx(row["n"] / 0.3, abs=0.1)


def test_the_system_measured_twice_shows_the_noise(compared: dict[str, Any]) -> None:
    noise = compared["trials"][0]["noise"]
    assert noise["floor_lane"] >= 0
    assert noise["floor_zmq"] >= 0
    assert [(again["name"], again["clients"]) for again in noise["again"]] == [("lane", 1), ("lane", 3)]
    assert noise["again"][0].keys() == {"name", "clients", "rows_per_s"} | PERCENTILES


def test_the_ratios_are_those_of_the_rows(compared: dict[str, Any]) -> None:
    trial = compared["trials"][0]
    p50 = {row["name"]: row["added_us"]["p50"] for row in trial["rows"] if row["clients"] == 1}
    assert trial["ratios"]["zmq_over_lane"] == pytest.approx(p50["zmq"] / p50["lane"], abs=0.001)
    assert trial["ratios"]["lane_over_floor"] == pytest.approx(p50["lane"] / p50["floor-lane"], abs=0.001)
    assert trial["ratios"]["openpi_over_lane"] is None


def test_throughput_is_compared_at_eight_clients() -> None:
    def row(name: str, clients: int, rows_per_s: float) -> dict[str, Any]:
        return {"name": name, "clients": clients, "rows_per_s": rows_per_s, "added_us": None}

    rows = [row("lane", 1, 5.0), row("lane", 8, 60.0), row("openpi", 8, 10.0), row("openpi", 1, 3.0)]
    assert ratios(rows)["lane_over_openpi_rows_per_s"] == 6.0


def test_an_image_policy_is_compared_and_plotted(tmp_path: Path) -> None:
    picture = tmp_path / "compare.svg"
    done = run_pillion(
        "bench", "compare", *SHORT, "--contestants", "lane", "--policies", "cart-pole-pixels", "--clients", "1",
        "--plot", str(picture),
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "image: cart-pole-pixels@1.0.0, uint8 [4, 84, 84]" in done.stdout
    assert "A/A noise, lane against itself, 1 client" in done.stdout
    assert "cart-pole-pixels" in picture.read_text()


def test_every_answer_is_checked(lander: Workload, lane_address: str) -> None:
    wrong = msgspec.structs.replace(lander, actions=3 - lander.actions)
    with ClientFleet(system("lane"), lane_address, 2, wrong, None) as fleet:
        counted = fleet.drive(0.1, 0.0)
    assert len(counted.latency_ns) > 0
    assert counted.mismatches >= len(counted.latency_ns)


def test_wrong_answers_withhold_the_figures() -> None:
    series = Series("lane", 1)
    right = np.arange(1, 100, dtype=np.int64)
    series.add(FleetFigures(right, right, 0, 1.0))
    assert series.row()["n"] == 99
    series.add(FleetFigures(right, right, 2, 1.0))
    row = series.row()
    assert (row["n"], row["added_us"], row["rows_per_s"]) == (0, None, None)
    assert row["error"] == "2 answers were not the policy's"
    assert first_error({"trials": [{"policy": "p", "rows": [row]}]}) == f"p: lane, 1 clients: {row['error']}"


def test_rounds_are_pooled_and_the_report_has_the_p50_of_each() -> None:
    series = Series("lane", 1)
    for latency_ns in (1_000, 3_000):
        series.add(FleetFigures(np.full(50, latency_ns, np.int64), np.zeros(50, np.int64), 0, 0.5))
    row = series.row()
    assert (row["n"], row["rows_per_s"], row["added_us_p50_of_rounds"]) == (100, 100.0, [1.0, 3.0])


def test_an_address_without_a_daemon_is_an_error_with_a_reason(lander: Workload, short_path: Path) -> None:
    with (
        ClientFleet(system("lane"), f"lane://{short_path}/nobody.sock", 1, lander, None, attempt_s_max=0.1) as fleet,
        pytest.raises(BenchError, match="no response from"),
    ):
        fleet.drive(0.1, 0.0)


def test_a_fleet_that_is_killed_leaves_no_client_behind(lander: Workload, lane_address: str) -> None:
    with ClientFleet(system("lane"), lane_address, 3, lander, None) as fleet:
        fleet.drive(0.05, 0.0)
    with ClientFleet(system("lane"), lane_address, 3, lander, None) as fleet:
        driver = psutil.Process(fleet.pid)
        while len(clients := driver.children()) < 3:
            assert driver.is_running()
        driver.send_signal(signal.SIGKILL)
        _, alive = psutil.wait_procs(clients, WAIT_S_MAX)
    assert not alive


def test_without_the_peers_environment_the_other_systems_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(systems, "peers_environment", lambda: tmp_path / ".venv-peers")
    selection = choose([])
    assert {"lane", "zmq"} <= {system.name for system in selection.systems}
    assert {peer.name for peer in PEERS} <= selection.left_out.keys()
    (line,) = [line for line in selection.omissions() if "openpi" in line]
    assert line == "left out: openpi, req-rep, mosec, litserve: .venv-peers is missing; create it with `make peers`"


def test_a_named_peer_without_its_environment_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systems, "peers_environment", lambda: tmp_path / ".venv-peers")
    with pytest.raises(
        PeersMissingError, match=r"openpi: \.venv-peers is missing; create it with `make peers`"
    ) as missing:
        choose(["lane", "openpi"])
    assert missing.value.exit_code == 69


@pytest.mark.usefixtures("peers_environment")
def test_the_peers_answer_as_the_policy_does() -> None:
    report = report_of("compare", *SHORT, "--contestants", ",".join(peer.name for peer in PEERS), "--clients", "2")
    for trial, policy in zip(report["trials"], ("lunar-lander", "cart-pole-pixels"), strict=True):
        assert trial["policy"] == policy
        assert {row["name"] for row in trial["rows"]} == {peer.name for peer in PEERS} | {"openpi, again"}
        for row in trial["rows"]:
            assert row["error"] == ""
            assert row["n"] > 0
            assert 0 < row["engine_us"]["p50"] < row["latency_us"]["p50"]
    for peer in PEERS:
        assert report["contestants"][peer.name]["versions"].keys() == set(peer.packages)


@pytest.mark.usefixtures("peers_environment")
@pytest.mark.parametrize("peer", PEERS, ids=[peer.name for peer in PEERS])
def test_a_stopped_peer_leaves_no_process_behind(peer: System, lander: Workload) -> None:
    model = Store(STORE).load("lunar-lander").model
    with PeerServer(peer, model, lander.action.name, None) as server:
        process = psutil.Process(server.pid)
        processes = [process, *process.children(recursive=True)]
    _, alive = psutil.wait_procs(processes, WAIT_S_MAX)
    assert not alive


@pytest.mark.usefixtures("peers_environment")
def test_a_peer_that_does_not_start_is_an_error_with_its_log() -> None:
    with (
        pytest.raises(PeerError, match="the server exited with code"),
        PeerServer(PEERS[0], b"no model", "action", None),
    ):
        pass


@pytest.mark.usefixtures("peers_environment")
def test_versions_are_read_from_the_peers_environment() -> None:
    assert versions(system("openpi"))["openpi-client"].startswith("0.1")


def test_the_progress_bar_has_a_step_for_each_measurement() -> None:
    selection = Selection([system("lane"), system("zmq")], True, {})
    options = CompareOptions(["a", "b"], [1, 8, 64], repeat=2)
    baselines_and_runs = 2 + 3 * 3
    assert options.measurements(selection) == 2 * 2 * baselines_and_runs


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (["--contestants", "lane,nobody"], 64, "--contestants: expected names from floor,lane,"),
        (["--clients", "1,0"], 64, "expected numbers from 1 on such as 1,8,64; got '1,0'"),
        (["--plot", "picture.jpeg"], 64, "--plot: expected a name that ends with .png or .svg"),
        (["--policies", "nobody", "--contestants", "lane"], 65, "'nobody' is not in the store"),
    ],
)
def test_bad_options_are_refused_in_one_line(arguments: list[str], code: int, complaint: str) -> None:
    done = run_pillion("bench", "compare", *arguments)
    assert done.returncode == code
    assert complaint in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_system_without_figures_fails_the_command_after_the_others_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    environment = tmp_path / ".venv-peers"
    (environment / "bin").mkdir(parents=True)
    (environment / "bin" / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (environment / "bin" / "python").chmod(0o755)
    (environment / PEERS_STAMP).touch()
    monkeypatch.setattr(systems, "peers_environment", lambda: environment)
    before = signal.getsignal(signal.SIGTERM)
    try:
        code = cli.run([
            "bench", "compare", *SHORT, "--contestants", "lane,mosec", "--policies", "lunar-lander", "--clients", "1",
        ])  # fmt: skip
    finally:
        signal.signal(signal.SIGTERM, before)
    assert code == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("pillion: lunar-lander: mosec, 1 clients: the server exited with code 1: ")
    assert printed.err.endswith("No module named 'mosec'\n")
    assert "no figures" in printed.out
    assert "A/A noise, lane against itself" in printed.out
