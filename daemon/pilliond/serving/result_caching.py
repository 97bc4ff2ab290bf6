"""Answers acts from the result cache, and fills it. Hot path, but only of a daemon that has a cache.

Without one nothing of this runs: the loop has plain `Sessions`, and a tap only while there is a shadow.

- An act is looked up once it is admitted. If it is found, it is answered at once: the loop sees no act.
- Otherwise it runs as any other, on the copy of its observations that was looked up. A client can write to its slot at any
  moment, and an engine may overwrite its inputs: the entry is kept under the very bytes that ran.
- The entry is copied from the batch once the replies are sent, as a shadow's rows are.

Whatever is unusual about an act, it runs: it asks for a sample, its version is recurrent, mixed, out or on probation
(whose bounds judge runs), a shadow compares its policy's batches, its budget has ended, another act of its group waits or
runs still, or its slot was written meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pillion_protocol import BatchClose
from pillion_protocol.lane import Frame
from pilliond.core.action_steps import late_reply
from pilliond.core.episodes import EpisodeGroup
from pilliond.core.served_policy import ServedPolicy, Tap
from pilliond.core.sessions import Sessions
from pilliond.engine.batch_memory import BatchMemory
from pilliond.ipc.metrics_page import POLICY_CELLS, MetricsPage
from pilliond.transport.interface import Incoming, Reply
from pilliond.versions.loaded_version import Version


class CachingSessions(Sessions):
    """Sessions that answer an act themselves if its policy has a cache that knows the answer.

    `clock` is that of the loop, which owns the sessions.
    """

    def __init__(
        self,
        epoch: int,
        policies: Sequence[ServedPolicy],
        sessions_max: int,
        page: MetricsPage,
        clock: Callable[[], int],
    ) -> None:
        super().__init__(epoch, policies, sessions_max, page)
        self._clock = clock
        self.send_cached: Callable[[EpisodeGroup], None] = _nothing
        """Sends the reply of a group, whose act was found. Its next act writes over it, and may be read at once."""
        self.unanswered: dict[EpisodeGroup, bytes] = {}
        """The observations of the acts that were looked up and not found, until they are answered or `sweep_cache`."""

    def receive(self, message: Incoming, now_ns: int, replies: list[Reply]) -> EpisodeGroup | None:
        """As `Sessions.receive`; an act that is answered from the cache is not returned."""
        group = super().receive(message, now_ns, replies)
        if group is None:
            return None
        policy = group.session.policy
        cache = policy.cache
        if cache is None:
            return group
        admitted_ns = self._clock()
        if not _may_be_cached(group, policy) or admitted_ns >= group.deadline_ns:
            self.unanswered.pop(group, None)
            return group
        observations = _copy(group)
        outputs = cache.get(group.version, observations)
        cells = self._page.cells
        its = POLICY_CELLS[policy.number]
        if outputs is None or not self._answer(group, outputs, admitted_ns, replies):
            cells[its.cache_misses] += 1
            self.unanswered[group] = observations
            return group
        cells[its.cache_hits] += 1
        # The outcome "ok". Other acts are counted with their batch.
        cells[its.requests] += 1
        self.send_cached(group)
        return None

    def _answer(self, group: EpisodeGroup, outputs: bytes, admitted_ns: int, replies: list[Reply]) -> bool:
        """Answers an act as `BatchRunner` does after a run; returns whether it did."""
        slot = group.slot
        if slot is not None and slot.generation() != group.generation:
            return False
        if group.starting:
            group.apply_starts()
        group.acts += 1
        step = group.step
        reply: Reply = step
        tensors = step.tensors
        if slot is not None and slot.outputs:
            step.point(group.slot_number, group.generation)
            tensors, reply = slot.outputs, step.in_slot
        elif group.slots is not None:
            step.point(0, 0)
        begin = 0
        for tensor in tensors:
            end = begin + len(tensor)
            tensor[:] = outputs[begin:end]
            begin = end
        received_ns = group.received_ns
        answered_ns = self._clock()
        offset_ns = answered_ns - received_ns
        # No batch ran: it has no rows, and the engine's time is 0.
        step.fill(group.sequence, received_ns, admitted_ns - received_ns, offset_ns, offset_ns, 0, BatchClose.CACHED)
        reply[0] = group.session.peer
        if answered_ns > group.deadline_ns:
            reply = late_reply(reply, answered_ns - group.deadline_ns)
        group.answered(reply, tensors)
        replies.append(reply)
        return True

    def sweep_cache(self) -> None:
        """Frees the entries of versions that are unloaded, forgets acts that were refused, and counts. Call it on every tick."""
        for group in [group for group in self.unanswered if not group.waiting]:
            del self.unanswered[group]
        cells = self._page.cells
        for policy in self.policies.values():
            cache = policy.cache
            if cache is not None:
                cache.keep_only(set(policy.residency.versions()))
                cache.free()
                its = POLICY_CELLS[policy.number]
                cells[its.cache_rows], cells[its.cache_bytes] = cache.rows, cache.nbytes


class CacheFiller:
    """A tap that keeps the answers of the acts that were not found, and passes each batch on to the tap of a shadow."""

    def __init__(self, sessions: CachingSessions) -> None:
        self._unanswered = sessions.unanswered
        self._owed: tuple[Version, list[EpisodeGroup]] | None = None
        self._shadow: Tap | None = None

    def set_shadow(self, tap: Tap | None) -> None:
        """Passes each batch on to `tap` from now on; None: to nothing."""
        self._shadow = tap

    def take(self, version: Version, memory: BatchMemory, groups: list[EpisodeGroup]) -> None:
        """As `ShadowTap.take`. What is kept is copied in `pay`, before the batch's memory is used again."""
        self._owed = version, groups
        if self._shadow is not None:
            self._shadow.take(version, memory, groups)

    def pay(self) -> None:
        """Keeps the answers of the last batch taken, if they are not kept yet."""
        owed = self._owed
        if owed is not None:
            self._owed = None
            version, groups = owed
            for group in groups:
                observations = self._unanswered.pop(group, None)
                # An act that was answered with an error left the sequence as it was.
                if observations is not None and group.last_sequence == group.sequence:
                    cache = group.session.policy.cache
                    assert cache is not None
                    cache.put(version, observations, group.rows, b"".join(group.batch_view.outputs))
        if self._shadow is not None:
            self._shadow.pay()

    def close(self) -> None:
        """Has nothing to release: the shadow's tap belongs to whoever set it."""


def _nothing(group: EpisodeGroup) -> None:
    """Stands in for the loop's function until that is known."""


def _may_be_cached(group: EpisodeGroup, policy: ServedPolicy) -> bool:
    """Whether the waiting act of `group` depends on nothing but its observations, and nobody needs to see it run."""
    version = group.version
    return (
        group.deterministic
        and not version.watched
        and policy.tap is None
        and version.out is None
        and not version.states
        and not version.engine.parts
        and group.queue is None
        and group.running is None
    )


def _copy(group: EpisodeGroup) -> bytes:
    """Copies the observations of the waiting act, once, and makes the act run on the copy; returns its bytes.

    The bytes of different acts differ, although the tensors are only put one behind the other: their sizes are those of the
    spec, for as many rows as the whole has.
    """
    tensors = group.tensors
    if len(tensors) == 1:
        copied = bytes(tensors[0])
        group.tensors = [copied]
        return copied
    copied = b"".join(tensors)
    view = memoryview(copied)
    cut: list[Frame] = []
    begin = 0
    for size in group.frames_bytes:
        cut.append(view[begin : begin + size])
        begin += size
    group.tensors = cut
    return copied
