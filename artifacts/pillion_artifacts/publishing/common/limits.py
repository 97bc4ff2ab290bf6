"""Every bound of publishing, in one place."""

from __future__ import annotations

from typing import Final

SOURCE_BYTES_MAX: Final = 2 << 30
"""One file of a source. A model beyond it does not fit into one protobuf message anyway."""

ARCHIVE_BYTES_MAX: Final = 4 << 30
"""All members of a zip together, as they are when unpacked: a zip bomb is refused before it goes off."""

ARCHIVE_MEMBERS_MAX: Final = 10_000
"""Members of a zip."""

PICKLE_BYTES_MAX: Final = 64 << 20
"""One pickle that is read for its statistics or spaces: these are a few KB, images' statistics a few MB."""

PICKLE_OPCODES_MAX: Final = 1_000_000
"""Steps of one such pickle."""

ROWS_MAX: Final = 65_536
"""Rows that a published graph must take at once."""

PARITY_ROWS: Final = 256
"""Observations that source and published model are compared on."""

PARITY_STEPS: Final = 16
"""Steps of each episode that a recurrent policy is compared on."""

GOLDEN_ROWS_MAX: Final = 64
"""Rows that are kept to be run again where the policy is loaded."""

GOLDEN_BYTES_MAX: Final = 4 << 20
"""What the golden rows may come to: a policy that sees images keeps fewer of them."""

PROVEN_ROWS: Final = 8
"""Rows that a graph is run on, one by one, before and after its batch was made free."""

assert GOLDEN_ROWS_MAX <= PARITY_ROWS
assert PARITY_ROWS % PARITY_STEPS == 0
