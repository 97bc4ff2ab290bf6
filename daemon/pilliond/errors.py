"""Errors of the daemon, by culprit. A `DaemonError` carries its sysexits code; the others end where they are handled.

DaemonError (70: ours)
├── SettingsError (78: the operator's settings)
├── ListenError (69: an address cannot be used)
│   ├── AddressInUseError (another process listens there)
│   └── FolderError (the folder of a socket cannot be made)
├── BadPolicyError (65: the artifact or its model)
├── DescriptorsError (70: the kernel did not pass on what the start needs)
├── StartCancelledError (0: the daemon is stopping before it was ready)
├── SwitchError (70: a version cannot be loaded or switched to; nothing has changed)
│   ├── NotReadyError (the serving process is not there to be asked)
│   └── BusyError (another operation is running)
├── StartRefusedError (the serving process refuses to start; it carries the code)
└── ServingDiedError (70: the serving process did not start)
    └── ServingGaveUpError (75: it was restarted again and again, and does not stay up)

RogueError (`engine`: a worker did what no worker does; it is replaced)
RingError (`shadow`: the ring of the shadow page is not as expected)
ProblemError (`admin`: answered as application/problem+json)
KServeError (`admin/kserve`: answered in KServe's form)
Refused (`admin`: the caller may not do this)
AdminError (`commands`: what an operator's command prints)

Where an engine fails, inline or in a worker, its error is `pillion_worker.errors.EngineError`.
"""

from __future__ import annotations

import os


class DaemonError(Exception):
    """The daemon cannot go on."""

    exit_code = os.EX_SOFTWARE


class SettingsError(DaemonError):
    """A setting is wrong. The message begins with its path."""

    exit_code = os.EX_CONFIG


class ListenError(DaemonError):
    """The daemon cannot listen at an address."""

    exit_code = os.EX_UNAVAILABLE


class AddressInUseError(ListenError):
    """Another process listens at the address."""


class FolderError(ListenError):
    """The folder of a socket does not exist and cannot be made."""


class BadPolicyError(DaemonError):
    """The policy is missing, not intact, or does not run."""

    exit_code = os.EX_DATAERR


class DescriptorsError(DaemonError):
    """The kernel did not pass on every descriptor that a message brought."""


class StartCancelledError(DaemonError):
    """The daemon is stopping before its serving process was ready. That is no fault."""

    exit_code = os.EX_OK


class SwitchError(DaemonError):
    """A version cannot be loaded or switched to. Nothing has changed."""


class NotReadyError(SwitchError):
    """The serving process is not there to be asked. That says nothing about the version."""


class BusyError(SwitchError):
    """Another operation is running; there is one at a time."""


class ServingDiedError(DaemonError):
    """The serving process ended before it was ready, at the first start."""


class ServingGaveUpError(ServingDiedError):
    """The serving process does not stay up: it is not restarted any more."""

    exit_code = os.EX_TEMPFAIL
