"""A client of the admin port, for the operator's commands and the bench: HTTP over TCP or a Unix socket, JSON."""

from __future__ import annotations

import http.client
import json
import os
import socket
import time
from typing import Any, Final
from urllib.parse import quote, urlsplit

ANSWER_S_MAX: Final = 10.0
_LOOK_S: Final = 0.02


class AdminError(Exception):
    """The admin port does not answer, or says that it cannot; `exit_code` is the sysexits code of why."""

    def __init__(self, message: str, exit_code: int = os.EX_UNAVAILABLE, status: int = 0) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.status = status


class AdminClient:
    """One daemon's admin port at `http://HOST:PORT` or `unix:///PATH`; a connection for each request."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.tag = ""
        """The `ETag` of the last answer."""
        parts = urlsplit(address)
        if parts.scheme not in ("http", "unix") or (parts.scheme == "http" and not parts.hostname):
            raise AdminError(f"--admin: expected http://HOST:PORT or unix:///PATH, came {address!r}", os.EX_USAGE)

    def get(self, path: str) -> dict[str, Any]:
        """The JSON at a path; raises `AdminError`."""
        return self._ask("GET", path, None)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """What came of a verb; raises `AdminError`."""
        return self._ask("POST", path, body)

    def put(self, path: str, body: dict[str, Any], tag: str = "*") -> dict[str, Any]:
        """What came of setting something, if its `ETag` still is `tag`; raises `AdminError`."""
        return self._ask("PUT", path, body, {"If-Match": tag})

    def delete(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """What came of taking something back; raises `AdminError`."""
        return self._ask("DELETE", path, body)

    def policy(self) -> dict[str, Any]:
        """The policy that is served, which is one."""
        found: dict[str, Any] = self.get("/v1/policies")["policies"][0]
        return found

    def ended(self, operation: dict[str, Any]) -> dict[str, Any]:
        """An operation as it is once it has ended; it waits for that. Raises `AdminError` where it failed."""
        while operation["outcome"] == "running":
            time.sleep(_LOOK_S)
            operation = self.get(f"/v1/operations/{operation['number']}")
        if operation["outcome"] != "done":
            raise AdminError(f"{operation['kind']} {operation['outcome']}: {operation['error']}", os.EX_SOFTWARE)
        return operation

    def is_there(self) -> bool:
        """Whether anybody answers."""
        try:
            self.get("/v1/policies")
        except AdminError:
            return False
        return True

    def _ask(
        self, method: str, path: str, body: dict[str, Any] | None, headers: dict[str, str] | None = None
    ) -> dict[str, Any]:
        connection = _connection(self.address)
        data = None if body is None else json.dumps(body)
        try:
            connection.request(method, quote(path), data, {"Content-Type": "application/json", **(headers or {})})
            response = connection.getresponse()
            status, text = response.status, response.read()
            self.tag = response.getheader("ETag", "")
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise AdminError(f"nobody answers at {self.address} ({reason}): is pilliond running?") from None
        finally:
            connection.close()
        try:
            answer: dict[str, Any] = json.loads(text)
        except ValueError:
            raise AdminError(f"{self.address} is not the admin port of a pilliond", status=status) from None
        if status >= http.client.BAD_REQUEST:
            raise AdminError(str(answer.get("detail", status)), _exit_code(status), status)
        return answer


def _exit_code(status: int) -> int:
    if status in (http.client.BAD_REQUEST, http.client.NOT_FOUND):
        return os.EX_USAGE
    return os.EX_DATAERR if status == http.client.UNPROCESSABLE_ENTITY else os.EX_UNAVAILABLE


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=ANSWER_S_MAX)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(ANSWER_S_MAX)
        self.sock.connect(self._path)


def _connection(address: str) -> http.client.HTTPConnection:
    parts = urlsplit(address)
    if parts.scheme == "unix":
        return _UnixConnection(address.removeprefix("unix://"))
    return http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=ANSWER_S_MAX)
