"""Tokens for tests, and admin requests that use them."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Iterator
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, get_args
from urllib.parse import urlsplit

from pilliond.admin.http.token_file import change_tokens
from pilliond.admin.http.tokens import ScopeWord, new_token
from tests.harness import WAIT_S_MAX

_addresses: Iterator[int] = count(2)


class Answer(NamedTuple):
    """A response; `json` is empty if the body is not JSON."""

    status: int
    json: dict[str, Any]
    headers: dict[str, str]


def make_token(file: Path, name: str, scope: ScopeWord, expires: datetime | None = None) -> str:
    """Adds a token to the file and returns its secret."""
    token, secret = new_token(name, scope, expires)
    change_tokens(file, lambda tokens: [*tokens, token])
    return secret


def make_tokens(file: Path) -> dict[str, str]:
    """Adds a token of each scope, named after it, and returns the secrets by scope."""
    return {scope: make_token(file, scope, scope) for scope in get_args(ScopeWord)}


def another_address() -> str:
    """Returns a loopback address that no request came from yet: the daemon counts refusals per address."""
    number = next(_addresses)
    return f"127.1.{number // 250}.{number % 250 + 1}"


def asked(
    url: str,
    method: str = "GET",
    path: str = "/health",
    token: str | None = None,
    body: Any = None,
    headers: dict[str, str] | None = None,
    source: str = "",
    context: ssl.SSLContext | None = None,
) -> Answer:
    """Sends a request to the admin port at `url` and returns its answer.

    The request comes from the address `source`, or else from an unused one.
    """
    parts = urlsplit(url)
    local = (source or another_address(), 0)
    connection = (
        http.client.HTTPConnection(parts.hostname or "", parts.port, WAIT_S_MAX, local)
        if context is None
        else http.client.HTTPSConnection(
            parts.hostname or "", parts.port, timeout=WAIT_S_MAX, source_address=local, context=context
        )
    )
    authorization = {"Authorization": f"Bearer {token}"} if token is not None else {}
    kind = {"Content-Type": "application/json"} if body is not None else {}
    try:
        data = body if body is None or isinstance(body, bytes) else json.dumps(body)
        connection.request(method, path, data, {**kind, **authorization, **(headers or {})})
        response = connection.getresponse()
        text = response.read()
    finally:
        connection.close()
    is_json = "json" in (response.getheader("Content-Type") or "")
    return Answer(response.status, json.loads(text) if is_json and text else {}, dict(response.getheaders()))
