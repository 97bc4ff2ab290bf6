"""What blocking and asyncio episodes share: the request of an act and the reading of its answer. Hot path."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from pillion.conversation import Conversation, Frames, Reply
from pillion.errors import InvalidObservationError, PillionError, RefusedError
from pillion.outcome import Outcome, timings_of
from pillion.seeds import checked_seeds
from pillion.tensors import Array, Observation, TensorCodec
from pillion_protocol import Action, Begun, ErrorCode


def useful_s(budget_us: int) -> float:
    """How long an answer is of use, in seconds."""
    return budget_us / 1e6 if budget_us else math.inf


class Handle:
    """One begin: a row (`rows` None, no row axis), or several rows that act together.

    Rule: it belongs to the epoch it was begun in; when the conversation is opened again, it is lost.
    """

    def __init__(self, conversation: Conversation, codec: TensorCodec, begun: Begun, rows: int | None) -> None:
        self._conversation = conversation
        self._codec = codec
        self._session_id = conversation.session
        self._id = begun.episode
        self._rows = rows
        self._leases = begun.leases
        self._row_leases = begun.row_leases
        self._versions = {lease.digest: lease.version for lease in begun.leases}
        self._answer: tuple[Action, Frames, int] | None = None
        self._is_ended = False
        self._output_bytes = codec.output_bytes(rows)

    @property
    def version(self) -> str:
        """The version that this handle's first row holds a lease of."""
        return self._leases[self._row_leases[0] if self._row_leases else 0].version

    @property
    def last(self) -> Outcome:
        """What the last act came to; raises `PillionError` before the first."""
        if self._answer is None:
            raise PillionError("nothing has been answered yet: call act first")
        action, tensors, round_trip_ns = self._answer
        return Outcome(
            sequence=action.sequence,
            version=self._versions.get(action.digest, ""),
            digest=f"sha256:{action.digest.hex()}",
            fallback=action.fallback,
            outputs=self._codec.decode(tensors, self._rows),
            timings=timings_of(action, round_trip_ns),
        )

    def _check_live(self) -> None:
        if self._is_ended:
            raise PillionError("this episode has ended: begin another")
        if self._is_lost():
            raise self._conversation.lost()

    def _is_lost(self) -> bool:
        return not self._conversation.is_open or self._conversation.session != self._session_id

    def _mark_ended(self) -> bool:
        """Notes that the caller is done with it; False where the daemon need not be told."""
        told = self._is_ended or self._is_lost()
        self._is_ended = True
        return not told

    def _request(
        self,
        observation: Observation,
        deterministic: bool,
        budget_us: int,
        episode_start: ArrayLike | None,
        seeds: Sequence[int] | None,
        traceparent: str,
    ) -> tuple[int, Frames]:
        self._check_live()
        tensors = self._codec.encode(observation, self._rows)
        mask = b"" if episode_start is None else self._mask(episode_start)
        drawn = () if seeds is None else checked_seeds(seeds, mask.count(1))
        return self._conversation.act(
            self._id, self._rows or 1, tensors, budget_us, deterministic, mask, drawn, traceparent
        )

    def _mask(self, episode_start: ArrayLike) -> bytes:
        mask = np.asarray(episode_start, dtype=bool)
        if mask.shape != (self._rows or 1,):
            raise InvalidObservationError(f"episode_start: expected shape [{self._rows or 1}], came {list(mask.shape)}")
        return mask.tobytes() if mask.any() else b""

    def _take(self, reply: Reply, sent_ns: int) -> Array:
        round_trip_ns = time.monotonic_ns() - sent_ns
        action = self._conversation.acted(reply)
        came = [len(frame) for frame in reply.tensors]
        if came != self._output_bytes:
            raise RefusedError(
                ErrorCode.SHAPE_MISMATCH,
                "the answer does not fit the spec",
                f"frames of {self._output_bytes} bytes",
                f"{came}",
            )
        self._answer = (action, reply.tensors, round_trip_ns)
        return self._codec.decode_first(reply.tensors, self._rows)
