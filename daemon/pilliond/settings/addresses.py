"""Listen addresses for clients: which are allowed, and whether one is in use."""

from __future__ import annotations

import ipaddress
import os
import socket
import stat
from contextlib import suppress
from typing import Final
from urllib.parse import urlsplit

from pilliond.errors import AddressInUseError, FolderError, ListenError, SettingsError
from pilliond.limits import SOCKET_PATH_BYTES_MAX

_GROUP_ENTERS_MODE: Final = 0o710


def check_data_address(address: str) -> None:
    """Raises `SettingsError` unless `address` is `lane:///PATH`, `ipc:///PATH` or `tcp://LOOPBACK:PORT`."""
    parts = urlsplit(address)
    if (path := socket_path(address)) is not None:
        check_socket_path(path, address)
    elif parts.scheme == "tcp":
        _check_loopback(address)
    else:
        raise SettingsError(f"listen: expected lane:///PATH, ipc:///PATH or tcp://127.0.0.1:PORT, got {address!r}")


def carrier_of(address: str) -> str:
    """`lane` or `zmq`."""
    return "lane" if address.startswith("lane://") else "zmq"


def socket_path(address: str) -> str | None:
    """Returns the path in the address of a Unix socket; None for `tcp://`."""
    for scheme in ("lane://", "ipc://"):
        if address.startswith(scheme):
            return address.removeprefix(scheme)
    return None


def check_socket_path(path: str, address: str) -> None:
    """Raises `SettingsError` unless `path` can name a Unix socket."""
    if not path.startswith("/"):
        raise SettingsError(f"listen: expected an absolute path, got {address!r}")
    if len(os.fsencode(path)) > SOCKET_PATH_BYTES_MAX:
        raise SettingsError(
            f"listen: expected a socket path of at most {SOCKET_PATH_BYTES_MAX} bytes, "
            f"got {len(os.fsencode(path))}: {path}"
        )


def _check_loopback(address: str) -> None:
    parts = urlsplit(address)
    try:
        host, port = ipaddress.ip_address(parts.hostname or ""), parts.port
    except ValueError:
        raise SettingsError(f"listen: expected tcp://ADDRESS:PORT with a numeric address, got {address!r}") from None
    if port is None:
        raise SettingsError(f"listen: expected a port, got {address!r}")
    if not host.is_loopback:
        raise SettingsError(f"listen: expected a loopback address ({address} would be open to other hosts)")


def clear_socket_path(path: str, group: int | None = None) -> None:
    """Prepares `path` for a socket: makes its folder, and removes a stale socket.

    Only this user and members of the group with the id `group` can enter a folder that it makes. Raises
    `AddressInUseError` if a process answers at the path, `ListenError` if the path is not a socket, `FolderError`.
    """
    try:
        _make_folder(os.path.dirname(path), group)
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise ListenError(f"cannot listen at {path}: {error.strerror}") from None
    if not stat.S_ISSOCK(mode):
        raise ListenError(f"cannot listen at {path}: a file that is not a socket lies there")
    if _answers(path):
        raise AddressInUseError(f"{path} is in use")
    os.unlink(path)


def remove_dead_socket(path: str) -> None:
    """Removes the socket at `path` if no process answers there; nothing else."""
    with suppress(FileNotFoundError):
        if stat.S_ISSOCK(os.lstat(path).st_mode) and not _answers(path):
            os.unlink(path)


def _make_folder(folder: str, group: int | None) -> None:
    if os.path.isdir(folder):
        return
    try:
        os.makedirs(folder, mode=0o700)
    except OSError as error:
        raise FolderError(f"cannot make {folder} for a socket: {error.strerror}") from None
    if group is not None:
        os.chown(folder, -1, group)
        os.chmod(folder, _GROUP_ENTERS_MODE)


class SocketFile:
    """The file of a socket that was just bound, remembered so that a successor's file is never removed."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._identity = self._look()

    def remove(self) -> None:
        """Removes the file if it is still the same one."""
        if self._identity is not None and self._look() == self._identity:
            os.unlink(self._path)

    def _look(self) -> tuple[int, int] | None:
        try:
            found = os.lstat(self._path)
        except OSError:
            return None
        return found.st_dev, found.st_ino


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True
        return True
