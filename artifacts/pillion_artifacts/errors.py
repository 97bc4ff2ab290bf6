"""What can go wrong with a policy or with the store, by culprit. Each error carries its sysexits code.

ArtifactError (65)
├── PolicyNotFoundError (65)      the store has no such policy, or no version that fits
├── InvalidArtifactError (65)     the artifact is not what it claims to be
│   ├── DigestMismatchError       its bytes are not the published ones
│   ├── MissingFileError          there is no file of that name
│   └── ParityError               it does not act as its source did
├── InvalidSourceError (65)       a source cannot be published as a policy
├── UntrustedArtifactError (65)   signatures that the trust policy requires are missing or wrong
├── InvalidNameError (64)         an argument is no policy, version, alias or reference
├── ConflictError (73)            another command was first
│   ├── VersionExistsError        the version was published before
│   ├── AliasMovedError           the alias does not point where the caller expected
│   └── HoldExistsError           the name of an evaluation hold is taken, or there are too many holds
├── StoreError (74, or 77)        the file system refuses, or the store is damaged beyond one artifact
└── RemoteError (69)              a registry, a bucket or an archive cannot be read or written
"""

from __future__ import annotations

import errno
import os
from typing import Final

import msgspec

UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What decoding untrusted JSON may raise; `RecursionError` for JSON that is nested too deep."""


class ArtifactError(Exception):
    """A policy cannot be used."""

    exit_code = os.EX_DATAERR


class PolicyNotFoundError(ArtifactError):
    """The store has no such policy, or no version that fits."""


class InvalidArtifactError(ArtifactError):
    """A file of the artifact is missing, unreadable or contradicts another."""


class DigestMismatchError(InvalidArtifactError):
    """The bytes are not the published ones."""


class MissingFileError(InvalidArtifactError):
    """There is no file of that name. Another process may have removed it meanwhile."""


class ParityError(InvalidArtifactError):
    """The model does not act as its source did."""


class InvalidSourceError(ArtifactError):
    """The source of a publication is unreadable, unsafe, or of a kind that no importer knows."""


class UntrustedArtifactError(ArtifactError):
    """Signatures that the trust policy requires are missing or wrong."""


class InvalidNameError(ArtifactError):
    """An argument is no policy, version, alias or reference."""

    exit_code = os.EX_USAGE


class ConflictError(ArtifactError):
    """Another command was first."""

    exit_code = os.EX_CANTCREAT


class VersionExistsError(ConflictError):
    """The version was published before; a version never changes."""


class AliasMovedError(ConflictError):
    """The alias does not point where the caller expected."""


class HoldExistsError(ConflictError):
    """An evaluation hold of that name holds another version, or there are too many holds."""


class StoreError(ArtifactError):
    """The store itself cannot be read or written."""

    def __init__(self, message: str, exit_code: int = os.EX_IOERR) -> None:
        super().__init__(message)
        self.exit_code = exit_code

    @classmethod
    def from_os(cls, what: str, error: OSError) -> StoreError:
        """Converts an error of the file system, which was about `what`."""
        denied = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
        return cls(f"{what}: {error.strerror or error}", os.EX_NOPERM if denied else os.EX_IOERR)


class RemoteError(ArtifactError):
    """A registry, a bucket or an archive cannot be read or written."""

    exit_code = os.EX_UNAVAILABLE


def first_line(error: BaseException) -> str:
    """The first line of another library's error, or the name of its type if it has no text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
