"""Every bound of the daemon, in one place.

Memory of one policy at the default limits, with 28 KB rows (a stack of four 84×84 frames). Each policy of a daemon has
these bounds for itself, unless the line says otherwise; `policy_mb` is the sum of those that `policies_mb_max` bounds:
  batch memory       devices × engine.depth × rows_max × row   256 × 28 KB = 7 MB at depth 1; the stable version's
  waiting rows       queue_rows_max × row  1024 × 28 KB = 29 MB
  sessions           sessions_max × ~2 KB  4096 × 2 KB =   8 MB, of all policies
  last replies       one per episode group, the size of its outputs
  recurrent state    states_mb_max for all episode groups; once per version in a group whose rows lease several
  slots              slots_mb_max for all episode groups; a page takes memory once it was written to
  result cache       engine.cache_mb_max, for all versions; 0 without engine.cache_rows_max
  KServe requests    KSERVE_REQUESTS_MAX × KSERVE_BODY_BYTES_MAX, in the control process   32 × 16 MB = 512 MB, of all policies
  shadow             shadow.ring_mb, shared by three processes; its own process takes at most staging.memory_mb_max, and
                     the worker that it starts for a version that is no ONNX graph what any worker may
  old versions       old_mb_max, their batch memory too; while a version loads, the new version and the old ones at once
  arms, held         models and batch memory as of the stable version, each, of at most ARMS_MAX and EVALUATION_HOLDS_MAX
  workers            worker_memory_mb_max each, as address space and as resident memory, one for each loaded version that
                     is not inline: at most VERSION_CELLS_PER_POLICY - 2. Its arena, which is the batch memory above,
                     counts there and here, and exists once. Not part of `policy_mb`: it is what a worker may not exceed,
                      8 GB at the default, and a small ONNX policy needs 60 to 150 MB. Of addresses, a worker of torch or
                      Python may take CODE_ADDRESS_MB more.
  metrics page       VERSION_CELLS_MAX × ~1.3 KB + POLICIES_MAX × ~0.6 KB   368 × 1.3 KB = 480 KB, of all policies

In the rows of a batch memory, every tensor counts: observations, outputs, each state before and after, and the parameters of
a distribution. `policy_mb` counts the parameters as nothing: their shape is only known once the model is loaded. An
observation of text counts there once, and takes up to twice as much: its newest rows are kept, see TEXT_ROWS_KEPT_BYTES_MAX.
"""

from __future__ import annotations

from typing import Final

import msgspec

from pillion_artifacts.limits import EVALUATION_HOLDS_MAX
from pillion_protocol import HEAD_BYTES_MAX, Limits

NEVER_NS: Final = 2**63 - 1
"""A moment that never comes: the deadline of an act without a budget."""

# Sessions and the serving loop

HEARTBEAT_MS: Final = 5_000
"""A session that is silent for this long gets a ping, which shows whether its peer has left."""

SILENT_MS_MAX: Final = 600_000
"""A session that is silent for this long ends, even if its peer lives: it must not keep its leases for ever."""

SENT_AGE_NS_MAX: Final = 60_000_000_000
"""How long ago an act can have been sent. A time further back is of another clock: another host, or a time namespace."""

TICK_MS: Final = 100
"""How often the serving loop does its housekeeping."""

TRAFFIC_LINGER_MS: Final = 50
"""How long the serving loop waits for more traffic before its host gets a turn. A turn costs as much as a step, and the steps
after it find cold caches: with 2 ms the p99 of a busy client on one core was 1.8 times as high, with 50 ms nothing is seen."""

BATCHES_PER_OBSERVATION: Final = 8
"""Of the batches of inline engines one in so many teaches the service time: each would cost an act a hundredth."""

ROUNDS_PER_BATCH_MAX: Final = 64
"""Polls for more messages before the batch runs, even if more rows would fit."""

MESSAGES_PER_POLL_MAX: Final = 16
"""Messages received at once from a source if no other is ready; otherwise one from each."""

RESULT_CACHE_ROWS_HARD_MAX: Final = 65_536
"""The most that `engine.cache_rows_max` can be. The loop waits while the table of a cache is laid out anew, which takes some
3 ms once in 100,000 entries of this many; and a full garbage collection takes 2 ms longer."""

RESULT_CACHE_MB_HARD_MAX: Final = 65_536
"""The most that `engine.cache_mb_max` can be."""

RESULT_CACHE_ENTRY_BYTES: Final = 320
"""What an entry of a result cache takes beside its bytes, rounded up: the headers of its objects, and its places in the
table. Measured: 250 to 275."""

RESULT_CACHE_EVICTIONS_MAX: Final = 256
"""Entries that one new entry of a result cache may push out: the loop waits meanwhile."""

RESULT_CACHE_FREED_MAX: Final = 256
"""Entries of unloaded versions that a tick frees: the loop waits meanwhile."""

EVENTS_MAX: Final = 256
"""Descriptors that one poll reports; the next poll reports the others."""

SAMPLES_MAX: Final = 1_024
"""Numbers gathered for acts before they are added to the metrics page: two per act."""

SESSIONS_PER_PIECE_MAX: Final = 16
"""Sessions in one page of the list for operators; the loop waits while a page is made."""

EPISODE_GROUPS_PER_PIECE_MAX: Final = 128
"""Episode groups in one page of that list."""

# Wire and carriers

SPEC_BYTES_MAX: Final = HEAD_BYTES_MAX - 2_048
"""An encoded spec: the rest of a welcome must fit into the head too."""

TENSOR_FRAMES_MAX: Final = 64
"""Tensor frames kept of one message; further frames are read and dropped, so that the refusal can be sent."""

MESSAGE_BYTES_HARD_MAX: Final = 64 * 1024 * 1024
"""libzmq closes the connection for a larger frame. Smaller ones that are still too large get a typed error."""

SEND_QUEUE_MESSAGES_MAX: Final = 1_000
"""Replies that wait for a peer that does not read. Beyond it that peer's sessions are dropped."""

RECEIVE_QUEUE_MESSAGES_MAX: Final = 1_000
"""Messages of one peer that libzmq reads ahead; beyond it libzmq stops reading from that peer only."""

LINGER_MS: Final = 1_000
"""How long the last replies and goodbyes may take to leave."""

LANE_BACKLOG_MAX: Final = 1_024
"""Connections of the lane that wait to be accepted."""

LANE_SEND_BUFFER_BYTES: Final = 212_992
"""Replies that wait for a peer of the lane that does not read, as the kernel counts them; beyond it the peer is dropped."""

SOCKET_PATH_BYTES_MAX: Final = 107
"""sizeof(sockaddr_un.sun_path) - 1, see unix(7)."""

PEER_GROUPS_BYTES_MAX: Final = 1_024
"""The most that Python's `getsockopt` takes: 256 groups of a peer's user."""

# Processes

HOPELESS_PER_TRIAL: Final = 256
"""Of the acts that cannot be done within their budget as far as is known, one in so many is tried."""

CLOSE_MARGIN_NS: Final = 100_000
"""A batch that closes for its most urgent act closes this much earlier than the engine's time asks for."""

SERVING_SLICE_US: Final = 100
"""EEVDF time slice of the serving process (the kernel minimum), so that a message preempts threads with longer slices."""

CONTROL_NICENESS: Final = 10
"""The control process is this much nicer than the serving process: it gets a tenth of a CPU that both want."""

BACKGROUND_NICENESS: Final = 10
"""Niceness of a process that loads a version for staging or a shadow: a tenth of a CPU that others want."""

START_S_MAX: Final = 60.0
"""From the start of the serving process to READY; slower is a failed start."""

DRAIN_S_MAX: Final = 10.0
"""From SIGTERM to the end of the serving process; then it is killed."""

DRAIN_ENGINES_NS_MAX: Final = 8_000_000_000
"""How long a drain waits for engines outside the loop; shorter than `DRAIN_S_MAX`, after which the process is killed."""

RESTART_DELAY_S_MIN: Final = 0.1
"""The pause before a serving process that died is restarted; it doubles with each failure."""

RESTART_DELAY_S_MAX: Final = 5.0
"""The longest such pause."""

RESTART_STEADY_S_MIN: Final = 60.0
"""How long a serving process must be ready to clear the failures before it: a short READY proves nothing."""

RESTARTS_WITH_ALL_MAX: Final = 2
"""Failed starts in a row after which the next start loads only the stable version."""

RESTARTS_WITHOUT_READY_MAX: Final = 5
"""Failed starts in a row after which the daemon gives up."""

LOOK_MS: Final = 250
"""How often the control process looks whether the serving process makes progress."""

LOOK_MS_MAX: Final = 500
"""What one look counts for at most: a control process that was itself stopped has seen nothing meanwhile."""

TICK_AGE_MS_MAX: Final = 1_000
"""Beyond this age of the last tick, the serving process does not count as ready: acts may not be answered."""

STALLED_MS_MAX: Final = 250
"""Time of its own that a late serving process may spend without a tick; beyond it systemd's watchdog gets no sign of life."""

LIVE_AGE_MS_MAX: Final = 2_000
"""Beyond this age of the last look, the control process does not count as alive."""

CHANNEL_MESSAGE_BYTES_MAX: Final = 1 << 20
"""One message between the daemon's processes."""

CHANNEL_DESCRIPTORS_MAX: Final = 2
"""Descriptors that travel with one message: the model and the golden pairs."""

STARTUP_DESCRIPTORS_MAX: Final = 250
"""Descriptors that travel with one part of a startup message: the kernel takes 253."""

SHADOW_START_S_MAX: Final = 300.0
"""From the start of a shadow process until its version is warm, besides the start of its worker: it loads at a low priority."""

SHADOW_LOOK_S_MAX: Final = 0.02
"""Longest sleep of the shadow process between two looks into its ring."""

SHADOW_OUTPUTS_MAX: Final = 64
"""Outputs of a shadowed version: each has cells in the shadow page."""

WORKER_REPLICAS_MAX: Final = 16
"""Devices that `engine.device` names: a version has a worker, with all its memory, on each."""

WORKER_DEPTH_MAX: Final = 4
"""Batches of one worker at once: each has memory of its own."""

ENGINE_DEVICES_MAX: Final = 64
"""CUDA devices of a host: `engine.device` names one of the first so many."""

ENGINE_DEVICE_MB_MAX: Final = 4_000_000
"""The most that `engine.device_memory_mb` can be: more than any device has, so that a number of bytes is noticed."""

BUILD_S_MAX: Final = 3_600.0
"""The most that `engine.build_s_max` can be. `pillion_worker.limits.BUILD_LEFT_S` is twice as long."""

CODE_ADDRESS_MB: Final = 24_576
"""Address space of a worker of torch or Python besides `engine.worker_memory_mb_max`: their libraries reserve far more than
they use. Its resident memory is bounded by the setting alone."""

INTERPRETER_CHECK_S_MAX: Final = 60.0
"""How long an interpreter may take to show that it can run workers: it imports numpy, perhaps from a cold disk."""

INTERPRETER_CHECK_BYTES_MAX: Final = 16_384
"""How much of its answer is kept, from the end: its last line is one of a few words."""

TRIAL_START_FACTOR: Final = 5
"""How many times `engine.start_s_max` a worker that is tried may take for its start: it loads at a low priority."""

TRIAL_RUN_S_MAX: Final = 120.0
"""How long a run of a worker that is tried may take, at that priority."""

WAIT_LOOK_S: Final = 1.0
"""How long a blocking wait for a worker sleeps at once. What was longer was a stop of this process: it counts as twice that."""

WORKER_MEMORY_MB_MIN: Final = 256
"""The least that `engine.worker_memory_mb_max` can be: an interpreter with numpy and ONNX Runtime needs most of it."""

WORKER_START_S_MAX: Final = 3_600.0
"""The most that `engine.start_s_max` can be: a large model is read, compiled and warmed in minutes."""

LOOK_NS_MAX: Final = 3 * TICK_MS * 1_000_000
"""The most that one look at a worker counts of the time since the last one. More passed where this process was stopped."""

POLLED_RUN_NS_MAX: Final = 150_000
"""Batches of a worker that take less, from submission to end, are polled for: the loop would be asleep for less than it takes to
wake up."""

POLL_NS_MAX: Final = 200_000
"""How long the loop polls for the end of one such batch before it sleeps after all."""

UNPOLLED_BATCHES: Final = 64
"""Batches that are not polled for after one that did not end in time. So a worker that shares the loop's core loses little."""

WORKER_HANG_FACTOR: Final = 20
"""A batch that takes this many times as long as the slowest ones before it hangs."""

SLOWER_FACTOR_MAX: Final = 4
"""One run makes the slowest time at most this many times as long, plus `SLOWER_NS_MAX`. A run that seems to have taken an hour,
because this process was stopped, would let the next ones hang for a day."""

SLOWER_NS_MAX: Final = 100_000_000
"""What one run may add to the slowest time besides, in ns: for a version that ran only for microseconds until then."""

REPLICA_SLOWER_NS_MAX: Final = 10_000
"""What one run may add to what a replica's runs are expected to take, besides `SLOWER_FACTOR_MAX`, in ns."""

WORKER_LOSSES_MAX: Final = 5
"""Workers lost in a row, none of which completed a batch, after which the version is out. A worker whose acts run again does
not count: the next ones show which act ended it."""

WORKER_DELAY_S_MIN: Final = 0.1
"""The pause before the second replacement of a worker; the first comes at once, each further pause is twice as long."""

WORKER_DELAY_S_MAX: Final = 10.0
"""The longest pause before a worker is replaced."""

WORKER_SERVING_DELAY_S_MAX: Final = 1.0
"""The longest pause where the lost worker, or the one before it, completed batches: others wait, and are answered."""

WORKER_STEADY_S_MIN: Final = 60.0
"""A worker that served this long clears the losses before it."""

WORKER_LOOK_S: Final = 1.0
"""How often the control process reads how much memory each worker has, and reaps those that have ended."""

WORKER_END_S_MAX: Final = 1.0
"""How long to wait for killed workers when their serving process has ended, and for the exit code of one that is gone."""

ENGINE_TEXT_CHARACTERS_MAX: Final = 100
"""How much of what a worker says of its engine is shown: a broken one may say anything."""

ENGINE_REASON_CHARACTERS_MAX: Final = 300
"""How much of its reason for a fallback is shown: a sentence."""

WORKER_RUN_S_MAX: Final = 30.0
"""How long a run of a worker may take before it serves, where somebody waits for it: golden pairs, certificates."""

STATES_BYTES_MAX: Final = 1_000_000_000
"""Recurrent states of a version's episodes, where no policy's `states_mb_max` says it: in trials."""

# Policies and their versions

POLICIES_MAX: Final = 16
"""Policies that one daemon serves: each has cells in the metrics page, engines and a route of its own."""

ANSWER_S_MAX: Final = 60.0
"""From a request to the serving process until it has answered, unless it loads a version."""

LOAD_MARGIN_S: Final = 10.0
"""What the request to load a version may take besides the tries to start its worker."""

LOAD_MARGIN_BYTES: Final = 96 * 1024 * 1024
"""Address space that must be free besides a version's own before it loads, for a thread's stack and heap. The C library
ends the process if a thread finds no memory for its own data."""

LOAD_COPIES: Final = 3
"""Copies of a model's bytes that a load may need: as parsed, as initial values of the graph, and as laid out to run."""

ARMS_MAX: Final = 3
"""Arms of a traffic split, besides the stable version."""

OLD_VERSIONS_MAX: Final = 8
"""Versions that may stay loaded besides the current one."""

VERSION_CELLS_PER_POLICY: Final = OLD_VERSIONS_MAX + ARMS_MAX + EVALUATION_HOLDS_MAX + 4
"""Metrics indices of one policy: `mixed`, the stable version, one that loads, one that unloads, old versions, arms, held
versions. Policy number n has those from n × this on; the first of them is `mixed`."""

VERSION_CELLS_MAX: Final = POLICIES_MAX * VERSION_CELLS_PER_POLICY
"""Metrics indices of all policies."""

TEXT_ROWS_KEPT_BYTES_MAX: Final = 1024 * 1024
"""Bytes of the newest rows of a text observation that each batch memory keeps, to check only texts that are new: 256 rows
of 4 KB. It keeps no more than the observation itself takes in the batch."""

CERTIFIED_OBSERVATIONS_MAX: Final = 64
"""Observations that the certifier tries; of golden pairs, the first ones."""

SERVICE_BUCKETS_MAX: Final = 14
"""Buckets of one version whose service times are on the metrics page: the 13 powers of two up to 4,096, and `rows_max`."""

INLINE_US_HARD_MAX: Final = 1_000_000
"""The most that `engine.inline_us_max` can be: nothing is read while an inline engine runs."""

MEASURED_NS_MAX: Final = 50_000_000
"""How long the runs of one bucket are measured. There are at most 13 buckets, and each gets five runs at least."""

MEASURED_RUNS_MAX: Final = 1_000
"""Runs after which that ends sooner: five p99 of 200 runs each."""

OPERATIONS_KEPT_MAX: Final = 32
"""Operations that the admin port still returns by their number: the last ones."""

P99_ACTS_MIN: Final = 200
"""Acts without which a p99 says too little: two of 200 lie above it."""

EVALUATION_S_MAX: Final = 90 * 86_400
"""The longest evaluation hold; it can be renewed."""

# KServe

KSERVE_REQUESTS_MAX: Final = 32
"""Inference requests at once, for all policies; one more gets 503. Each may hold a body and an episode group."""

KSERVE_BODY_BYTES_MAX: Final = 16 * 1024 * 1024
"""The decompressed body of an inference request. A policy with small observations accepts less: what `rows_max` rows need."""

KSERVE_HEADER_BYTES_MAX: Final = 64 * 1024
"""The JSON of an inference request besides its numbers."""

KSERVE_NUMBER_BYTES_MAX: Final = 32
"""A number in JSON with its comma and blanks: 17 digits, a sign, a point, an exponent."""

KSERVE_BODY_S_MAX: Final = 10.0
"""How long a body may take to arrive. Meanwhile it takes one of `KSERVE_REQUESTS_MAX`."""

KSERVE_ANSWER_S_MAX: Final = 10.0
"""How long an inference may take, from its begin on the data path to its answer."""

KSERVE_IDLE_GROUPS_MAX: Final = 8
"""Episode groups kept for the next request with as many rows, which saves a round trip. Each leases a version."""

KSERVE_IDLE_GROUP_S: Final = 2.0
"""How long such a group is kept: it must not keep an old version loaded."""

KSERVE_SEQUENCES_MAX: Final = 32
"""Sequences of one policy at once; one more ends the one unused for longest. With the requests that makes 64 episode
groups."""

KSERVE_SEQUENCE_IDLE_S: Final = 60.0
"""A sequence that is unused for this long ends: there is no other sign that its client is gone."""

KSERVE_SEEDS_MAX: Final = 10_000
"""Seeds tried until those of a request fall into the version that it names: about 10 ms of the control process."""

# The admin port

ADMIN_CONNECTIONS_MAX: Final = 128
"""Connections at one address; one more closes the oldest that is not being answered."""

ADMIN_HEAD_S_MAX: Final = 5.0
"""How long a connection may take to send the head of a request; then it is closed."""

ADMIN_BODY_S_MAX: Final = 5.0
"""From the head of a request to the end of its body."""

ADMIN_LINGER_S_MAX: Final = 1.0
"""How long an unwanted body is still read, so that the answer reaches a peer that is sending it."""

ADMIN_HANDSHAKE_S_MAX: Final = 5.0
"""From a connection to the end of its TLS handshake."""

REFUSALS_BURST_MAX: Final = 10
"""Refusals that one peer gets with their reason; then `REFUSALS_PER_S`. Beyond that it gets 429 with Retry-After."""

REFUSALS_PER_S: Final = 1.0
"""How fast that budget refills."""

REFUSED_PEERS_MAX: Final = 1_024
"""Refused peers that are remembered; beyond it the one refused longest ago is forgotten."""

TOKENS_MAX: Final = 256
"""Tokens in the file: each request compares them all."""

SECRET_BYTES_MAX: Final = 1024 * 1024
"""A file that holds a secret: tokens, a certificate or a key."""


ADMIN_REQUEST_BYTES_MAX: Final = 64 * 1024
"""A request's body; larger ones get 413. Inference requests have a bound of their own."""

ADMIN_DETAIL_CHARACTERS_MAX: Final = 200
"""How much of a request's own text a problem or the log repeats."""

ADMIN_PAGE_MAX: Final = 1_000
"""Sessions, or records of the audit log, in one answer."""

OPERATION_DIGITS_MAX: Final = 18
"""Digits of an operation's number in a path: it fits into 64 bits."""

ADMIN_ANSWER_S_MAX: Final = 10.0
"""How long an operator's command waits for the admin port."""

KSERVE_TENSORS_MAX: Final = 64
"""Inputs, or requested outputs, of one inference request."""


class PolicyLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The bounds that an operator can set for each policy."""

    rows_max: int = 256
    """Rows in one batch, and so in one act and one begin."""
    queue_rows_max: int = 1_024
    """Rows that wait for the engine; beyond it an act gets `overloaded`."""
    episodes_max: int = 64
    """Episode groups of one session at once; beyond it a begin gets `overloaded`."""
    batch_wait_us_max: int = 0
    """How long a batch may wait for the other lock-step sessions. 0: it runs as soon as the engine is free."""
    states_mb_max: int = 1_024
    """Recurrent state of all episode groups together; beyond it a begin gets `overloaded`."""
    slots_mb_max: int = 1_024
    """Shared memory for the slots of all episode groups; beyond it observations travel inline. 0: always inline."""

    def __post_init__(self) -> None:
        if not 1 <= self.rows_max <= 4_096:
            raise ValueError(f"rows_max: expected 1 to 4096, got {self.rows_max}")
        if self.queue_rows_max < self.rows_max:
            raise ValueError(f"queue_rows_max: expected at least rows_max ({self.rows_max}), got {self.queue_rows_max}")
        if self.episodes_max < 1:
            raise ValueError(f"episodes_max: expected at least 1, got {self.episodes_max}")
        if self.states_mb_max < 0:
            raise ValueError(f"states_mb_max: expected 0 or more, got {self.states_mb_max}")
        if self.slots_mb_max < 0:
            raise ValueError(f"slots_mb_max: expected 0 or more, got {self.slots_mb_max}")
        if not 0 <= self.batch_wait_us_max <= 1_000_000:
            raise ValueError(f"batch_wait_us_max: expected 0 to 1000000, got {self.batch_wait_us_max}")

    def for_wire(self) -> Limits:
        """Returns the part that a welcome holds."""
        return Limits(rows_max=self.rows_max, episodes_max=self.episodes_max, head_bytes_max=HEAD_BYTES_MAX)


class ServingLimits(PolicyLimits, frozen=True, forbid_unknown_fields=True):
    """Section `[limits]`: the bounds of each policy that sets none of its own, and those of the whole daemon."""

    sessions_max: int = 4_096
    """Sessions at once, of all policies; beyond it a hello gets `overloaded`."""
    policies_mb_max: int = 32_768
    """What several policies may take together (`policy_mb`). With more the daemon does not start. One policy alone is not
    bounded by it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sessions_max < 1:
            raise ValueError(f"sessions_max: expected at least 1, got {self.sessions_max}")
        if self.policies_mb_max < 1:
            raise ValueError(f"policies_mb_max: expected at least 1, got {self.policies_mb_max}")

    def of_policy(self) -> PolicyLimits:
        """Returns the bounds of one policy, without those of the whole daemon."""
        return PolicyLimits(**{name: getattr(self, name) for name in PolicyLimits.__struct_fields__})


def policy_mb(
    limits: PolicyLimits, row_bytes: int, old_mb_max: int, ring_mb: int, depth: int = 1, cache_mb: int = 0
) -> int:
    """Returns the most MB that one policy may take within its limits: the sum at the top, without its stable version.

    `row_bytes` are the bytes of one row of its observations, outputs and states (before and after), `old_mb_max` those of
    its old versions in MB, `ring_mb` the shared memory of its shadow in MB, `depth` the batches of all its workers at
    once, `cache_mb` its result cache in MB.
    """
    rows_bytes = (depth * limits.rows_max + limits.queue_rows_max) * row_bytes
    return -(-rows_bytes // 1_000_000) + limits.states_mb_max + limits.slots_mb_max + old_mb_max + ring_mb + cache_mb


ENGINE_BOUNDS: Final = {
    "threads": (1, 256),
    "strict_rows": (1, 4_096),
    "depth": (1, WORKER_DEPTH_MAX),
    "spin_us": (0, 1_000_000),
    "hang_ms_min": (10, 600_000),
    "keep_warm_ms": (0, 60_000),
    "device_memory_mb": (0, ENGINE_DEVICE_MB_MAX),
    "build_cache_mb_max": (1, 1_000_000),
    "cache_rows_max": (0, RESULT_CACHE_ROWS_HARD_MAX),
    "cache_mb_max": (1, RESULT_CACHE_MB_HARD_MAX),
}
"""The least and the most of settings of `[engine]`, by name."""

assert HEARTBEAT_MS * 2 < SILENT_MS_MAX
assert TICK_MS < HEARTBEAT_MS
assert TICK_MS * 5 < TICK_AGE_MS_MAX
# The truth within two seconds: until it is late, one look to see that, one to begin with, and those that count.
assert TICK_AGE_MS_MAX + 2 * LOOK_MS + STALLED_MS_MAX < LIVE_AGE_MS_MAX
assert LOOK_MS < LOOK_MS_MAX
