"""What can go wrong with a policy or with the store, by culprit; each carries its sysexits code.

ArtifactError (65)
├── PolicyNotFoundError (65)      the store has no such policy, or no version that fits
├── InvalidArtifactError (65)     it is there, and it is not what it says it is
│   ├── DigestMismatchError       its bytes are not those that were published
│   ├── MissingFileError          there is no file of that name
│   └── ParityError               it does not act as its source did
├── InvalidSourceError (65)       what was to be published cannot become a policy
├── UntrustedArtifactError (65)   the signatures that the trust policy asks for are missing or wrong
├── InvalidNameError (64)         what was typed is no policy, version, alias or reference
├── ConflictError (73)            somebody else was first
│   ├── VersionExistsError        the version was published before
│   ├── AliasMovedError           the alias points elsewhere than the caller thought
│   └── HoldExistsError          the name of an evaluation hold is taken, or there are too many
├── StoreError (74, or 77)        the file system refuses, or the store is damaged beyond one artifact
└── RemoteError (69)              a registry, a bucket or an archive cannot be read or written
"""

from __future__ import annotations

import errno
import os
from typing import Final

import msgspec

UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What decoding a stranger's JSON may raise; the last, for what is nested without end."""


class ArtifactError(Exception):
    """A policy cannot be used."""

    exit_code = os.EX_DATAERR


class PolicyNotFoundError(ArtifactError):
    """The store has no such policy, or no version that fits."""


class InvalidArtifactError(ArtifactError):
    """A file of the artifact is missing, unreadable or contradicts another."""


class DigestMismatchError(InvalidArtifactError):
    """The bytes that were read are not those that were published."""


class MissingFileError(InvalidArtifactError):
    """There is no file of that name, or no longer: others may remove files while this process reads."""


class UntrustedArtifactError(ArtifactError):
    """The signatures that the trust policy asks for are missing or wrong."""


class InvalidNameError(ArtifactError):
    """What was given is no policy, version, alias or reference."""

    exit_code = os.EX_USAGE


class ConflictError(ArtifactError):
    """Somebody else was first."""

    exit_code = os.EX_CANTCREAT


class VersionExistsError(ConflictError):
    """The version was published before; a version never changes."""


class AliasMovedError(ConflictError):
    """The alias does not point where the caller thought that it did."""


class HoldExistsError(ConflictError):
    """An evaluation hold of that name holds another version, or there are too many."""


class StoreError(ArtifactError):
    """The store itself cannot be read or written."""

    def __init__(self, message: str, exit_code: int = os.EX_IOERR) -> None:
        super().__init__(message)
        self.exit_code = exit_code

    @classmethod
    def from_os(cls, what: str, error: OSError) -> StoreError:
        """The refusal of the file system, as a line about `what`."""
        denied = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
        return cls(f"{what}: {error.strerror or error}", os.EX_NOPERM if denied else os.EX_IOERR)


class RemoteError(ArtifactError):
    """A registry, a bucket or an archive cannot be read or written."""

    exit_code = os.EX_UNAVAILABLE


class ParityError(InvalidArtifactError):
    """The model does not give what its source gave."""


class InvalidSourceError(ArtifactError):
    """What was to be published is unreadable, unsafe or of a kind that no importer knows."""


def first_line(error: BaseException) -> str:
    """What an error of another library says, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
