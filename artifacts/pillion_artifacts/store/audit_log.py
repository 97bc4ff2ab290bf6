"""The audit log: who changed what in the store, when, why and from what. One JSON object a line, only ever appended.

Each line holds the hash of the line before it and its own, and the last line of a change the hashes of the small files
that it wrote (the index, an alias, the pins, a route). A line that is changed, moved or missing shows, and so does a small file
that was changed by anything but a change of the store.
"""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import os
import socket
from collections import deque
from collections.abc import Iterable, Iterator
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
"""`stage` and `drain` change no file: a daemon says what it was told to do."""


class Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """One act on the store."""

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
    """The version that an alias pointed at before."""
    reason: str = ""
    files: dict[str, str] = {}
    """The hashes of the small files as this change wrote them; empty: the file is gone."""
    previous: str = ""
    """The `hash` of the record before."""
    hash: str = ""
    """The SHA-256 of this record as it is encoded without its hash."""


class AuditPage(msgspec.Struct, frozen=True):
    """Some records, newest first, and whether the whole log is as it was written."""

    records: list[Record]
    next: int | None
    """What `before` asks for the rest; None: there are no more."""
    faults: list[str]
    """What is wrong with the chain, a sentence each; of many the first few."""


_decoder = msgspec.json.Decoder(Record)


def sealed(record: Record) -> Record:
    """The record with its hash."""
    bare = msgspec.structs.replace(record, hash="")
    return msgspec.structs.replace(bare, hash=hashlib.sha256(msgspec.json.encode(bare)).hexdigest())


def chained(records: Iterable[Record], last: Record | None) -> list[Record]:
    """The records numbered and sealed, each after the one before it and the first after `last`."""
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
    """Reads and appends to the log of the store at `root`. Owns nothing; appending is for who holds the lock."""

    def __init__(self, root: Path) -> None:
        self._path = root / AUDIT_NAME

    def records(self) -> Iterator[Record]:
        """All of them, oldest first; raises `InvalidArtifactError` for a line that is none.

        A last line without its end is not yet a record: whoever wrote it died, and the next change writes it whole.
        """
        try:
            with self._path.open("rb") as file:
                for number, line in enumerate(file, 1):
                    if line.endswith(b"\n"):
                        yield self._decode(line, number)
        except FileNotFoundError:
            return

    def last(self) -> Record | None:
        """The newest record, or None."""
        lines = self._tail().splitlines(keepends=True)
        whole = [line for line in lines if line.endswith(b"\n")]
        return self._decode(whole[-1], 0) if whole else None

    def next_sequence(self) -> int:
        """The number of the record that is appended next."""
        last = self.last()
        return last.sequence + 1 if last else 1

    def append(self, records: list[Record]) -> None:
        """Appends what is not there yet, and reaches the disk. Repeating it changes nothing."""
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
        """What is wrong with the chain, a sentence each."""
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

    def page(self, policy: str, limit: int, before: int) -> AuditPage:
        """The newest `limit` records of a policy (empty: of all) whose number is below `before`, and what is wrong with the log."""
        faults = list(islice(self.faults(), AUDIT_FAULTS_MAX))
        found: deque[Record] = deque(maxlen=limit + 1)
        with contextlib.suppress(InvalidArtifactError):
            # The line that cannot be read is among the faults.
            found.extend(each for each in self.records() if policy in ("", each.policy) and each.sequence < before)
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
