"""The comparison: baselines, Pillion and its peers with the same policies in one placement, interleaved."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from pillion_artifacts import Artifact, Store
from pillion_bench.compare.client_fleet import ClientFleet, Workload
from pillion_bench.compare.peer_server import PeerServer
from pillion_bench.compare.report import AGAIN, PolicyResults, Series, report
from pillion_bench.compare.systems import Selection, System
from pillion_bench.errors import BenchError
from pillion_bench.exchange import exchange_of
from pillion_bench.measurements.floor import Baselines
from pillion_bench.process.daemon_process import DaemonProcess
from pillion_bench.process.placement import CpuSet, Placement

Advance = Callable[[str], None]
"""Called with a label as each measurement begins."""


class CompareOptions(msgspec.Struct, frozen=True):
    """The policies, the numbers of clients, and how long and how often each system is measured."""

    policies: list[str]
    clients: list[int]
    seconds: float = 2.0
    warmup_s: float = 0.5
    repeat: int = 1

    def measurements(self, selection: Selection) -> int:
        """Returns the number of measurements."""
        each = (len(selection.systems) + 1) * len(self.clients) if selection.systems else 0
        return len(self.policies) * self.repeat * (each + (2 if selection.has_floor else 0))


def measure_compare(
    store: Path, selection: Selection, placement: Placement, options: CompareOptions, advance: Advance
) -> dict[str, Any]:
    """Measures every system with every policy; returns the report of `pillion bench compare`.

    A system that fails or answers wrongly gets an error instead of figures; the others are still measured.
    """
    results = [
        _PolicyComparison(store, reference, selection, placement, options, advance).run()
        for reference in options.policies
    ]
    return report(results, selection, placement, options.clients, options.seconds, options.warmup_s, options.repeat)


class _PolicyComparison:
    """All systems with one policy. The first is measured at both ends of each round: the difference is noise."""

    def __init__(
        self,
        store: Path,
        reference: str,
        selection: Selection,
        placement: Placement,
        options: CompareOptions,
        advance: Advance,
    ) -> None:
        self._store = store
        self._artifact = Store(store).load(reference)
        self._selection = selection
        self._placement = placement
        self._options = options
        self._advance = advance
        self._results = PolicyResults(Workload.of(self._artifact))

    def run(self) -> PolicyResults:
        """Runs all rounds, every other one in reverse order, so that a drift affects all systems alike."""
        runs = [(system, system.name) for system in self._selection.systems]
        if runs:
            runs.append((runs[0][0], runs[0][1] + AGAIN))
        with Baselines(exchange_of(self._artifact.card.spec(), 1), self._placement) as baselines:
            for number in range(self._options.repeat):
                self._measure_baselines(baselines)
                for system, name in reversed(runs) if number % 2 else runs:
                    self._measure(system, name)
                self._measure_baselines(baselines)
        return self._results

    def _measure_baselines(self, baselines: Baselines) -> None:
        if self._selection.has_floor:
            self._advance(f"{self._artifact.policy}: the baselines")
            self._results.baselines.append(baselines.measure(self._options.seconds / 2))

    def _measure(self, system: System, name: str) -> None:
        """Starts one server, and measures it with each number of clients."""
        try:
            with _open_server(system, self._store, self._artifact, self._placement.server) as address:
                for clients in self._options.clients:
                    self._advance(f"{self._artifact.policy}: {name}, {clients} clients")
                    self._measure_fleet(system, address, self._results.series_of(name, clients))
        except BenchError as error:
            for clients in self._options.clients:
                self._results.series_of(name, clients).fail(str(error))

    def _measure_fleet(self, system: System, address: str, series: Series) -> None:
        options = self._options
        try:
            with ClientFleet(system, address, series.clients, self._results.workload, self._placement.client) as fleet:
                series.add(fleet.drive(options.seconds, options.warmup_s))
        except BenchError as error:
            series.fail(str(error))


@contextmanager
def _open_server(system: System, store: Path, artifact: Artifact, cpus: CpuSet | None) -> Iterator[str]:
    """Starts the system's server; yields its address."""
    if system.is_peer:
        with PeerServer(system, artifact.model, artifact.card.spec().outputs[0].name, cpus) as server:
            yield server.address
        return
    spinning = {"PILLION_SERVING__BUSY_POLL_US": str(system.busy_poll_us)} if system.busy_poll_us else {}
    reference = f"{artifact.policy}@{artifact.version}"
    with DaemonProcess(store, reference, cpus, system.carrier, spinning) as daemon:
        yield daemon.address
