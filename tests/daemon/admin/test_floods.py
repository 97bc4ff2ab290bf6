"""Peers of the admin port that open too many connections, send slowly or never read: operators still get answers."""

from __future__ import annotations

import os
import socket
import ssl
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trustme

from pilliond.limits import ADMIN_CONNECTIONS_MAX
from tests.conftest import StartDaemon
from tests.daemon.support.tokens import asked, make_token
from tests.harness import TIME_UNIT_S, WAIT_S_MAX, Daemon

CROWD = ADMIN_CONNECTIONS_MAX + 64
UNREAD_BYTES_MAX = 4_096
"""How much a peer that never reads takes before its daemon has to wait. The kernel's default takes hundreds of pages."""
CUT_S_MAX = 30 * TIME_UNIT_S


def host_and_port(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port


@contextmanager
def crowd(url: str, says: bytes) -> Iterator[list[socket.socket]]:
    """Connections that send these bytes and nothing more, and read nothing."""
    with ExitStack() as stack:
        connections = []
        for _ in range(CROWD):
            connection = stack.enter_context(socket.socket())
            connection.settimeout(WAIT_S_MAX)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, UNREAD_BYTES_MAX)
            connection.connect(host_and_port(url))
            connection.sendall(says)
            connections.append(connection)
        yield connections


def descriptors(daemon: Daemon) -> int:
    return len(os.listdir(f"/proc/{daemon.pid}/fd"))


@pytest.mark.parametrize("says", [b"", b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-"])
def test_many_silent_connections_keep_nobody_out_and_use_few_descriptors(daemon: Daemon, says: bytes) -> None:
    before = descriptors(daemon)
    with crowd(daemon.tcp_admin, says):
        assert asked(daemon.tcp_admin).status == 200
        assert daemon.get("/health")[0] == 200
        assert descriptors(daemon) <= before + ADMIN_CONNECTIONS_MAX + 8
    assert asked(daemon.tcp_admin).status == 200
    assert "Traceback" not in daemon.stderr


def test_many_connections_without_a_handshake_keep_nobody_out(start_daemon: StartDaemon, tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_and_cert_chain_pem.write_to_path(tmp_path / "both")
    (tmp_path / "both").chmod(0o600)
    authority.cert_pem.write_to_path(tmp_path / "authority")
    secret = make_token(tmp_path / "tokens", "ann", "view")
    daemon = start_daemon(
        "--admin", "https://127.0.0.1:0",
        settings={
            "admin__tokens_file": tmp_path / "tokens",
            "admin__certificate_file": tmp_path / "both",
            "admin__key_file": tmp_path / "both",
        },
    )  # fmt: skip
    context = ssl.create_default_context(cafile=str(tmp_path / "authority"))
    before = descriptors(daemon)
    with crowd(daemon.tcp_admin, b""):
        assert asked(daemon.tcp_admin, token=secret, context=context).status == 200
        assert descriptors(daemon) <= before + ADMIN_CONNECTIONS_MAX + 8
    assert "Traceback" not in daemon.stderr
    assert daemon.stop() == 0


def test_a_head_sent_byte_by_byte_is_cut_off(daemon: Daemon) -> None:
    with socket.create_connection(host_and_port(daemon.tcp_admin), WAIT_S_MAX) as connection:
        connection.settimeout(0.2)
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n")
        deadline_s = time.monotonic() + CUT_S_MAX
        while True:
            assert time.monotonic() < deadline_s, "it was let go on for ever"
            try:
                connection.sendall(b"X")
                if connection.recv(1_000) == b"":
                    break
            except TimeoutError:
                continue
            except ConnectionError:
                break


def test_a_body_that_never_arrives_is_a_problem_and_ends_the_connection(daemon: Daemon) -> None:
    path = daemon.admin.removeprefix("unix://")
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(CUT_S_MAX)
        connection.connect(path)
        connection.sendall(b"POST /v1/drain HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{")
        heard = b""
        while data := connection.recv(65_536):
            heard += data
    assert heard.startswith(b"HTTP/1.1 408 ")
    assert b"urn:pillion:too-slow" in heard
    assert daemon.get("/readyz")[0] == 200


def test_peers_that_never_read_keep_nobody_out(daemon: Daemon) -> None:
    with crowd(daemon.tcp_admin, b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n" * 20):
        assert asked(daemon.tcp_admin).status == 200
    assert daemon.get("/health")[0] == 200


@pytest.mark.parametrize("says", [b"GET / HTTP/9.9\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01what?\r\n\r\n"])
def test_data_that_is_no_http_is_refused_and_does_not_fill_the_log(daemon: Daemon, says: bytes) -> None:
    before = len(daemon.stderr)
    for _ in range(20):
        with socket.create_connection(host_and_port(daemon.tcp_admin), WAIT_S_MAX) as connection:
            connection.sendall(says)
            assert connection.recv(1_000).startswith(b"HTTP/1.0 400 ")
    assert len(daemon.stderr) == before


def test_a_peer_that_disconnects_before_its_answer_disturbs_nobody(daemon: Daemon) -> None:
    for _ in range(100):
        with socket.create_connection(host_and_port(daemon.tcp_admin), WAIT_S_MAX) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.sendall(b"POST /v1/drain HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}")
    assert asked(daemon.tcp_admin).status == 200
    assert "Traceback" not in daemon.stderr
