"""A client of the admin port, for the operator's commands and the bench: JSON over a Unix socket, TCP or TLS."""

from __future__ import annotations

import http.client
import ipaddress
import json
import os
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from pilliond.limits import ADMIN_ANSWER_S_MAX

_POLL_S: Final = 0.02


class AdminError(Exception):
    """The admin port does not answer, or answers with an error. `status` is its HTTP status, 0 without an answer."""

    def __init__(self, message: str, exit_code: int = os.EX_UNAVAILABLE, status: int = 0) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.status = status


class Credentials(msgspec.Struct, frozen=True):
    """The token of an operator, and the CA certificates that they trust."""

    token: str = ""
    ca_file: str = ""
    """A PEM file; empty: the CA certificates that this host trusts."""

    def context(self) -> ssl.SSLContext:
        """Returns the context for TLS; raises `AdminError` if `ca_file` cannot be read."""
        try:
            return ssl.create_default_context(cafile=self.ca_file or None)
        except OSError as error:
            raise AdminError(f"--ca-file: {self.ca_file}: {error.strerror or error}", os.EX_USAGE) from None


def credentials_of(environment: Mapping[str, str], token_file: str = "", ca_file: str = "") -> Credentials:
    """Returns the credentials in the named files, else in `PILLION_TOKEN_FILE`, `PILLION_TOKEN` and `PILLION_CA_FILE`.

    Raises `AdminError`.
    """
    path = token_file or environment.get("PILLION_TOKEN_FILE", "")
    token = _read_token(path) if path else environment.get("PILLION_TOKEN", "")
    token = token.strip()
    if not (token.isascii() and token.isprintable()):
        raise AdminError("the token is not valid: expected one line of letters and digits", os.EX_USAGE)
    return Credentials(token, ca_file or environment.get("PILLION_CA_FILE", ""))


def _read_token(path: str) -> str:
    try:
        return Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise AdminError(f"--token-file: {path}: {reason}", os.EX_USAGE) from None


class AdminClient:
    """Client of an admin port at `unix:///PATH`, `http://HOST:PORT` or `https://HOST:PORT`; one connection per request.

    Over TCP it sends the token of `credentials`; None: those of the environment.
    """

    def __init__(self, address: str, credentials: Credentials | None = None) -> None:
        self.address = address
        self._credentials = credentials_of(os.environ) if credentials is None else credentials
        self.tag = ""
        """The `ETag` of the last response."""
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https", "unix") or (parts.scheme != "unix" and not parts.hostname):
            raise AdminError(
                f"--admin: expected unix:///PATH, http://HOST:PORT or https://HOST:PORT, got {address!r}", os.EX_USAGE
            )
        if parts.scheme == "http" and self._credentials.token and not _is_loopback(parts.hostname or ""):
            raise AdminError(f"--admin: expected https:// for {address}: a token is not sent unencrypted", os.EX_USAGE)

    def get(self, path: str, query: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Returns the JSON at a path; raises `AdminError`."""
        return self._ask("GET", path, None, query)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Runs a verb and returns its JSON; raises `AdminError`."""
        return self._ask("POST", path, body)

    def put(self, path: str, body: dict[str, Any], tag: str = "*") -> dict[str, Any]:
        """Sets something if its `ETag` is still `tag`, and returns its JSON; raises `AdminError`."""
        return self._ask("PUT", path, body, headers={"If-Match": tag})

    def delete(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Deletes something and returns its JSON; raises `AdminError`."""
        return self._ask("DELETE", path, body)

    def policies(self) -> list[dict[str, Any]]:
        """Returns the state of every served policy, the default one first; raises `AdminError`."""
        states: list[dict[str, Any]] = self.get("/v1/policies")["policies"]
        return states

    def policy(self) -> dict[str, Any]:
        """Returns the state of the only served policy; raises `AdminError`, which lists them if there are several."""
        states = self.policies()
        if len(states) > 1:
            served = ", ".join(state["policy"] for state in states)
            raise AdminError(f"expected the name of a policy: this daemon serves {served}", os.EX_USAGE)
        return states[0]

    def ended(self, operation: dict[str, Any], on_step: Callable[[str], None] | None = None) -> dict[str, Any]:
        """Waits for the end of an operation and returns its status; raises `AdminError` if it failed.

        It calls `on_step` with the current step at every poll.
        """
        while operation["outcome"] == "running":
            if on_step is not None:
                on_step(operation["step"])
            time.sleep(_POLL_S)
            operation = self.get(f"/v1/operations/{operation['number']}")
        if operation["outcome"] != "done":
            raise AdminError(f"{operation['kind']} {operation['outcome']}: {operation['error']}", os.EX_SOFTWARE)
        return operation

    def is_there(self) -> bool:
        """Returns whether the admin port answers."""
        try:
            self.get("/v1/policies")
        except AdminError:
            return False
        return True

    def _ask(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None,
        query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        connection = self._connection()
        data = None if body is None else json.dumps(body)
        try:
            target = f"{quote(path)}?{urlencode(query)}" if query else quote(path)
            connection.request(method, target, data, {**self._headers(), **(headers or {})})
            response = connection.getresponse()
            status, text = response.status, response.read()
            self.tag = response.getheader("ETag", "")
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, ssl.SSLCertVerificationError):
                reason = f"its certificate is not trusted ({error.verify_message}): expected --ca-file"
                raise AdminError(f"{self.address}: {reason}", os.EX_NOPERM) from None
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise AdminError(f"no response from {self.address} ({reason}): is pilliond running?") from None
        finally:
            connection.close()
        try:
            answer: dict[str, Any] = json.loads(text)
        except ValueError:
            raise AdminError(f"{self.address} is not an admin port of pilliond", status=status) from None
        if status >= http.client.BAD_REQUEST:
            raise AdminError(str(answer.get("detail", status)), _exit_code(status), status)
        return answer

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json"}
        if self._credentials.token and not self.address.startswith("unix://"):
            headers["Authorization"] = f"Bearer {self._credentials.token}"
        return headers

    def _connection(self) -> http.client.HTTPConnection:
        parts = urlsplit(self.address)
        if parts.scheme == "unix":
            return _UnixConnection(self.address.removeprefix("unix://"))
        if parts.scheme == "http":
            return http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=ADMIN_ANSWER_S_MAX)
        return http.client.HTTPSConnection(
            parts.hostname or "", parts.port, timeout=ADMIN_ANSWER_S_MAX, context=self._credentials.context()
        )


def _exit_code(status: int) -> int:
    if status in (http.client.UNAUTHORIZED, http.client.FORBIDDEN):
        return os.EX_NOPERM
    if status in (http.client.BAD_REQUEST, http.client.NOT_FOUND):
        return os.EX_USAGE
    return os.EX_DATAERR if status == http.client.UNPROCESSABLE_ENTITY else os.EX_UNAVAILABLE


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=ADMIN_ANSWER_S_MAX)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(ADMIN_ANSWER_S_MAX)
        self.sock.connect(self._path)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
