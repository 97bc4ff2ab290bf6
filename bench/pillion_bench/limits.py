"""Every bound of the bench, in one place: time-outs, sizes and the least that a figure needs."""

from __future__ import annotations

from typing import Final

# Processes
DAEMON_START_S_MAX: Final = 90.0
"""From the start of a daemon to its first welcome. A slower start is a failed start. torch takes seconds to start, twice."""

DAEMON_STOP_S_MAX: Final = 12.0
"""From SIGTERM to the end of a daemon, a little above its own bound for a drain. Then it is killed."""

PEER_START_S_MAX: Final = 60.0
"""From the start of a peer's server to the first connection that it accepts."""

PEER_STOP_S_MAX: Final = 5.0
"""From SIGTERM to the end of a peer's server. Then its whole process group is killed."""

PEER_LOG_CHARACTERS_MAX: Final = 300
"""How much of the end of a failed server's log goes into the error message."""

WORKER_STOP_S_MAX: Final = 3.0
"""From the end of its input to the end of a worker. Then it is killed."""

# Answers
ANSWER_S_MAX: Final = 30.0
"""How long a worker may take to answer, beyond the time that it measures for."""

FIRST_ANSWER_S_MAX: Final = 20.0
"""How long a compared client tries to get its first answer: a server may listen before its model is loaded."""

IDLE_CONNECT_S_MAX: Final = 60.0
"""How long the idle clients of `pillion bench idle` may take to connect."""

BY_HAND_S_MAX: Final = 120.0
"""How long it may take to load a model by hand: torch may need seconds to start, and the model may be large."""

BUDGET_ACT_S_MAX: Final = 0.5
"""How long one act of `pillion bench budget` may take on average, with the pause after it."""

RECORD_ANSWER_S_MAX: Final = 10.0
"""How long one answer may take while an environment is recorded, the first one included."""

ADMIN_ANSWER_S_MAX: Final = 10.0
"""How long the admin port may take to answer a scrape."""

ECHO_WAIT_MS_MAX: Final = 5_000
"""How long the pyzmq baseline waits for one echo."""

# Replay
REPLAY_SLOWDOWN_MAX: Final = 5.0
"""A replay may take this many times as long as was planned before it is given up."""

DEMO_REPLAY_S_MAX: Final = 3.0
"""About how long one replay of `pillion bench demo` takes at most: longer recordings are replayed faster."""

# Sizes
PREPARED_ACTS_MAX: Final = 64
"""How many different acts a load driver prepares. It sends them one after the other, and then again."""

PREPARED_ACTS_BYTES_MAX: Final = 64 << 20
"""How much memory the prepared acts may take. Of large observations there are fewer."""

SOCKET_BUFFER_BYTES: Final = 4 << 20
"""Send and receive buffer of the raw Unix socket: large enough for one observation in a single packet."""

COMPRESS_ROW_BYTES_MIN: Final = 1_024
"""A recording compresses a uint8 tensor of this many bytes a step and more."""

DECOMPRESSED_BYTES_MAX: Final = 1 << 30
"""How large a compressed tensor of a recording may become: a file of a few KB must not fill the memory."""

# Statistics
LATENCY_NS_MAX: Final = 60_000_000_000
"""A latency above one minute counts as one minute."""

SAMPLES_ABOVE_MIN: Final = 10
"""Samples that must lie above a percentile before a table prints it."""

NOISE_MAX: Final = 0.5
"""A/A noise above which `pillion bench disturb` gives no verdict: any effect would be within it."""

ECHO_WARM_UP_S_MAX: Final = 0.1
"""The warm-up of an echo is a quarter of its measurement, up to this."""

assert FIRST_ANSWER_S_MAX < ANSWER_S_MAX, "a client must be able to report why it got no answer"
