"""Every bound and time-out of the client, in one place."""

from __future__ import annotations

from typing import Final

TIMEOUT_S: Final = 10.0
"""How long a request waits for its answer, unless the caller sets `timeout_s`."""

RESEND_S: Final = 1.0
"""A request that has no answer after this long is sent again. The daemon runs it once and repeats the answer."""

READ_FIRST_AFTER_S: Final = 0.001
"""After a pause this long the blocking client reads pending messages before it sends. In a tight loop this costs 2 %."""

TEXTS_KEPT_BYTES_MAX: Final = 1024 * 1024
"""Bytes of encoded texts that a session keeps for each observation of text: a prompt is encoded once, not at each step."""

SEED_BITS: Final = 62
"""Bits of a random seed; the wire takes 63."""

LANE_RECONNECT_S: Final = 0.02
"""How long the lane waits between two attempts to connect."""

LANE_SEND_BUFFER_BYTES: Final = 212_992
"""SO_SNDBUF of the lane: Linux's default, so that the largest packet fits even if this host's default is smaller."""

FRAME_BYTES_MAX: Final = 64 * 1024 * 1024
"""Bytes that libzmq accepts in one frame from the daemon."""

FRAMES_MAX: Final = 66
"""Frames kept of one message: a head, 64 tensors, and one more so that too many are noticed."""

QUEUE_MESSAGES_MAX: Final = 1_000
"""Messages that libzmq holds in each direction."""

LINGER_MS: Final = 200
"""How long libzmq still sends after the socket was closed."""

ZMQ_RECONNECT_MS: Final = 20
"""The first pause of libzmq before it connects again."""

ZMQ_RECONNECT_MS_MAX: Final = 500
"""The longest such pause."""

HEARTBEAT_MS: Final = 5_000
"""How often libzmq checks that the peer is alive; it gives up after three."""

assert RESEND_S < TIMEOUT_S, "a request is sent at least twice before it times out"
