"""The plot of a comparison: bars of p50 and p99 by system, in a row of panels for each policy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pillion_bench.compare.report import AGAIN
from pillion_bench.errors import BadOptionError
from pillion_bench.percentiles import is_supported

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES: Final = (".png", ".svg")

_PANEL_INCHES: Final = 3.6
_BAR_INCHES: Final = 0.3
_MARGIN_INCHES: Final = 1.1
_THICKNESS: Final = 0.4
_COLOURS: Final = {"p50": "#1f5a8a", "p99": "#e0a63c"}
_AXIS_SPACE: Final = 4.0
"""The axis ends at this multiple of the longest bar, to leave space for its number."""


def check_plot(path: Path) -> None:
    """Raises `BadOptionError` for another kind of file, `ModuleNotFoundError` if matplotlib is not installed."""
    if path.suffix not in SUFFIXES:
        raise BadOptionError(f"--plot: expected a name that ends with .png or .svg, got {path}")
    import matplotlib as mpl

    # Agg needs no screen. Text stays text in the SVG, and the fixed salt makes equal figures equal bytes.
    mpl.use("Agg")
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "pillion", "font.size": 8})


def draw(report: dict[str, Any], path: Path) -> None:
    """Draws the report into a file, which is replaced. A percentile without enough samples has no bar."""
    figure = _figure(report)
    figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else {})


def _figure(report: dict[str, Any]) -> Figure:
    from matplotlib.figure import Figure

    trials, counts = report["trials"], report["clients"]
    names = {trial["policy"]: _names(trial) for trial in trials}
    heights = [len(found) * _BAR_INCHES + _MARGIN_INCHES for found in names.values()]
    figure = Figure(figsize=(_PANEL_INCHES * len(counts) + _MARGIN_INCHES, sum(heights) + 0.5), layout="constrained")
    panels = figure.subplots(len(trials), len(counts), sharex="row", sharey="row", squeeze=False, height_ratios=heights)
    for trial, row in zip(trials, panels, strict=True):
        for clients, panel in zip(counts, row, strict=True):
            _draw_panel(panel, trial, names[trial["policy"]], clients)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    host = report["host"]
    figure.suptitle(
        f"Added latency (round trip less engine), µs, log scale\n{host['cpu']}, {host['cpus']} CPUs, "
        f"Python {host['python']}; {report['pin']}",
        fontsize=9,
    )
    return figure


def _draw_panel(panel: Axes, trial: dict[str, Any], names: list[str], clients: int) -> None:
    rows = {row["name"]: row for row in trial["rows"] if row["clients"] == clients}
    for offset, quantile in enumerate(_COLOURS):
        values = [_value(rows.get(name), quantile) for name in names]
        positions = [index + (offset - 0.5) * _THICKNESS for index in range(len(names))]
        bars = panel.barh(
            positions, [value or 0 for value in values], _THICKNESS, color=_COLOURS[quantile], label=quantile
        )
        panel.bar_label(bars, [f"{value:,.0f}" if value else "" for value in values], padding=2, fontsize=6)
    panel.set_xscale("log")
    panel.set_yticks(range(len(names)), names)
    if not panel.yaxis_inverted():
        panel.invert_yaxis()
    panel.set_title(f"{trial['kind']} ({trial['policy']}), {clients} client{'s' if clients > 1 else ''}", fontsize=8)
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(axis="x", linewidth=0.3)
    panel.set_axisbelow(True)
    low, high = _range(trial)
    panel.set_xlim(low / 2, high * _AXIS_SPACE)


def _names(trial: dict[str, Any]) -> list[str]:
    return [name for name in dict.fromkeys(row["name"] for row in trial["rows"]) if not name.endswith(AGAIN)]


def _value(row: dict[str, Any] | None, quantile: str) -> float | None:
    if row is None or row["error"] or not is_supported(quantile, row["n"]):
        return None
    value: float = row["added_us"][quantile]
    return value


def _range(trial: dict[str, Any]) -> tuple[float, float]:
    """Returns the lowest and the highest value of all panels of a policy."""
    shown = [value for row in trial["rows"] for quantile in _COLOURS if (value := _value(row, quantile))]
    return min(shown, default=1.0), max(shown, default=1.0)
