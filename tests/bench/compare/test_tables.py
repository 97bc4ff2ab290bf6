"""The commands in the README make its table and its plot from the stored comparison."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pillion_bench.compare.plot import check_plot, draw
from pillion_bench.compare.tables import BEGIN, END, load_report, markdown
from tests.bench.conftest import run_pillion
from tests.harness import ROOT

STORED = ROOT / "bench" / "results" / "compare.json"


@pytest.fixture
def stored() -> dict[str, Any]:
    """The comparison in the repository."""
    return load_report(STORED)


def test_the_readme_has_the_table_of_the_stored_comparison(stored: dict[str, Any]) -> None:
    _, _, rest = (ROOT / "README.md").read_text().partition(BEGIN)
    assert rest.partition(END)[0].strip() == markdown(stored).strip()


def test_the_command_writes_the_table_between_the_markers(tmp_path: Path, stored: dict[str, Any]) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    done = run_pillion("bench", "table", str(STORED), "--write", str(readme))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert readme.read_text() == f"before\n{BEGIN}\n{markdown(stored)}{END}\nafter\n"


def test_the_command_prints_the_table(stored: dict[str, Any]) -> None:
    done = run_pillion("bench", "table", str(STORED))
    assert (done.returncode, done.stdout) == (0, markdown(stored))


def test_a_cell_has_the_figures_and_a_dash_for_a_percentile_with_too_few_samples(stored: dict[str, Any]) -> None:
    row = {
        "name": "lane", "clients": 1, "error": "", "n": 1_000, "rows_per_s": 500.0,
        "added_us": {"p50": 34.04, "p90": 40.0, "p99": 61.26, "p99.9": 80.0},
    }  # fmt: skip
    failed = {"name": "zmq", "clients": 1, "error": "gone", "n": 0, "rows_per_s": None, "added_us": None}
    again = {**row, "name": "lane, again"}
    stored["trials"] = [{**stored["trials"][0], "rows": [row, failed, again]}]
    stored["clients"] = [1, 8]
    lines = markdown(stored).splitlines()
    assert lines[3] == "| Pillion over the lane | 34.0 / 61.3 / – µs; 500 rows/s; n 1,000 |  |"
    assert lines[4] == "| Pillion over ZeroMQ | no figures |  |"
    assert lines[5] == ""


def test_a_file_without_markers_is_not_changed(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"{END} {BEGIN}")
    done = run_pillion("bench", "table", str(STORED), "--write", str(readme))
    assert done.returncode == 65
    assert "expected the lines" in done.stderr
    assert readme.read_text() == f"{END} {BEGIN}"


@pytest.mark.parametrize("content", [b"", b"[1]", b'{"n": 1}'])
def test_a_file_that_is_not_a_comparison_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.json"
    path.write_bytes(content)
    done = run_pillion("bench", "table", str(path))
    assert done.returncode == 65
    assert "expected a report of `pillion bench compare --json`" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_plot_names_all_systems_the_placement_and_the_machine(tmp_path: Path, stored: dict[str, Any]) -> None:
    plot = tmp_path / "compare.svg"
    done = run_pillion("bench", "table", str(STORED), "--plot", str(plot))
    assert done.returncode == 0, done.stderr
    text = plot.read_text()
    assert stored["host"]["cpu"] in text
    assert stored["pin"] in text
    for trial in stored["trials"]:
        for row in trial["rows"]:
            assert row["name"].removesuffix(", again") in text


def test_the_same_comparison_makes_the_same_plot(tmp_path: Path, stored: dict[str, Any]) -> None:
    plots = [tmp_path / "a.svg", tmp_path / "b.svg"]
    for plot in plots:
        check_plot(plot)
        draw(stored, plot)
    assert plots[0].read_bytes() == plots[1].read_bytes()


def test_a_plot_can_be_a_png(tmp_path: Path, stored: dict[str, Any]) -> None:
    plot = tmp_path / "compare.png"
    check_plot(plot)
    draw(stored, plot)
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_the_stored_comparison_is_plain_json() -> None:
    assert json.loads(STORED.read_text())["report"] == "pillion.compare"


def test_without_matplotlib_the_command_names_the_package_to_install(tmp_path: Path) -> None:
    script = (
        "import sys\nsys.modules['matplotlib'] = None\nfrom pillion import cli\n"
        f"sys.exit(cli.run(['bench', 'table', {str(STORED)!r}, '--plot', {str(tmp_path / 'a.svg')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 69
    assert "pip install 'pillion[plot]'" in done.stderr
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
