"""The service manager that started the daemon: what systemd is told over its notification socket, see sd_notify(3)."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Final

import sdnotify

_NS_PER_US: Final = 1_000
_PINGS_PER_PERIOD: Final = 4


class ServiceManager:
    """Tells systemd the truth. Without systemd (no NOTIFY_SOCKET) it does nothing. Owns its socket."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        # Without an address it would leave an open socket behind.
        self._systemd = sdnotify.SystemdNotifier() if environment.get("NOTIFY_SOCKET") else None
        self._socket: socket.socket | None = self._systemd and self._systemd.socket
        if self._socket is not None:
            # A service manager that does not read must not stop the control process.
            self._socket.setblocking(False)
        self._ping_ns = _watchdog_us(environment) * _NS_PER_US // _PINGS_PER_PERIOD
        self._pinged_ns = -self._ping_ns
        self._status = ""

    def ready(self) -> None:
        """Says that the daemon answers acts."""
        self._notify("READY=1")

    def stopping(self) -> None:
        """Says that the daemon ends."""
        self._notify("STOPPING=1")

    def status(self, text: str) -> None:
        """Says in words how the daemon is, if that has changed; `systemctl status` shows it."""
        if text != self._status:
            self._status = text
            self._notify(f"STATUS={text}")

    def ping(self, now_ns: int) -> None:
        """Sends a sign of life to systemd's watchdog, where that is on and a quarter of its period has passed."""
        if self._ping_ns and now_ns - self._pinged_ns >= self._ping_ns:
            self._pinged_ns = now_ns
            self._notify("WATCHDOG=1")

    def close(self) -> None:
        """Closes the socket."""
        if self._socket is not None:
            self._socket.close()

    def _notify(self, state: str) -> None:
        if self._systemd is not None:
            self._systemd.notify(state)


def _watchdog_us(environment: Mapping[str, str]) -> int:
    """Returns the period of systemd's watchdog in µs, see sd_watchdog_enabled(3); 0 if it does not watch this process."""
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0
    period = environment.get("WATCHDOG_USEC", "0")
    return int(period) if period.isdecimal() else 0
