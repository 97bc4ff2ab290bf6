"""The comparison: floors, Pillion and its peers with one policy, in one placement, in turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from pillion_artifacts import Artifact, Store
from pillion_bench.compare.client_fleet import Crowd, Task
from pillion_bench.compare.peer_server import PeerServer
from pillion_bench.compare.report import AGAIN, Series, Trial, report
from pillion_bench.compare.systems import Contestant, Field
from pillion_bench.errors import BenchError
from pillion_bench.exchange import exchange_of
from pillion_bench.measurements.floor import Floors
from pillion_bench.process.daemon_process import DaemonProcess
from pillion_bench.process.placement import CpuSet, Placement

Advance = Callable[[str], None]
"""Told of every measurement that begins, in words."""


class CompareOptions(msgspec.Struct, frozen=True):
    """With what, by how many clients at a time, for how long, how often."""

    policies: list[str]
    clients: list[int]
    seconds: float = 2.0
    warmup_s: float = 0.5
    repeat: int = 1

    def measurements(self, field: Field) -> int:
        """How many there will be."""
        each = (len(field.contestants) + 1) * len(self.clients) if field.contestants else 0
        return len(self.policies) * self.repeat * (each + (2 if field.has_floor else 0))


def measure_compare(
    store: Path, field: Field, placement: Placement, options: CompareOptions, advance: Advance
) -> dict[str, Any]:
    """Measures everybody with every policy, and gives the report of `pillion bench compare`.

    A contestant that fails or answers wrongly has an error instead of figures; the others are measured all the same.
    """
    trials = [_Match(store, reference, field, placement, options, advance).play() for reference in options.policies]
    return report(trials, field, placement, options.clients, options.seconds, options.warmup_s, options.repeat)


class _Match:
    """One policy, everybody. The first contestant is measured at both ends of each round: what differs is noise."""

    def __init__(
        self,
        store: Path,
        reference: str,
        field: Field,
        placement: Placement,
        options: CompareOptions,
        advance: Advance,
    ) -> None:
        self._store = store
        self._artifact = Store(store).load(reference)
        self._field = field
        self._placement = placement
        self._options = options
        self._advance = advance
        self._trial = Trial(Task.of(self._artifact))

    def play(self) -> Trial:
        """All rounds: every other one backwards, so that drift hits all alike."""
        turns = [(contestant, contestant.name) for contestant in self._field.contestants]
        if turns:
            turns.append((turns[0][0], turns[0][1] + AGAIN))
        with Floors(exchange_of(self._artifact.card.spec(), 1), self._placement) as floors:
            for number in range(self._options.repeat):
                self._measure_floors(floors)
                for contestant, name in reversed(turns) if number % 2 else turns:
                    self._measure(contestant, name)
                self._measure_floors(floors)
        return self._trial

    def _measure_floors(self, floors: Floors) -> None:
        if self._field.has_floor:
            self._advance(f"{self._artifact.policy}: the floors")
            self._trial.floors.append(floors.measure(self._options.seconds / 2))

    def _measure(self, contestant: Contestant, name: str) -> None:
        """One server, each number of clients in turn."""
        try:
            with _open_server(contestant, self._store, self._artifact, self._placement.server) as address:
                for clients in self._options.clients:
                    self._advance(f"{self._artifact.policy}: {name}, {clients} clients")
                    self._measure_crowd(contestant, address, self._trial.series_of(name, clients))
        except BenchError as error:
            for clients in self._options.clients:
                self._trial.series_of(name, clients).fail(str(error))

    def _measure_crowd(self, contestant: Contestant, address: str, series: Series) -> None:
        options = self._options
        try:
            with Crowd(contestant, address, series.clients, self._trial.task, self._placement.client) as crowd:
                series.add(crowd.drive(options.seconds, options.warmup_s))
        except BenchError as error:
            series.fail(str(error))


@contextmanager
def _open_server(contestant: Contestant, store: Path, artifact: Artifact, cpus: CpuSet | None) -> Iterator[str]:
    """The contestant's own server, and where it is."""
    if contestant.is_peer:
        with PeerServer(contestant, artifact.model, artifact.card.spec().outputs[0].name, cpus) as server:
            yield server.address
        return
    spinning = {"PILLION_SERVING__BUSY_POLL_US": str(contestant.busy_poll_us)} if contestant.busy_poll_us else {}
    reference = f"{artifact.policy}@{artifact.version}"
    with DaemonProcess(store, reference, cpus, contestant.carrier, spinning) as daemon:
        yield daemon.address
