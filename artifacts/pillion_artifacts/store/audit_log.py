"""The audit log: each change of the store with its author, time, reason and previous state. JSON lines, append-only.

Each line has its own hash and that of the line before it. The last line of a change has the hashes of the small files that
the change wrote (the index, an alias, the pins, a route). So the log reveals lines that were edited, moved or removed, and
small files that were edited by hand.
"""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import os
import socket
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Final, Literal

import msgspec

from pillion_artifacts.errors import UNREADABLE, InvalidArtifactError
from pillion_artifacts.limits import AUDIT_FAULTS_MAX, AUDIT_TAIL_BYTES

AUDIT_NAME: Final = "audit.jsonl"

Action = Literal[
    "publish",
    "import",
    "alias",
    "rollback",
    "unalias",
    "pin",
    "unpin",
    "sign",
    "collect",
    "quarantine",
    "repair",
    "stage",
    "switch",
    "route",
    "shadow",
    "drain",
    "hold",
    "end-hold",
    # What `hold` and `end-hold` were called before 0.1.0.
    "lease",
    "end-lease",
]
"""`stage` and `drain` change no file: a daemon records an operator's command."""


class Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """One change of the store, or one command to a daemon."""

    sequence: int
    at: str
    """UTC, ISO 8601."""
    by: str
    action: Action
    policy: str = ""
    version: str = ""
    digest: str = ""
    alias: str = ""
    was: str = ""
    """The previous version."""
    reason: str = ""
    files: dict[str, str] = {}
    """The hashes of the small files that this change wrote, empty for a removed file."""
    previous: str = ""
    """The `hash` of the previous record."""
    hash: str = ""
    """The SHA-256 of this record, encoded without its hash."""


class AuditPage(msgspec.Struct, frozen=True):
    """Some records, newest first, and the faults of the whole log."""

    records: list[Record]
    next: int | None
    """The value of `before` for the next page, None on the last page."""
    faults: list[str]
    """The first faults of the chain, a sentence each."""


_decoder = msgspec.json.Decoder(Record)


def sealed(record: Record) -> Record:
    """Returns the record with its hash."""
    bare = msgspec.structs.replace(record, hash="")
    return msgspec.structs.replace(bare, hash=hashlib.sha256(msgspec.json.encode(bare)).hexdigest())


def chained(records: Iterable[Record], last: Record | None) -> list[Record]:
    """Numbers the records and chains them by their hashes, the first one to `last`."""
    made: list[Record] = []
    for record in records:
        sequence, previous = (last.sequence + 1, last.hash) if last else (1, "")
        last = sealed(msgspec.structs.replace(record, sequence=sequence, previous=previous))
        made.append(last)
    return made


def current_user() -> str:
    """The user and host of this process, as `user@host`."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        # a container may run as a number without a name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


class AuditLog:
    """Reads and appends to the log of the store at `root`. Owns nothing. The caller of `append` holds the lock."""

    def __init__(self, root: Path) -> None:
        self._path = root / AUDIT_NAME

    def records(self) -> Iterator[Record]:
        """All records, oldest first. Raises `InvalidArtifactError` for an invalid line.

        Skips a last line without its end: its writer was killed, and the next change completes it.
        """
        try:
            with self._path.open("rb") as file:
                for number, line in enumerate(file, 1):
                    if line.endswith(b"\n"):
                        yield self._decode(line, number)
        except FileNotFoundError:
            return

    def last(self) -> Record | None:
        """The newest record, None in an empty log."""
        lines = self._tail().splitlines(keepends=True)
        whole = [line for line in lines if line.endswith(b"\n")]
        return self._decode(whole[-1], 0) if whole else None

    def next_sequence(self) -> int:
        """The number of the record that is appended next."""
        last = self.last()
        return last.sequence + 1 if last else 1

    def append(self, records: list[Record]) -> None:
        """Appends the records that are not in the log yet, and syncs to disk. Repeating it changes nothing."""
        last = self.last()
        missing = [record for record in records if last is None or record.sequence > last.sequence]
        if not missing:
            return
        descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        with os.fdopen(descriptor, "ab", buffering=0) as file:
            torn = len(self._tail().rpartition(b"\n")[2])
            if torn:
                file.truncate(os.fstat(descriptor).st_size - torn)
            data = b"".join(msgspec.json.encode(record) + b"\n" for record in missing)
            while data:
                data = data[file.write(data) :]
            os.fsync(descriptor)

    def faults(self) -> Iterator[str]:
        """The faults of the chain, a sentence each."""
        last: Record | None = None
        try:
            for record in self.records():
                expected = (last.sequence + 1, last.hash) if last else (1, "")
                if (record.sequence, record.previous) != expected:
                    yield f"{AUDIT_NAME}: record {record.sequence} does not follow record {expected[0] - 1}"
                if sealed(record) != record:
                    yield f"{AUDIT_NAME}: record {record.sequence} was changed after it was written"
                last = record
        except InvalidArtifactError as error:
            yield str(error)

    def page(self, policies: Collection[str], limit: int, before: int) -> AuditPage:
        """The newest `limit` records of some policies (none named: of all) with numbers below `before`, and the log's faults."""
        faults = list(islice(self.faults(), AUDIT_FAULTS_MAX))
        found: deque[Record] = deque(maxlen=limit + 1)
        with contextlib.suppress(InvalidArtifactError):
            # `faults` reports an unreadable line
            wanted = (each for each in self.records() if not policies or each.policy in policies)
            found.extend(each for each in wanted if each.sequence < before)
        records = list(reversed(found))
        is_cut = len(records) > limit
        return AuditPage(records[:limit], records[limit - 1].sequence if is_cut else None, faults)

    def _tail(self) -> bytes:
        try:
            with self._path.open("rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - AUDIT_TAIL_BYTES))
                return file.read()
        except FileNotFoundError:
            return b""

    @staticmethod
    def _decode(line: bytes, number: int) -> Record:
        try:
            return _decoder.decode(line)
        except UNREADABLE as error:
            where = f"line {number}" if number else "last line"
            raise InvalidArtifactError(f"{AUDIT_NAME}: {where}: {error}") from None
