"""One change of the store, as a transaction that survives a crash at any step.

Rule: a change is *staged* (files in a folder of its own, which nobody reads), *decided* (its intent is renamed to
`intent.json`, under the lock), *carried out* (files are renamed into place, records appended to the audit log, files
removed) and *done* (the intent is removed). A process killed before the decision leaves a staging folder, which the next
change removes. A process killed after it leaves an intent, which the next command carries out. So readers see the store as
before or as after the change, also if the change writes several files.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec

from pillion_artifacts.errors import UNREADABLE, InvalidArtifactError, StoreError
from pillion_artifacts.limits import INDEX_BYTES_MAX, LOCK_S_MAX, STATE_BYTES_MAX
from pillion_artifacts.names import precedence
from pillion_artifacts.oci.blobs import Progress, chunks_of, no_progress, open_regular, read_small, write_all
from pillion_artifacts.oci.manifest import EMPTY_INDEX, Index, decode_index, digest_of, encode_json
from pillion_artifacts.store.audit_log import AuditLog, Record, chained
from pillion_artifacts.store.early_sync import EarlySync

INDEX_NAME: Final = "index.json"
LAYOUT_NAME: Final = "oci-layout"
LAYOUT: Final = b'{"imageLayoutVersion":"1.0.0"}'
INTENT_NAME: Final = "intent.json"
LOCK_NAME: Final = "lock"
READ_ONLY_SUFFIX: Final = ".read-only"
"""The mark of a store that is never written to, such as the policies that ship."""

STAGING_NAME: Final = "staging"

_OWNER_NAME: Final = "owner"
_BLOB_MODE: Final = 0o444
_STATE_MODE: Final = 0o644

_TARGET = re.compile(
    r"index\.json|oci-layout|pins\.json|blobs/sha256/[0-9a-f]{64}|aliases/[a-z0-9-]+/[a-z0-9-]+\.json"
    r"|evaluations\.json|routes/[a-z0-9-]+\.json"
    r"|quarantine/[0-9a-f]{64}|leases/[0-9a-f]{64}\.[0-9a-z_]+"
)
"""The files that a change may write or remove. A forged intent reaches no others."""


class Move(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A rename of a file in the staging folder or the store. Both paths are relative to the store."""

    source: str
    target: str


class Staged(msgspec.Struct, frozen=True):
    """A staged blob."""

    path: Path
    digest: str
    size: int


class Intent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of a decided change."""

    folder: str
    moves: list[Move]
    removals: list[str]
    records: list[Record]


class Change:
    """A change that is not decided yet. Owns its staging folder. Without a commit, the store stays as it is.

    Errors start with `what`. Raises `StoreError` if the file system refuses.
    """

    def __init__(self, root: Path, what: str) -> None:
        self._root = root
        self._what = what
        self._folder = Path()
        self._owner = -1
        self._moves: dict[str, Move] = {}
        self._removals: list[str] = []
        self._state: dict[str, str] = {}
        self._owes = False

    def __enter__(self) -> Self:
        with refusals(self._what):
            _check_is_store(self._root)
            _check_may_change(self._root)
            (self._root / STAGING_NAME).mkdir(parents=True, exist_ok=True)
            with locked(self._root):
                settle(self._root)
                sweep(self._root)
                self._folder = Path(tempfile.mkdtemp(dir=self._root / STAGING_NAME))
                self._owner = os.open(self._folder / _OWNER_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                fcntl.flock(self._owner, fcntl.LOCK_EX)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._folder.exists():
                # the next change removes what cannot be removed now
                with contextlib.suppress(OSError, StoreError), locked(self._root):
                    self._clear()
        finally:
            os.close(self._owner)

    @contextlib.contextmanager
    def deciding(self) -> Iterator[None]:
        """Holds the store's lock during the block, and ends the change after it."""
        with refusals(self._what), locked(self._root):
            settle(self._root)
            try:
                yield
            finally:
                self._clear()

    def read_index(self) -> Index:
        """The current index, an empty one in a new store."""
        path = self._root / INDEX_NAME
        if not path.exists():
            return EMPTY_INDEX
        return decode_index(read_small(path, INDEX_BYTES_MAX, INDEX_NAME))

    def stage_file(self, source: Path, bytes_max: int, what: str, progress: Progress = no_progress) -> Staged:
        """Copies a file into the staging folder and hashes it."""
        with open_regular(source, what) as file:
            size = os.fstat(file.fileno()).st_size
            if size > bytes_max:
                raise InvalidArtifactError(f"{what}: expected at most {bytes_max} bytes, got {size}")
            return self.stage_chunks(chunks_of(file), bytes_max, what, progress)

    def stage_chunks(
        self,
        chunks: Iterator[memoryview] | Iterator[bytes],
        bytes_max: int,
        what: str,
        progress: Progress = no_progress,
    ) -> Staged:
        """Stages a blob of these chunks. Raises `InvalidArtifactError` before it writes more than `bytes_max` bytes."""
        hashed = hashlib.sha256()
        size = 0
        with refusals(self._what):
            descriptor, name = tempfile.mkstemp(dir=self._folder)
            with os.fdopen(descriptor, "wb", buffering=0), EarlySync(descriptor) as disk:
                for chunk in chunks:
                    size += len(chunk)
                    if size > bytes_max:
                        raise InvalidArtifactError(f"{what}: expected at most {bytes_max} bytes, got more")
                    hashed.update(chunk)
                    write_all(descriptor, chunk)
                    disk.wrote(len(chunk))
                    progress(len(chunk))
                os.fchmod(descriptor, _BLOB_MODE)
                disk.sync()
        digest = f"sha256:{hashed.hexdigest()}"
        self._move(Path(name).name, f"blobs/sha256/{hashed.hexdigest()}")
        return Staged(Path(name), digest, size)

    def stage_blob(self, data: bytes) -> str:
        """Stages a blob and returns its digest."""
        return self.stage_chunks(iter([data]), len(data), self._what).digest

    def write(self, target: str, data: bytes) -> None:
        """Stages a small file of the store."""
        with refusals(self._what):
            descriptor, name = tempfile.mkstemp(dir=self._folder)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                os.fchmod(descriptor, _STATE_MODE)
                file.flush()
                os.fsync(descriptor)
        self._move(Path(name).name, target)
        self._state[target] = digest_of(data)

    def write_index(self, index: Index) -> None:
        """Stages the index, sorted, so that the same entries have the same bytes."""
        ordered = sorted(
            index.manifests,
            key=lambda entry: (entry.title, entry.artifact_type, precedence(entry.version), entry.digest),
        )
        self.write(INDEX_NAME, encode_json(index.replaced(ordered)))

    def remove(self, target: str) -> None:
        """Removes a file of the store when the change is carried out."""
        self._removals.append(_checked(target))
        if not target.startswith(("blobs/", "leases/")):
            self._state[target] = ""

    def quarantine(self, digest: str) -> None:
        """Moves a blob to the quarantine folder, which nothing reads."""
        digits = digest.removeprefix("sha256:")
        source, target = f"blobs/sha256/{digits}", f"quarantine/{digits}"
        self._moves[target] = Move(_checked(source), _checked(target))

    def commit(self, records: list[Record]) -> None:
        """Decides the change and carries it out. The caller is inside `deciding`.

        If the file system refuses after the decision, the change stays decided and the next command completes it.
        """
        if not (self._root / LAYOUT_NAME).exists():
            self.write(LAYOUT_NAME, LAYOUT)
        if records:
            records = [*records[:-1], msgspec.structs.replace(records[-1], files=self._state)]
        records = chained(records, AuditLog(self._root).last())
        intent = Intent(self._folder.name, list(self._moves.values()), self._removals, records)
        staged = self._folder / INTENT_NAME
        with staged.open("wb") as file:
            file.write(msgspec.json.encode(intent))
            file.flush()
            os.fsync(file.fileno())
        _sync_folder(self._folder)
        self._owes = True
        staged.replace(self._root / INTENT_NAME)
        _sync_folder(self._root)
        _carry_out(self._root, intent)
        self._owes = False

    def _clear(self) -> None:
        """Removes the staging folder. The caller holds the lock, so that no other change sweeps the folder meanwhile."""
        # a decided change needs its files until it is carried out
        if not self._owes:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _move(self, name: str, target: str) -> None:
        self._moves[target] = Move(f"{STAGING_NAME}/{self._folder.name}/{name}", _checked(target))


def settle(root: Path) -> None:
    """Carries out a decided change that is not done. The caller holds the lock."""
    path = root / INTENT_NAME
    if not path.exists():
        return
    try:
        intent = msgspec.json.decode(read_small(path, STATE_BYTES_MAX, INTENT_NAME), type=Intent)
    except UNREADABLE as error:
        raise InvalidArtifactError(f"{INTENT_NAME}: {error}") from None
    _carry_out(root, intent)


def settle_for_reading(root: Path) -> None:
    """Completes the change of a killed command, if this process may write to the store."""
    if not (root / INTENT_NAME).exists():
        return
    # a reader without write access sees each file as before or as after the change
    with contextlib.suppress(OSError), locked(root):
        settle(root)


def sweep(root: Path) -> list[str]:
    """Removes the staging folders of ended processes and returns their names. The caller holds the lock."""
    swept = stale_stagings(root)
    for name in swept:
        shutil.rmtree(root / STAGING_NAME / name)
    return swept


def stale_stagings(root: Path) -> list[str]:
    """The staging folders of ended processes. The caller holds the lock."""
    folder = root / STAGING_NAME
    names = sorted(entry.name for entry in os.scandir(folder)) if folder.is_dir() else []
    return [name for name in names if not _is_owned(folder / name)]


@contextlib.contextmanager
def locked(root: Path) -> Iterator[None]:
    """Holds the store's lock. Raises `StoreError` if another command holds it for too long, and `OSError`."""
    import filelock

    _check_may_change(root)
    try:
        with filelock.FileLock(root / LOCK_NAME, timeout=LOCK_S_MAX):
            yield
    except filelock.Timeout:
        raise StoreError(f"{root}: another command has been changing the store for {LOCK_S_MAX:.0f} s") from None


@contextlib.contextmanager
def locked_where_possible(root: Path) -> Iterator[None]:
    """Holds the lock if this process may write. Otherwise another command may change the store meanwhile."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            stack.enter_context(locked(root))
        yield


@contextlib.contextmanager
def refusals(what: str) -> Iterator[None]:
    """Converts errors of the file system into `StoreError`s that start with `what`."""
    try:
        yield
    except OSError as error:
        raise StoreError.from_os(what, error) from None


def _carry_out(root: Path, intent: Intent) -> None:
    folders: set[Path] = set()
    for move in intent.moves:
        source, target = root / _checked_source(move.source, intent.folder), root / _checked(move.target)
        if not target.parent.is_dir():
            target.parent.mkdir(parents=True)
            folders |= {target.parent.parent, root}
        # a killed process may have moved it already
        if source.exists():
            source.replace(target)
            folders.add(target.parent)
    for folder in folders:
        _sync_folder(folder)
    AuditLog(root).append(intent.records)
    for target_name in intent.removals:
        (root / _checked(target_name)).unlink(missing_ok=True)
    (root / INTENT_NAME).unlink()
    _sync_folder(root)


def _checked(target: str) -> str:
    if _TARGET.fullmatch(target) is None:
        raise InvalidArtifactError(f"{INTENT_NAME}: a change of the store does not write {target!r}")
    return target


def _checked_source(source: str, folder: str) -> str:
    plain = re.fullmatch(r"[a-z0-9_]+", folder) is not None
    if plain and re.fullmatch(rf"{STAGING_NAME}/{folder}/[a-z0-9_]+", source):
        return source
    return _checked(source)


def _is_owned(folder: Path) -> bool:
    """Whether the process that made a staging folder still runs."""
    try:
        descriptor = os.open(folder / _OWNER_NAME, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _check_is_store(root: Path) -> None:
    """Raises `StoreError` for a folder with foreign files, so that a mistyped path does not become a store."""
    if not root.is_dir():
        return
    # listed only once, because another change may be creating the store meanwhile
    names = {entry.name for entry in root.iterdir()}
    foreign = names - {LOCK_NAME, STAGING_NAME, INTENT_NAME, "blobs"}
    if foreign and not names & {INDEX_NAME, LAYOUT_NAME}:
        raise StoreError(f"{root}: expected a store or an empty folder, got one with {min(foreign)!r}")


def _check_may_change(root: Path) -> None:
    """Raises the error of a read-only file system if the store is marked read-only. Not even a lock file is left in it."""
    if read_only_mark(root).exists():
        raise OSError(errno.EROFS, "the store is marked read-only: copy the folder to change the copy")


def read_only_mark(root: Path) -> Path:
    """The file that marks the store at `root` as read-only. It lies beside the store, so that a copy is not marked."""
    store = root.resolve()
    return store.with_name(store.name + READ_ONLY_SUFFIX)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
