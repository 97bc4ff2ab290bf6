"""Every bound of the store and of publishing, in one place. A larger file is refused before it is read.

Memory at these limits:
  copying, hashing, verifying   CHUNK_BYTES per file, whatever its size                         1 MiB
  sealing a version             its files, as memory: model + golden + preprocessor    2 GiB + 2 × 256 MiB
  reading the index             its text, and 1.7 times as much once decoded                      0.7 GiB
  reading other small files     one at a time, at most STATE_BYTES_MAX                             64 MiB
  opening an archive            a header of each member, about 0.5 KiB                            0.5 GiB
  publishing a source           the source, its weights, and the graph in several copies      some 6 × 2 GiB
  inert pickles                 the pickle, and its arrays up to the same size                  2 × 64 MiB
  parity                        PARITY_ROWS rows of all inputs and outputs, three times

Disk at these limits: the import of an archive stages at most ARCHIVE_BYTES_MAX beside the store before it decides.

This module imports nothing but `typing`: the daemon reads it at its start.
"""

from __future__ import annotations

from typing import Final

# Files of a version

MODEL_BYTES_MAX: Final = (1 << 31) - 1
"""A protobuf message, hence an ONNX file in one piece, cannot be larger."""

CARD_BYTES_MAX: Final = 1 << 20
"""People write model cards."""

GOLDEN_BYTES_MAX: Final = 1 << 28
"""Golden pairs are a few hundred observations; 256 MiB is enough for about 9,000 of 84×84×4 bytes."""

PREPROCESSOR_BYTES_MAX: Final = 1 << 28
"""A preprocessor is a graph beside the policy's."""

TUNED_BYTES_MAX: Final = 1 << 20
"""Tuned settings are a small table."""

LAYERS_MAX: Final = 16
"""Files of one version."""

GRAPH_DEPTH_MAX: Final = 32
"""Graphs nested within graphs of an ONNX file (bodies of Loop, If and Scan)."""

GRAPH_NODES_MAX: Final = 100_000
"""Nodes of an ONNX file that are looked at to see whether it is bounded: about a second. Functions count at each call."""

CONSTANT_ELEMENTS_MAX: Final = 4_096
"""Elements of a constant whose least and greatest are looked for: divisors and limits are small."""

PROGRAM_BYTES_MAX: Final = 1 << 26
"""The graph of a torch program, without its weights: a transformer of hundreds of layers has some 10 MB."""

ZIP_MEMBERS_MAX: Final = 10_000
"""Members of a zip."""

ZIP_NAME_CHARACTERS_MAX: Final = 256
"""Of the name of a member of a published zip: torch names its members after modules."""

SAFETENSORS_HEADER_BYTES_MAX: Final = 1 << 24
"""The header of a safetensors file: about 100 bytes for each tensor."""

ENGINE_ARGUMENTS_MAX: Final = 64
"""Arguments of a Python policy's factory in a card. A factory with more has a configuration, which is the package's."""

ENGINE_ARGUMENT_CHARACTERS_MAX: Final = 4_096
"""Of such an argument, of its name, and of the other fields of a card's engine."""

ENGINE_ARGUMENTS_BYTES_MAX: Final = 1 << 16
"""All arguments as JSON: a worker gets them in one packet of 128 KiB, beside the tensors."""

YAML_DEPTH_MAX: Final = 32
"""Nesting of lists and mappings. The YAML library recurses in C: a text nested too deep would end the process."""

# Files of the store

NAME_CHARACTERS_MAX: Final = 128
"""Of a policy, a version or an alias. Names become file names, and those have at most 255 bytes."""

ATTESTATION_BYTES_MAX: Final = 1 << 20
"""An envelope has a statement and a few signatures."""

ATTESTATIONS_MAX: Final = 64
"""Signatures that are read for one version."""

KEY_BYTES_MAX: Final = 1 << 16
"""A key file in PEM has less than 1 KiB."""

MANIFEST_BYTES_MAX: Final = 1 << 20
"""A manifest names at most LAYERS_MAX files."""

LAYOUT_BYTES_MAX: Final = 1 << 12
"""The file `oci-layout` has one version number."""

INDEX_BYTES_MAX: Final = 1 << 28
"""An entry has about 600 bytes, so this is enough for 400,000 versions."""

STATE_BYTES_MAX: Final = 1 << 26
"""An alias, the pins, an intent: files that are read whole. The intent of a change of 100,000 blobs has 30 MB."""

ROUTES_MAX: Final = 64
"""Routes of one policy: one for each `store.policy` that its daemons serve."""

EVALUATION_HOLDS_MAX: Final = 8
"""Evaluation holds of one policy at once; each keeps a version loaded."""

REASON_CHARACTERS_MAX: Final = 1_000
"""A longer reason is cut in the audit log."""

AUDIT_TAIL_BYTES: Final = 1 << 16
"""Read from the end of the audit log to find its last record. No record is longer, since reasons are cut."""

AUDIT_FAULTS_MAX: Final = 8
"""Faults that a page of the audit log lists: a log that was tampered with may have one for each record."""

# Copying, waiting, keeping

DAEMON_ROWS_MAX: Final = 256
"""`limits.rows_max` of a daemon without settings: a version that takes fewer rows at once is not served there."""

EARLY_SYNC_BYTES: Final = 32 * 1024**2
"""How much of a file is written before the disk is told to begin with it."""

CHUNK_BYTES: Final = 1 << 20
"""The part of a file that is in memory while it is copied or hashed."""

ARCHIVE_BYTES_MAX: Final = 1 << 36
"""All files of an archive that is imported: 64 GiB."""

ARCHIVE_MEMBERS_MAX: Final = 1 << 20
"""Files of one archive."""

LOCK_S_MAX: Final = 60.0
"""Wait for another command that changes the store. A change holds the lock for milliseconds."""

REMOTE_S_MAX: Final = 60.0
"""Silence of a registry."""

BUCKET_TRIES_MAX: Final = 16
"""Attempts to write the index of a bucket while others write it too."""

ERROR_CHARACTERS_MAX: Final = 300
"""Of an error of another library that a message repeats."""

GRACE_DAYS: Final = 30.0
"""`gc` keeps younger versions, unless the operator sets another period."""

# Publishing

SOURCE_BYTES_MAX: Final = 2 << 30
"""One file of a source. A larger model does not fit into one protobuf message."""

ZIP_BYTES_MAX: Final = 4 << 30
"""All members of a zip when unpacked, so that a zip bomb is refused before it is unpacked."""

ZIP_VERSION_BYTES_MAX: Final = 100
"""The member of a Stable-Baselines3 zip with its version number."""

PICKLE_BYTES_MAX: Final = 64 << 20
"""One pickle that is read for its statistics or spaces: these have a few KB, statistics of images a few MB."""

PICKLE_OPCODES_MAX: Final = 1_000_000
"""Steps of one such pickle."""

EXPORT_ROWS_MAX: Final = 65_536
"""Rows that an exported torch module accepts in one batch."""

DRAWN_BOUND_MAX: Final = 1e6
"""Observations are drawn evenly within bounds up to this; a wider bound counts as none, else all numbers drawn were huge."""

PARITY_ROWS: Final = 256
"""Observations that source and published model are compared on."""

LARGE_MODEL_BYTES: Final = 64 << 20
"""From this size on, a model is compared on PARITY_ROWS_OF_LARGE observations: each takes it long."""

PARITY_ROWS_OF_LARGE: Final = 32
"""Observations that source and published model of that size are compared on."""

PARITY_BATCH_ROWS: Final = 32
"""Rows of one run of a worker's engine while it is compared with its source."""

PARITY_STEPS: Final = 16
"""Steps of each episode that a recurrent policy is compared on."""

GOLDEN_ROWS_MAX: Final = 64
"""Rows that publishing keeps, for the daemon to run again when it loads the policy."""

GOLDEN_KEPT_BYTES_MAX: Final = 4 << 20
"""Size of those rows: a policy that sees images keeps fewer of them."""

PROOF_BATCHES: Final = 8
"""Batches that a graph is run on before and after its batch was made free."""

PROGRESS_BYTES_MIN: Final = 50_000_000
"""Shorter work shows no progress bar: it ends before anybody could read one."""

assert max(MODEL_BYTES_MAX, GOLDEN_BYTES_MAX, PREPROCESSOR_BYTES_MAX) < ARCHIVE_BYTES_MAX
assert CARD_BYTES_MAX < MODEL_BYTES_MAX <= SOURCE_BYTES_MAX <= ZIP_BYTES_MAX
assert PICKLE_BYTES_MAX < SOURCE_BYTES_MAX
assert 4 * REASON_CHARACTERS_MAX < AUDIT_TAIL_BYTES
assert GOLDEN_ROWS_MAX <= PARITY_ROWS
assert GOLDEN_KEPT_BYTES_MAX <= GOLDEN_BYTES_MAX
assert PARITY_ROWS % PARITY_STEPS == PARITY_ROWS_OF_LARGE % PARITY_STEPS == 0
