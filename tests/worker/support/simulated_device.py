"""A device without a device: it keeps the rules of CUDA's streams and events on a timeline of its own, on tensors of the CPU.

Everything that is enqueued gets its begin and its end on the timeline at once, for it can only wait for what was enqueued
before. An operation that touches memory which another one still uses is an `AssertionError`, as is a host that does.
`now_ns` is the time of the host, which goes on whenever the host asks for something.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pillion_worker.tensors import Array

HOST_NS: Final = 1_000
"""What each call of the host takes."""
_KEPT: Final = 1_000
"""Operations that are remembered at least: the host looks at a batch long before as many others have run."""
_NS_PER_MS: Final = 1_000_000
_STREAMS: Final = ("copy in", "compute", "copy out")

Range = tuple[int, int]
"""Addresses: the first one, and the one behind the last."""
Copies = Sequence[tuple[torch.Tensor, torch.Tensor]]


class Operation(NamedTuple):
    """What a stream did, or is to do."""

    stream: str
    began_ns: int
    ended_ns: int
    reads: list[Range]
    writes: list[Range]

    @property
    def bytes_written(self) -> int:
        return sum(last - first for first, last in self.writes)

    def clashes(self, reads: list[Range], writes: list[Range]) -> bool:
        """Whether one of the two writes what the other one uses."""
        return _meet(self.writes, reads + writes) or _meet(self.reads, writes)


class LostError(RuntimeError):
    """What every call of a lost device raises."""


class SimulatedStream:
    """As `torch.cuda.Stream`."""

    def __init__(self, device: SimulatedDevice, name: str) -> None:
        self._device = device
        self.name = name
        self.free_ns = 0

    def wait_event(self, event: SimulatedEvent) -> None:
        self._device.spend()
        self.free_ns = max(self.free_ns, event.at_ns)


class SimulatedEvent:
    """As `torch.cuda.Event`."""

    def __init__(self, device: SimulatedDevice) -> None:
        self._device = device
        self.at_ns = 0

    def record(self, stream: SimulatedStream) -> None:
        self._device.spend()
        self.at_ns = max(stream.free_ns, self._device.now_ns)

    def query(self) -> bool:
        self._device.spend()
        return self._device.now_ns >= self.at_ns

    def synchronize(self) -> None:
        self._device.spend()
        self._device.now_ns = max(self._device.now_ns, self.at_ns)
        self._device.fail_if_told("wait")

    def elapsed_time(self, end: SimulatedEvent) -> float:
        assert max(self.at_ns, end.at_ns) <= self._device.now_ns, "CUDA has no time of what has not happened"
        return (end.at_ns - self.at_ns) / _NS_PER_MS


class SimulatedDevice:
    """As `Device`. `duration_ns(stream)` says how long the next operation of a stream takes.

    `faults` holds what to raise: under the name of a stream when something is enqueued there, under `wait` when the host waits
    for an event. None in it raises nothing. `captures` says whether steps become graphs.
    """

    place = "cpu"

    def __init__(self, duration_ns: Callable[[str], int] = lambda _: 0, *, captures: bool = True) -> None:
        self.duration_ns = duration_ns
        self.captures = captures
        self.now_ns = 0
        self.operations: list[Operation] = []
        self.faults: dict[str, list[Exception | None]] = {}
        self.is_lost = False
        self.on_time: Callable[[], None] = lambda: None
        """Called whenever time has gone on: others act meanwhile."""
        self.locked: list[Range] = []
        self.freed = 0
        self._buffers: list[torch.Tensor] = []
        self._made = 0

    def stream(self) -> SimulatedStream:
        self._made += 1
        return SimulatedStream(self, _STREAMS[self._made - 1])

    def event(self) -> SimulatedEvent:
        return SimulatedEvent(self)

    def zeros(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        self._buffers.append(torch.zeros(tuple(shape), dtype=dtype))
        return self._buffers[-1]

    def lock(self, address: int, size_bytes: int) -> bool:
        self.locked.append((address, address + size_bytes))
        return True

    def copier(self, copies: Copies, stream: SimulatedStream) -> Callable[[], None]:
        reads = [_range(source) for _, source in copies]
        writes = [_range(to) for to, _ in copies]
        assert all(any(low <= first and last <= high for low, high in self._known()) for first, last in reads + writes)

        def copy() -> None:
            for to, source in copies:
                to.copy_(source)

        return lambda: self._enqueue(stream, copy, reads, writes)

    def enqueuer(self, step: Callable[[], None], stream: SimulatedStream) -> Callable[[], None]:
        def enqueue() -> None:
            with _Accesses(self._buffers) as used:
                step()
            self._enqueue(stream, lambda: None, used.reads, used.writes)

        return enqueue

    def launcher(self, step: Callable[[], None], stream: SimulatedStream) -> tuple[Callable[[], None], bool]:
        with _Accesses(self._buffers) as used:
            step()
        return lambda: self._enqueue(stream, step, used.reads, used.writes), self.captures

    def synchronize(self) -> None:
        if self.is_lost:
            raise LostError("unspecified launch failure")
        self.now_ns = max([self.now_ns, *(each.ended_ns for each in self.operations)])

    def free_cached(self) -> None:
        self.freed += 1

    # What CUDA does not have

    def spend(self) -> None:
        """Lets the host's time go on by one call. Raises `LostError` if the device is lost."""
        if self.is_lost:
            raise LostError("unspecified launch failure")
        self.now_ns += HOST_NS
        self.on_time()

    def fail_if_told(self, where: str) -> None:
        due = self.faults.get(where, [])
        fault = due.pop(0) if due else None
        if fault is not None:
            self.is_lost = isinstance(fault, LostError)
            raise fault

    def touch(self, array: Array, *, writes: bool) -> None:
        """Says that the host reads or writes memory now."""
        first = array.ctypes.data
        used = [(first, first + array.nbytes)]
        for each in self.operations:
            is_clash = each.clashes([], used) if writes else each.clashes(used, [])
            assert each.ended_ns <= self.now_ns or not is_clash, f"the host touches what {each} uses"

    def _enqueue(
        self, stream: SimulatedStream, act: Callable[[], None], reads: list[Range], writes: list[Range]
    ) -> None:
        self.spend()
        self.fail_if_told(stream.name)
        began_ns = max(stream.free_ns, self.now_ns)
        for each in self.operations:
            assert each.ended_ns <= began_ns or not each.clashes(reads, writes), f"{stream.name} races {each}"
        if len(self.operations) > 2 * _KEPT:
            del self.operations[:_KEPT]
        stream.free_ns = began_ns + self.duration_ns(stream.name)
        self.operations.append(Operation(stream.name, began_ns, stream.free_ns, reads, writes))
        # Nobody may look at the result before its time comes, so it can be there at once.
        act()

    def _known(self) -> list[Range]:
        return [*self.locked, *map(_range, self._buffers)]


class _Accesses(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch has no types for it
    """Finds out which of these tensors a step reads and writes."""

    def __init__(self, buffers: Sequence[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # torch has no types for it
        self._known = [_range(buffer) for buffer in buffers]
        self.reads: list[Range] = []
        self.writes: list[Range] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = {argument.name: argument for argument in function._schema.arguments}
        given = [
            *zip(named.values(), args, strict=False),
            *((named[name], each) for name, each in (kwargs or {}).items()),
        ]
        for argument, value in given:
            values = value if isinstance(value, (list, tuple)) else [value]
            for tensor in (each for each in values if isinstance(each, torch.Tensor)):
                first, last = _range(tensor)
                if any(low <= first and last <= high for low, high in self._known):
                    is_write = argument.alias_info is not None and argument.alias_info.is_write
                    (self.writes if is_write else self.reads).append((first, last))
        return function(*args, **(kwargs or {}))


def _range(tensor: torch.Tensor) -> Range:
    return tensor.data_ptr(), tensor.data_ptr() + tensor.numel() * tensor.element_size()


def _meet(some: list[Range], others: list[Range]) -> bool:
    return any(first < end and start < last for first, last in some for start, end in others)
