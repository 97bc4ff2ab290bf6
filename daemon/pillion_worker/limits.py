"""Every bound of the worker and its arena, in one place."""

from __future__ import annotations

from typing import Final

PACKET_BYTES_MAX: Final = 128 * 1024
"""One packet of the worker channel. The largest describes the tensors of a policy."""

FAILURE_BYTES_MAX: Final = 400
"""The message of a failed batch in the arena, as UTF-8."""

DEPTH_MAX: Final = 4
"""Batches in flight: two overlap copying and computing, and no engine gains from more than a few."""

MEASURED_RUNS_MAX: Final = 200
"""Runs of each bucket that its service time is measured with: two of them lie above a p99."""

MEASURED_NS_MAX: Final = 20_000_000
"""How long the runs of one bucket may take before measuring it ends; there is always one run."""

ROW_ELEMENTS_MAX: Final = 2**31
"""Elements in a row of a tensor. A shape that claims more is a mistake, or an attempt to make the daemon allocate."""

RANK_MAX: Final = 16
"""Axes of a row of a tensor. numpy has no more than 32 with the axis of the rows."""

ARENA_BYTES_MAX: Final = 64 * 1024**3
"""An arena: far more than any policy's batches need, far less than addresses run out at."""

DESCRIPTION_BYTES_MAX: Final = 4_096
"""What an engine says of itself, as JSON: a few versions and counts for operators."""

DESCRIPTION_KEYS_MAX: Final = 32
"""Entries of that description."""

FALLBACK_CHARS_MAX: Final = 500
"""Why an engine does not do what it was asked to: it is a part of its description."""

REASON_CHARS_MAX: Final = 2_000
"""Why a worker is lost: it goes into messages and logs, and may quote what a hostile worker sent."""

RINGS_MAX: Final = 1_024
"""Rings that a spinning worker leaves unread, and that it reads at once; far fewer than a pipe holds."""

WEIGHTS_HEADER_BYTES_MAX: Final = 16 * 1024**2
"""The header of a weights file: room for the names and shapes of 100,000 tensors."""

TRACEBACK_CHARS_MAX: Final = 20_000
"""What a worker writes to the log of an error in the package of a policy, whose text may be as large as memory."""

PT2_MEMBERS_MAX: Final = 65_536
"""Members of a file of `torch.export`: a few, and one for each weight. A longer list would only take time to read."""

ENGINE_HEADER_BYTES_MAX: Final = 65_536
"""What a build in the cache depends on, as JSON: names, versions and the shapes of every input."""

BUILD_LEFT_S: Final = 7_200
"""When what a build left behind is removed: twice as long as the longest build may take."""
