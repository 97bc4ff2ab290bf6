"""An engine in another process: submits batches through an arena, and never waits for them. Hot path.

The worker may be broken or hostile. All that it can write is the arena, one doorbell and the packets of its channel: each
number is read once and compared with what is due, and lengths and offsets are this side's own. A worker that does anything
else is *rogue*: this engine is lost, and its owner replaces the worker.
"""

from __future__ import annotations

import select
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from enum import Enum
from functools import partial
from typing import Any, ClassVar, Final, NamedTuple

import msgspec
import numpy as np

from pillion_artifacts.card.model_card import StateCard
from pillion_protocol import Spec
from pillion_protocol.action_steps import NO_DEVICE_TIMES, DeviceTimes
from pillion_worker.arena import (
    COMPLETED,
    FAILED,
    MEMORY,
    NUMBER,
    OK,
    OUTCOME,
    ROWS,
    SUBMITTED,
    SUBMITTED_NS,
    ArenaLayout,
    block_of,
)
from pillion_worker.channel import ARENA, send_packet
from pillion_worker.doorbell import Doorbell, ring_worker
from pillion_worker.limits import FAILURE_BYTES_MAX, PACKET_BYTES_MAX, REASON_CHARS_MAX
from pillion_worker.runs.state_table import IN_ARENA, START
from pilliond.engine.batch_memory import Array, BatchMemory
from pilliond.engine.device_times import read_device_times
from pilliond.engine.interface import Engine, EngineError, Replica
from pilliond.engine.load_request import load_request
from pilliond.engine.service_time import ServiceTimes
from pilliond.engine.state_rows import StateRows, row_numbers
from pilliond.engine.worker_arena import OwnArena
from pilliond.engine.worker_messages import (
    LOADED,
    READY,
    DeviceMemory,
    Failed,
    Loaded,
    Ready,
    RogueError,
    actual_outputs,
    check_ready,
)
from pilliond.ipc.device_status import device_status
from pilliond.ipc.loss_cause import WORKER_ENDED, LossCause
from pilliond.limits import NEVER_NS, STATES_BYTES_MAX, WAIT_LOOK_S, WORKER_RUN_S_MAX
from pilliond.linux.epoll import DescriptorSet

_NO_MEMORY: Final = "no memory is left for its batches"
_MILLISECONDS: Final = 1_000
_BYTES_PER_MB: Final = 1_000_000


class WorkerState(Enum):
    """What the engine can do.

    LOADING -> READY -> LOST -> LOADING …: each `attach` begins again. LOADING -> LOST where a worker ends too early.
    LOST -> OUT by `give_up`: no worker is tried any more. OUT -> LOST by `revive`. `close` ends in OUT from anywhere.
    """

    LOADING = "loading"
    READY = "ready"
    LOST = "lost"
    OUT = "out"


class Submitted:
    """A batch in flight. There is one object for each block of the arena, which is used again."""

    __slots__ = ("block", "index", "memory", "number", "rows", "submitted_ns")

    def __init__(self, index: int, memory: BatchMemory) -> None:
        self.index = index
        """The number of the block."""
        self.block = block_of(index)
        """Its first cell."""
        self.memory = memory
        self.number = self.rows = self.submitted_ns = 0


class Completed(NamedTuple):
    """A batch that the worker is done with."""

    memory: BatchMemory
    outcome: int
    """`OK` or `FAILED`, see `pillion_worker.arena`."""
    message: str
    """Why it failed; else empty."""
    started_ns: int
    finished_ns: int
    times: DeviceTimes
    """How long its device took; `NO_DEVICE_TIMES` if it failed."""


class WorkerEngine:
    """One version's engine in a worker; `attach` connects it to one.

    Owns the arena, its doorbells, its end of the channel and the table of recurrent states, and adds the channel and one
    doorbell to `descriptors` while they are open. Not the process: whoever starts it also ends it, above all when it is lost.

    The states in its memories are numbers of the table's rows. `states` are arrays in the arena, for blocking runs.

    `request` are the other fields of `LoadRequest`. `missed` is what is known before of what the settings ask for and it
    does not do. `check_described` gets what the loaded engine says of itself, and returns
    why it is refused; empty if it is not. `states_bytes_max` bounds the recurrent states of all episodes.

    `on_ready(engine)` follows a successful `attach`. `on_completed(engine, memory, outcome, message, started_ns,
    finished_ns, times)` follows each batch: its results are in `memory` until it is released and submitted again. A message says
    why a batch failed, and is empty for no other.
    `on_lost(engine, reason)` comes once for each worker that ends or is rogue; then `in_flight` holds the batches that were
    not completed, until the next `attach`. All are called in the loop, by `receive`.
    """

    is_inline = False
    parts: tuple[Engine, ...] = ()
    replicas: Sequence[Replica] = ()
    bursts: ClassVar[bool] = False

    def __init__(
        self,
        spec: Spec,
        parameters: list[str],
        rows_max: int,
        states: Sequence[StateCard] = (),
        *,
        engine: str = "onnx",
        strict_rows: int = 0,
        descriptors: DescriptorSet | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
        missed: str = "",
        states_bytes_max: int = STATES_BYTES_MAX,
        check_described: Callable[[dict[str, Any]], str] = lambda _: "",
        **request: Any,
    ) -> None:
        self.kind = engine
        self.strict_rows = strict_rows
        self.run_s_max = WORKER_RUN_S_MAX
        """How long a blocking run may take."""
        self.state = WorkerState.LOST
        self.reason = "it has no worker yet"
        """Why it is lost or out."""
        self.cause = LossCause.ENDED
        """The kind of that reason."""
        self.in_flight: deque[Submitted] = deque()
        """The oldest batch first."""
        self.buckets: list[int] = []
        self.service = ServiceTimes([rows_max])
        self.on_ready: Callable[[WorkerEngine], None] = _ignore
        self.on_completed: Callable[[WorkerEngine, BatchMemory, int, str, int, int, DeviceTimes], None] = _ignore
        self.on_lost: Callable[[WorkerEngine, str], None] = _ignore
        self.memory_kind = ""
        """`pinned` (registered with a device), `locked` or `pageable`; empty before the worker is ready."""
        self.device_memory: list[DeviceMemory] = []
        """What the version took of its devices when it was last ready; empty if that was nothing, or was not measured."""
        self._spec = spec
        self._request = load_request(
            spec,
            parameters,
            states,
            engine=engine,
            rows_max=rows_max,
            strict_rows=strict_rows,
            **request,
        )
        self.state_rows = StateRows.of(self._request, states_bytes_max)
        self._states_were: str | None = None
        """Where the states were when it was ready last: `device`, or empty for the table of this process."""
        self._missed = missed
        self._check_described = check_described
        self._descriptors = descriptors
        self._clock = clock
        self._description: dict[str, Any] = {}
        self._is_on_device = False
        """Whether the loaded engine computes on a device, as its worker says: only then are the device's times read."""
        self._channel: socket.socket | None = None
        self._handshake = _Handshake(self)
        self._owes_since_ns = NEVER_NS
        self._drop_memory()

    def _drop_memory(self) -> None:
        """Sets what comes with an arena as it is without one.

        Nothing here may refer to the views of the arena any more: the last reference unmaps it.
        """
        self.memories: list[BatchMemory] = []
        self.free: list[BatchMemory] = []
        self.inputs: list[Array] = []
        self.outputs: dict[str, Array] = {}
        self.states: list[tuple[Array, Array]] = []
        self.runs: list[Callable[[], None]] = []
        self.in_flight.clear()
        self._own: OwnArena | None = None
        self._submit = -1
        self._doorbell = Doorbell(-1)
        self._cells = memoryview(b"")
        self._numbers: list[Sequence[Array]] = []
        """For each memory, the numbers of state rows in the arena: those to read, and those to write."""
        self._index_of: dict[int, int] = {}
        self._batches: list[Submitted] = []
        self._submitted = self._completed = self._rung = 0

    @property
    def state_row_bytes(self) -> int:
        """As `Engine.state_row_bytes`."""
        return 0 if self.state_rows is None else self.state_rows.row_bytes

    @property
    def is_refused(self) -> bool:
        """Whether it was lost because the model was refused: another worker would refuse it too."""
        return self.cause is LossCause.REFUSED

    @property
    def is_ready(self) -> bool:
        """As `Engine.is_ready`."""
        return self.state is WorkerState.READY

    @property
    def owes_since_ns(self) -> int:
        """Since when the worker owes its next step: a load, or the end of its oldest batch; `NEVER_NS` if it owes nothing.

        A batch that waits behind another one begins when that one is completed. Compare with `service.slow_ns`.
        """
        return self._owes_since_ns

    # Starting

    def attach(self, end: socket.socket, model_descriptor: int) -> None:
        """Connects a new worker, whose other end of the channel it has, and asks it to load. Returns at once.

        Takes `end` over. `model_descriptor` is the sealed memfd of the model; it may be closed afterwards. The arena of
        the worker before is dropped: what its batches still need must have been read.
        """
        assert self.state is WorkerState.LOST
        self._drop_memory()
        self.state = WorkerState.LOADING
        self.reason = ""
        self.cause = LossCause.ENDED
        self._owes_since_ns = self._clock()
        self._channel = end
        end.setblocking(False)
        self._handshake.due = LOADED
        if self._descriptors is not None:
            self._descriptors.add(end.fileno(), self._handshake)
        try:
            send_packet(end, self._request.to_packet(), [model_descriptor])
        except OSError as error:
            self.lose(WORKER_ENDED if isinstance(error, ConnectionError) else f"its worker cannot be asked: {error}")

    def wait_ready(self, timeout_s: float, check: Callable[[], None] = lambda: None) -> None:
        """Waits until the worker is ready, without a loop. Raises `EngineError` if it does not get there.

        `check` is called every `WAIT_LOOK_S` or more often; what it raises ends the wait.
        """

        def is_loading() -> bool:
            check()
            return self.state is WorkerState.LOADING

        if not self._wait_while(is_loading, timeout_s):
            self.lose(f"its worker was not ready within {timeout_s:g} s", LossCause.HUNG)
        if self.state is not WorkerState.READY:
            raise EngineError(self.reason)

    def give_up(self, reason: str) -> None:
        """From LOST to OUT. One that is out gets another reason."""
        assert self.state in (WorkerState.LOST, WorkerState.OUT)
        self.state = WorkerState.OUT
        self.reason = reason

    def revive(self) -> None:
        """From OUT to LOST: another worker is tried after all."""
        assert self.state is WorkerState.OUT
        self.state = WorkerState.LOST

    def close(self) -> None:
        """Releases everything, from any state; no callback follows. Safe to repeat."""
        self._disconnect()
        self._drop_memory()
        if self.state_rows is not None:
            self.state_rows.close()
        self.state = WorkerState.OUT
        self.on_ready = self.on_completed = self.on_lost = _ignore

    def describe(self) -> dict[str, Any]:
        described = {"kind": self.kind, **self._description, "memory": self.memory_kind, "depth": self._request.depth}
        if self.device_memory:
            used_bytes = sum(each.used_bytes for each in self.device_memory)
            described["device_memory_mb"] = -(-used_bytes // _BYTES_PER_MB)
        if self._missed:
            described["fallback"] = "; ".join(filter(None, [self._missed, str(described.get("fallback", ""))]))
        return {**described, "buckets": self.buckets, "strict": bool(self.strict_rows)}

    def free_ns(self, now_ns: int) -> int:
        """As `Replica.free_ns`."""
        return now_ns + self.left_ns(now_ns, self.service.fast_ns)

    def left_ns(self, now_ns: int, taken_ns: Callable[[int], int]) -> int:
        """How long what is in flight still takes, where a run of n rows takes `taken_ns(n)`."""
        if not self.in_flight:
            return 0
        oldest_ns = taken_ns(self.in_flight[0].rows)
        others_ns = sum(taken_ns(batch.rows) for batch in self.in_flight) - oldest_ns
        return max(0, oldest_ns - (now_ns - self._owes_since_ns)) + others_ns

    # Batches

    def choose(self, rows: int) -> BatchMemory:
        """As `Engine.choose`: all are alike."""
        return self.free[-1]

    def submit(self, memory: BatchMemory, rows: int) -> None:
        """As `Engine.submit`."""
        now_ns = self._clock()
        self._submitted = number = self._submitted + 1
        batch = self._batches[(number - 1) % len(self._batches)]
        batch.number, batch.memory, batch.rows, batch.submitted_ns = number, memory, rows, now_ns
        if self.state_rows is not None:
            self._number_states(memory, rows)
        cells, block = self._cells, batch.block
        cells[block + NUMBER] = number
        cells[block + ROWS] = rows
        cells[block + SUBMITTED_NS] = now_ns
        cells[block + OUTCOME] = 0
        cells[block + MEMORY] = self._index_of[id(memory)]
        cells[SUBMITTED] = number
        is_rung = ring_worker(self._submit)
        # The worker is waking up meanwhile.
        if not self.in_flight:
            self._owes_since_ns = now_ns
        self.in_flight.append(batch)
        self.free.remove(memory)
        if not is_rung:
            self.lose("its worker does not read its doorbell", LossCause.HUNG)

    def collect(self, memory: BatchMemory) -> None:
        """As `Engine.collect`: the results are in `memory` already."""

    def release(self, memory: BatchMemory) -> None:
        """As `Engine.release`. The memory of a worker that was lost never gets free again."""
        if self.state_rows is not None:
            self._give_back(memory)
        if self.state is WorkerState.READY and id(memory) in self._index_of:
            self.free.append(memory)

    def _number_states(self, memory: BatchMemory, rows: int) -> None:
        """Tells the worker which rows of the table to read, and which fresh ones to write."""
        assert self.state_rows is not None
        reads, writes = memory.states[0]
        to_read, to_write = self._numbers[self._index_of[id(memory)]]
        if reads[0] == IN_ARENA:
            to_read[0] = IN_ARENA
            return
        writes[:rows] = self.state_rows.take(rows)
        self.state_rows.written[id(memory)] = rows
        to_read[:rows] = row_numbers(reads[:rows])
        to_write[:rows] = row_numbers(writes[:rows])

    def _give_back(self, memory: BatchMemory) -> None:
        """Gives back the rows of the table that a batch wrote and nobody took over."""
        assert self.state_rows is not None
        rows = self.state_rows.written.pop(id(memory), 0)
        reads, writes = (numbers[: max(1, rows)] for numbers in memory.states[0])
        if self.state is WorkerState.READY:
            self.state_rows.give(writes)
        else:
            self.state_rows.withhold(writes)
        reads[:] = writes[:] = START

    def receive(self) -> None:
        """Handles the worker's rings, in the loop."""
        if self._own is None or not self._own.is_open:
            return
        self._rung += self._doorbell.take()
        if self._completed_cell() < self._rung:
            self.lose("its worker rang without a batch", LossCause.ROGUE)
        self._deliver(self._rung)

    def _completed_cell(self) -> int:
        """Reads which batch the worker says it completed last; loses a worker that cannot have."""
        number: int = self._cells[COMPLETED]
        if not self._completed <= number <= self._submitted:
            due = f"{self._completed + 1} to {self._submitted}"
            self.lose(f"its worker completed batch {number} of {due}", LossCause.ROGUE)
        return number

    def _deliver(self, last: int) -> None:
        while self._completed < last and self.state is WorkerState.READY:
            completed = self._take()
            if completed is not None:
                self.on_completed(self, *completed)

    def _take(self) -> Completed | None:
        """Ends the oldest batch; None if its worker is rogue."""
        batch = self.in_flight[0]
        block = batch.block
        number, _, _, started_ns, finished_ns, outcome, length = self._cells[block : block + MEMORY]
        if number != batch.number or outcome not in (OK, FAILED) or (outcome == FAILED and length > FAILURE_BYTES_MAX):
            answer = f"outcome {outcome} of batch {number}"
            self.lose(f"its worker answered batch {batch.number} with {answer}", LossCause.ROGUE)
            return None
        now_ns = self._clock()
        started_ns = min(max(started_ns, batch.submitted_ns), now_ns)
        finished_ns = min(max(finished_ns, started_ns), now_ns)
        self.in_flight.popleft()
        self._completed = batch.number
        self._owes_since_ns = now_ns if self.in_flight else NEVER_NS
        if outcome == OK:
            times = NO_DEVICE_TIMES
            if self._is_on_device:
                times = read_device_times(self._cells, block, finished_ns - started_ns)
            return Completed(batch.memory, OK, "", started_ns, finished_ns, times)
        assert self._own is not None
        message = self._own.arena.failure(batch.index, length) or "its worker does not say why"
        return Completed(batch.memory, FAILED, message, started_ns, finished_ns, NO_DEVICE_TIMES)

    # Blocking runs, for start-up alone

    def _run(self, rows: int) -> None:
        if self.state is not WorkerState.READY or self.in_flight:
            raise EngineError(self.reason or "its worker is busy")
        answers: list[Completed] = []
        callback, self.on_completed = self.on_completed, lambda _, *completed: answers.append(Completed(*completed))
        try:
            if self.state_rows is not None:
                self.memories[0].states[0][0][0] = IN_ARENA
            self.submit(self.memories[0], rows)
            if not self._wait_while(lambda: not answers and self.state is WorkerState.READY, self.run_s_max):
                self.lose(f"its worker did not answer within {self.run_s_max:g} s", LossCause.HUNG)
        finally:
            self.on_completed = callback
        if not answers:
            raise EngineError(self.reason)
        self.release(answers[0].memory)
        if answers[0].outcome == FAILED:
            raise EngineError(answers[0].message)

    def _wait_while(self, is_so: Callable[[], bool], timeout_s: float) -> bool:
        """Handles events while something is so; returns False if it was for too long.

        Time in which this process was stopped counts as little: then its worker was probably stopped, too.
        """
        left_s = timeout_s
        while is_so():
            if left_s <= 0:
                return False
            began_s = time.monotonic()
            self._wait_for_events(min(left_s, WAIT_LOOK_S))
            left_s -= min(time.monotonic() - began_s, 2 * WAIT_LOOK_S)
        return True

    def _wait_for_events(self, timeout_s: float) -> None:
        """Waits for either descriptor, and handles what it says, if anything came in time."""
        sources = {self._channel.fileno(): self._handshake.receive} if self._channel else {}
        if self._own is not None:
            sources[self._doorbell.descriptor] = self.receive
        poller = select.poll()
        for descriptor in sources:
            poller.register(descriptor, select.POLLIN)
        for descriptor, _ in poller.poll(max(0.0, timeout_s) * _MILLISECONDS):
            if self.state in (WorkerState.LOADING, WorkerState.READY):
                sources[descriptor]()

    # The handshake, and its end

    def _on_loaded(self, loaded: Loaded) -> None:
        request = self._request
        outputs = actual_outputs(loaded, request)
        if why := self._check_described(loaded.description):
            raise EngineError(why)
        layout = ArenaLayout(request.observation, outputs, request.states, request.room, request.depth)
        try:
            self._map(layout)
        except (OSError, MemoryError) as error:
            self.lose(f"{_NO_MEMORY} ({layout.total_bytes} bytes): {error}", LossCause.SHORTAGE)
            return
        except (OverflowError, ValueError) as error:
            raise EngineError(f"{_NO_MEMORY} ({layout.total_bytes} bytes): {error}") from error
        self._description = loaded.description
        self._is_on_device = device_status(loaded.description).is_on_device
        self.kind = str(loaded.description.get("kind", self.kind))
        self._tell_arena()
        self._handshake.due = READY

    def _map(self, layout: ArenaLayout) -> None:
        own = OwnArena(layout)
        try:
            memories = [
                BatchMemory(self._spec, each.inputs, each.outputs, _numbers_like(each.state_rows))
                for each in own.arena.memories
            ]
            if self._descriptors is not None:
                self._descriptors.add(own.complete, self)
        except BaseException:
            own.close()
            raise
        self._own = own
        self._submit = own.submit
        self._cells = own.arena.cells
        self._doorbell = Doorbell(own.complete)
        self.memories = memories
        first = own.arena.memories[0]
        self.inputs, self.outputs, self.states = first.inputs, first.outputs, first.states
        self._numbers = [each.state_rows for each in own.arena.memories]
        self._index_of = {id(memory): index for index, memory in enumerate(memories)}
        self._batches = [Submitted(index, memory) for index, memory in enumerate(memories)]

    def _tell_arena(self) -> None:
        assert self._channel is not None
        assert self._own is not None
        try:
            states = [self.state_rows.descriptor] if self.state_rows is not None else []
            send_packet(self._channel, {"type": ARENA}, [*self._own.for_worker, *states])
            self._own.handed_over()
        except OSError as error:
            self.lose(WORKER_ENDED if isinstance(error, ConnectionError) else f"its worker cannot be asked: {error}")

    def _on_ready(self, ready: Ready) -> None:
        check_ready(ready, self._request)
        self._handshake.due = None
        self.memory_kind = ready.memory
        self.device_memory = ready.device_memory
        self.buckets = ready.buckets
        if self.service.buckets != ready.buckets:
            self.service = ServiceTimes(ready.buckets)
        for rows, (p50_ns, p99_ns) in zip(ready.buckets, ready.service_ns, strict=True):
            self.service.learn(rows, p50_ns, p99_ns)
        self.runs = _runs_of(self._run, ready.buckets, self._request.rows_max)
        self._take_over_states()
        self.state = WorkerState.READY
        self._owes_since_ns = NEVER_NS
        self.free.extend(self.memories)
        self.on_ready(self)

    def _take_over_states(self) -> None:
        """Gives a worker that has become ready the states of the one before, or notes that it does not have them."""
        if self.state_rows is None:
            return
        states_are = str(self._description.get("states", ""))
        if self._states_were is not None and states_are != self._states_were:
            self.state_rows.lose_all()
        self._states_were = states_are
        self.state_rows.release_withheld()

    def lose(self, reason: str, cause: LossCause = LossCause.ENDED) -> None:
        """To LOST, from LOADING or READY: the worker is not used any more. Calls `on_lost`."""
        if self.state not in (WorkerState.LOADING, WorkerState.READY):
            return
        was_ready = self.state is WorkerState.READY
        self.state = WorkerState.LOST
        self.reason = reason = " ".join(reason.split())[:REASON_CHARS_MAX]
        self.cause = cause
        self.free.clear()
        self._disconnect()
        if self.state_rows is not None and was_ready and self._states_were == "device":
            self.state_rows.lose_all()
        self.on_lost(self, reason)

    def _disconnect(self) -> None:
        """Closes every descriptor. The memory stays until it is dropped."""
        self._owes_since_ns = NEVER_NS
        if self._own is not None and self._own.is_open:
            if self._descriptors is not None:
                self._descriptors.remove(self._own.complete)
            self._own.close()
        if self._channel is not None:
            if self._descriptors is not None:
                self._descriptors.remove(self._channel.fileno())
            self._channel.close()
            self._channel = None


class _Handshake:
    """The channel as a source of the loop. `due` reads the packet that is due; None if none is."""

    bursts: ClassVar[bool] = False

    def __init__(self, engine: WorkerEngine) -> None:
        self._engine = engine
        self.due: msgspec.json.Decoder[Loaded | Failed] | msgspec.json.Decoder[Ready | Failed] | None = None

    def receive(self) -> None:
        """Handles a packet, or the end of the channel."""
        engine = self._engine
        try:
            self._receive()
        except RogueError as error:
            engine.lose(f"its worker is rogue: {error}", LossCause.ROGUE)
        except EngineError as error:
            engine.lose(str(error), LossCause.REFUSED)

    def _receive(self) -> None:
        engine = self._engine
        assert engine._channel is not None
        try:
            # No room for descriptors: the kernel closes any that come along.
            data, _, flags, _ = engine._channel.recvmsg(PACKET_BYTES_MAX)
        except BlockingIOError:
            return
        except ConnectionError:
            data, flags = b"", 0
        if not data:
            # What it completed before it ended counts.
            engine.receive()
            engine.lose(WORKER_ENDED)
            return
        match self._packet(data, flags):
            case Failed(message):
                raise EngineError(message)
            case Loaded() as loaded:
                engine._on_loaded(loaded)
            case Ready() as ready:
                engine._on_ready(ready)

    def _packet(self, data: bytes, flags: int) -> Loaded | Ready | Failed:
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or self.due is None:
            raise RogueError("it sent a packet that nobody waits for")
        try:
            return self.due.decode(data)
        except (msgspec.DecodeError, RecursionError) as error:
            raise RogueError(f"it sent a packet that cannot be read: {error}") from None


def _runs_of(run: Callable[[int], None], buckets: list[int], rows_max: int) -> list[Callable[[], None]]:
    """`runs[n]` for 0 to `rows_max` rows: as inline, the counts of one bucket share a function."""
    of_bucket = [partial(run, min(bucket, rows_max)) for bucket in buckets]
    indices = [next(index for index, bucket in enumerate(buckets) if bucket >= rows) for rows in range(rows_max + 1)]
    return [of_bucket[index] for index in indices]


def _numbers_like(state_rows: Sequence[Array]) -> list[tuple[Array, Array]]:
    """Numbers of state rows as a batch's only state. Not those in the arena: a worker could change these."""
    return [(np.full_like(state_rows[0], START), np.full_like(state_rows[1], START))] if state_rows else []


def _ignore(*_: Any) -> None:
    pass
