"""What can go wrong in the daemon, by culprit; each carries its sysexits code.

DaemonError (70: ours)
├── SettingsError (78: the operator's settings)
├── ListenError (69: an address cannot be used)
│   ├── AddressInUseError
│   └── FolderError (the folder of a socket cannot be made)
├── BadPolicyError (65: the artifact, or its model, is not right)
├── SwitchError (70: a version cannot be loaded or switched to; what serves goes on)
│   ├── NotReadyError (70: not now, whatever the version)
│   └── BusyError (70: another operation is under way)
└── ServingDiedError (70: the serving process does not stay up)
"""

from __future__ import annotations

import os


class DaemonError(Exception):
    """The daemon cannot go on."""

    exit_code = os.EX_SOFTWARE


class SettingsError(DaemonError):
    """A setting is not right; the message begins with its path."""

    exit_code = os.EX_CONFIG


class ListenError(DaemonError):
    """An address cannot be listened at."""

    exit_code = os.EX_UNAVAILABLE


class AddressInUseError(ListenError):
    """Somebody else listens there."""


class FolderError(ListenError):
    """The folder of a socket is not there, and cannot be made."""


class BadPolicyError(DaemonError):
    """The policy is not there, not intact, or does not run."""

    exit_code = os.EX_DATAERR


class SwitchError(DaemonError):
    """A version cannot be loaded beside the one that serves, or not be switched to; nothing has changed."""


class NotReadyError(SwitchError):
    """The serving process is not there to be told; that says nothing of the version."""


class BusyError(SwitchError):
    """Another operation is under way; there is one at a time."""


class ServingDiedError(DaemonError):
    """The serving process does not stay up."""
