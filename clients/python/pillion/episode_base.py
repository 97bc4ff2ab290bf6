"""What blocking and asyncio episodes share: they build the request of an act and read its answer. Hot path."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import ArrayLike

from pillion.carriers.slots import Slots
from pillion.conversation import BegunGroup, Conversation, Frames, Reply
from pillion.errors import InvalidObservationError, PillionError, RefusedError
from pillion.outcome import Outcome
from pillion.seeds import checked_seeds
from pillion.tensors import Array, Observation, TensorCodec
from pillion_protocol import Action, ErrorCode, decode
from pillion_protocol.steps import ActStep


class EpisodeBase:
    """An episode group: several rows that act together, or one episode without a row axis (`rows` is None).

    Rule: it belongs to the session that began it. When the conversation is opened again, it is lost.
    """

    def __init__(
        self,
        conversation: Conversation,
        codec: TensorCodec,
        start: BegunGroup,
        rows: int | None,
        shares_clock: bool,
    ) -> None:
        begun, memory = start
        self._shares_clock = shares_clock
        self._conversation = conversation
        self._codec = codec
        self._slots = None if memory is None else Slots(memory, conversation.spec, rows or 1)
        frame_bytes = [] if self._slots else codec.frame_bytes(rows)
        self._step = ActStep(conversation.session, conversation.epoch, begun.episode, rows or 1, frame_bytes)
        self._shape, self._dtype = codec.single_form(rows)
        self._action_shape, self._action_dtype = codec.action_form(rows)
        self._session_id = conversation.session
        self._id = begun.episode
        self._rows = rows
        self._leases = begun.leases
        self._row_leases = begun.row_leases
        self._versions = {lease.digest: lease.version for lease in begun.leases}
        self._answer: tuple[Action | bytes, Frames, int] | None = None
        """The last action, its tensors, and the round trip in ns. Its head stays undecoded until someone reads `last`."""
        self._is_ended = False
        self._output_bytes = codec.output_bytes(rows)

    @property
    def version(self) -> str:
        """The version that answers this episode; in a group, that of the first row."""
        return self._leases[self._row_leases[0] if self._row_leases else 0].version

    @property
    def last(self) -> Outcome:
        """The full answer to the last act. Raises `PillionError` before the first."""
        if self._answer is None:
            raise PillionError("no act has been answered yet; call act first")
        answered, tensors, round_trip_ns = self._answer
        action = decode(answered) if isinstance(answered, bytes) else answered
        assert isinstance(action, Action)
        return Outcome(
            action,
            partial(self._codec.decode, tensors, self._rows),
            round_trip_ns,
            self._versions.get(action.digest, ""),
            self._slots is not None,
        )

    def _check_live(self) -> None:
        if self._is_ended:
            raise PillionError("this episode has ended; begin a new one")
        if self._is_lost():
            raise self._conversation.lost()

    def _is_lost(self) -> bool:
        return not self._conversation.is_open or self._conversation.session != self._session_id

    def _mark_ended(self) -> bool:
        """Marks it as ended. Returns True if the daemon must still be asked to end it."""
        is_gone = self._is_ended or self._is_lost()
        self._is_ended = True
        return not is_gone

    def _request(
        self,
        observation: Observation,
        deterministic: bool,
        budget_us: int,
        episode_start: ArrayLike | None,
        seeds: Sequence[int] | None,
        traceparent: str,
    ) -> tuple[int, Frames]:
        conversation = self._conversation
        if self._is_ended or conversation.session != self._session_id or not conversation.is_open:
            self._check_live()
        mask = b"" if episode_start is None else self._mask(episode_start)
        drawn = () if seeds is None else checked_seeds(seeds, mask.count(1))
        step = self._step
        slot = generation = 0
        if self._slots is not None:
            slot, generation = self._slots.write(self._codec.arrays(observation, self._rows))
            step.point(slot, generation)
        elif type(observation) is np.ndarray and observation.shape == self._shape and observation.dtype == self._dtype:
            step.tensors[0][:] = observation.tobytes()
        else:
            for tensor, array in zip(step.tensors, self._codec.arrays(observation, self._rows), strict=True):
                tensor[:] = array.tobytes()
        sent_ns = time.monotonic_ns() if budget_us and self._shares_clock else 0
        if not mask and not traceparent:
            # Only the numbers change: overwrite them in the packet of the last act instead of encoding a head.
            conversation.sequence = sequence = conversation.sequence + 1
            step.fill(sequence, budget_us, deterministic, sent_ns)
            return sequence, step
        return conversation.act(
            self._id,
            self._rows or 1,
            [bytes(tensor) for tensor in step.tensors],
            budget_us,
            deterministic,
            mask,
            drawn,
            traceparent,
            slot,
            generation,
            sent_ns,
        )

    def _mask(self, episode_start: ArrayLike) -> bytes:
        mask = np.asarray(episode_start, dtype=bool)
        if mask.shape != (self._rows or 1,):
            raise InvalidObservationError(f"episode_start: expected shape [{self._rows or 1}], got {list(mask.shape)}")
        return mask.tobytes() if mask.any() else b""

    def _take(self, reply: Reply | Frames, sent_ns: int) -> Array:
        round_trip_ns = time.monotonic_ns() - sent_ns
        action: Action | bytes
        if isinstance(reply, Reply):
            action, tensors = self._read(reply)
        else:
            action, tensors = bytes(reply[0]), reply[1:]
        if list(map(len, tensors)) != self._output_bytes:
            raise RefusedError(
                ErrorCode.SHAPE_MISMATCH,
                "the answer does not fit the spec",
                f"tensor frames of {self._output_bytes} bytes",
                f"{[len(frame) for frame in tensors]}",
            )
        self._answer = (action, tensors, round_trip_ns)
        return np.ndarray(self._action_shape, self._action_dtype, bytearray(tensors[0]))

    def _read(self, reply: Reply) -> tuple[Action, Frames]:
        action = reply.message
        if type(action) is not Action:
            raise self._conversation.failure("action", action)
        if action.leases:
            self._leases, self._row_leases = action.leases, action.row_leases
            self._versions.update((lease.digest, lease.version) for lease in action.leases)
        if action.slot:
            return action, self._outputs_in_slot(action)
        self._step.pattern.learn(reply.head)
        return action, reply.tensors

    def _outputs_in_slot(self, action: Action) -> Frames:
        try:
            return [*self._slots.outputs(action.slot)] if self._slots is not None else []
        except IndexError:
            return []
