"""Every bound of the store, in one place. What is larger is refused before it is read."""

from __future__ import annotations

from typing import Final

MODEL_BYTES_MAX: Final = (1 << 31) - 1
"""A protobuf message, hence an ONNX file in one piece, cannot be larger."""

CARD_BYTES_MAX: Final = 1 << 20
"""A model card is written by people."""

GOLDEN_BYTES_MAX: Final = 1 << 28
"""Golden pairs are some hundred observations; 256 MiB holds as many of 84×84×4 at 28 KB as anybody compares."""

PREPROCESSOR_BYTES_MAX: Final = 1 << 28
"""A preprocessor is a graph beside the policy's."""

TUNED_BYTES_MAX: Final = 1 << 20
"""Tuned settings are a small table."""

ATTESTATION_BYTES_MAX: Final = 1 << 20
"""An envelope holds a statement and a few signatures."""

MANIFEST_BYTES_MAX: Final = 1 << 20
"""A manifest names a handful of files."""

LAYERS_MAX: Final = 16
"""Files of one version."""

INDEX_BYTES_MAX: Final = 1 << 28
"""An entry is about 600 bytes: this holds 400,000 versions."""

STATE_BYTES_MAX: Final = 1 << 26
"""An alias, the pins, an intent: files that are read whole. An intent of 100,000 blobs has 30 MB."""

ATTESTATIONS_MAX: Final = 64
"""Signatures looked at for one version."""

ARCHIVE_BYTES_MAX: Final = 1 << 36
"""What an import may bring in all: 64 GiB."""

ARCHIVE_MEMBERS_MAX: Final = 1 << 20
"""Files of one archive."""

CHUNK_BYTES: Final = 1 << 20
"""What is in memory of a file that is copied or hashed."""

GRAPH_DEPTH_MAX: Final = 32
"""Graphs within graphs of an ONNX file (bodies of Loop, If and Scan)."""

ROUTES_MAX: Final = 64
"""Things that daemons of one policy are told to serve: each has a route of its own."""

EVALUATION_HOLDS_MAX: Final = 8
"""Evaluation holds of one policy at once; each keeps a version loaded."""

LOCK_S_MAX: Final = 60.0
"""How long a command waits for another one that changes the store; a change holds the lock for milliseconds."""

REMOTE_S_MAX: Final = 60.0
"""How long a registry may be silent."""

GRACE_DAYS: Final = 30.0
"""A version younger than this is never collected unless the operator says so."""

assert max(MODEL_BYTES_MAX, GOLDEN_BYTES_MAX, PREPROCESSOR_BYTES_MAX) < ARCHIVE_BYTES_MAX
assert CARD_BYTES_MAX < MODEL_BYTES_MAX

PROGRESS_BYTES_MIN: Final = 50_000_000
"""Shorter work shows no progress bar: it ends before anybody could read one."""
