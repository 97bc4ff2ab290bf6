"""Refusals of the admin port: the status, the type of the problem, and no change. Real daemons, raw sockets."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hypothesis
import psutil
import pytest
from hypothesis import strategies

import pillion
from pillion_artifacts import Store
from pillion_bench.variants import POLICY
from tests.conftest import StartDaemon
from tests.daemon.tools.admin_fuzz import OBSERVATION, publish
from tests.harness import START_S_MAX, Daemon

PATH = f"/v1/policies/{POLICY}"
STAGE = f"{PATH}/stage"
ROUTE = f"{PATH}/route"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The store of the daemon that no test changes."""
    return publish(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def unchanged(module_daemon: StartDaemon, store: Store) -> Daemon:
    """A daemon that no test changes."""
    return module_daemon(policy=f"{POLICY}@stable", store=store.root)


@pytest.fixture
def followed(start_daemon: StartDaemon, tmp_path: Path) -> Daemon:
    """A daemon of the test's own: it serves 1.0.0, and 1.1.0 and 1.2.0 are stored."""
    return start_daemon(policy=f"{POLICY}@stable", store=publish(tmp_path / "store").root)


def state(daemon: Daemon, store: Store) -> tuple[Any, ...]:
    """Everything that a refused request must not change."""
    _, reply, headers = daemon.ask("GET", PATH)
    alias = store.resolve(f"{POLICY}@stable").version
    return headers["ETag"], alias, (store.root / "audit.jsonl").read_bytes(), reply["route"], reply["operation"]


def arm(**fields: Any) -> dict[str, Any]:
    return {"arms": [{"name": "a", "version": "1.1.0", "share": 0.5, **fields}]}


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "kind"),
    [
        ("POST", STAGE, {"version": ""}, {}, 400, "malformed"),
        ("POST", STAGE, {"version": "x" * 1_001}, {}, 400, "malformed"),
        ("POST", STAGE, [], {}, 400, "malformed"),
        ("POST", STAGE, b"null", {}, 400, "malformed"),
        ("POST", STAGE, b" ", {}, 400, "malformed"),
        ("POST", STAGE, b'\xef\xbb\xbf{"version": "1.1.0"}', {}, 400, "malformed"),
        ("POST", STAGE, b'{"version": "\\ud800"}', {}, 400, "malformed"),
        ("POST", STAGE, b'{"version": ' + b"[" * 60_000, {}, 400, "malformed"),
        ("POST", STAGE, {"version": "1.1.0\0"}, {}, 404, "version-not-found"),
        ("POST", STAGE, {"version": "../../../etc/passwd"}, {}, 404, "version-not-found"),
        ("POST", STAGE, {"version": "sha256:" + "0" * 64}, {}, 404, "version-not-found"),
        ("POST", STAGE, {"version": "9" * 900 + ".0.0"}, {}, 404, "version-not-found"),
        ("POST", STAGE, b"version=1.1.0", {"Content-Type": "application/x-www-form-urlencoded"}, 415, "not-json"),
        ("POST", STAGE, {"version": "1.1.0"}, {"Content-Type": "text/xml"}, 415, "not-json"),
        ("POST", STAGE, {"version": "1.1.0"}, {"Content-Encoding": "gzip"}, 415, "not-json"),
        ("POST", STAGE, {"version": "1.1.0"}, {"Expect": "something"}, 417, "expectation-failed"),
        ("POST", STAGE, {"version": "1.1.0"}, {"If-Match": '"another"'}, 412, "changed-meanwhile"),
        ("POST", STAGE, {"version": "1.1.0"}, {"If-Match": '"\xff"'}, 412, "changed-meanwhile"),
        ("POST", STAGE, {"version": "1.1.0"}, {"If-Match": ""}, 412, "changed-meanwhile"),
        ("DELETE", STAGE, {}, {"If-Match": '"another"'}, 412, "changed-meanwhile"),
        ("DELETE", STAGE, {}, {}, 409, "nothing-to-cancel"),
        ("POST", f"{PATH}/rollback", {}, {"If-Match": '"another"'}, 412, "changed-meanwhile"),
        ("POST", f"{PATH}/rollback", {"by": 1}, {}, 400, "malformed"),
        ("PUT", ROUTE, {}, {}, 400, "malformed"),
        ("PUT", ROUTE, {"arms": None}, {}, 400, "malformed"),
        ("PUT", ROUTE, arm(share=2), {}, 400, "malformed"),
        ("PUT", ROUTE, arm(share="half"), {}, 400, "malformed"),
        ("PUT", ROUTE, b'{"arms": [{"name": "a", "version": "1.1.0", "share": NaN}]}', {}, 400, "malformed"),
        ("PUT", ROUTE, b'{"arms": [{"name": "a", "version": "1.1.0", "share": 1e999}]}', {}, 400, "malformed"),
        ("PUT", ROUTE, {"arms": [], "shadow": {"version": ""}}, {}, 400, "malformed"),
        ("PUT", ROUTE, {"arms": [], "shadow": {"version": "1.1.0", "share": 0}}, {}, 400, "malformed"),
        ("PUT", ROUTE, arm(name=""), {}, 400, "malformed"),
        ("PUT", ROUTE, arm(name="a\nb"), {}, 400, "malformed"),
        ("PUT", ROUTE, arm(name="stable"), {}, 400, "malformed"),
        ("PUT", ROUTE, arm(of="another"), {}, 400, "malformed"),
        ("PUT", ROUTE, {"arms": arm()["arms"] * 4}, {}, 400, "malformed"),
        ("PUT", ROUTE, arm(version="9.9.9"), {}, 404, "version-not-found"),
        ("PUT", ROUTE, arm(), {"If-Match": '"another"'}, 412, "changed-meanwhile"),
        ("POST", "/v1/drain", {"reason": 1}, {}, 400, "malformed"),
        ("POST", "/v1/drain", {"reasno": "a typing error"}, {}, 400, "malformed"),
        ("POST", "/v1/drain", b"x", {"Content-Type": "text/plain"}, 415, "not-json"),
        ("GET", "/v1/drain", None, {}, 405, "method-not-allowed"),
        ("GET", "/v1/policies/mars-lander/versions", None, {}, 404, "policy-not-found"),
        ("DELETE", "/v1/policies/mars-lander/stage", {}, {}, 404, "policy-not-found"),
        ("PUT", "/v1/policies/mars-lander/route", arm(), {}, 404, "policy-not-found"),
        ("GET", "/v1/policies/%ff", None, {}, 404, "policy-not-found"),
        ("GET", "/v1/policies/%00", None, {}, 404, "policy-not-found"),
        ("GET", "/v1/policies/%ed%a0%80", None, {}, 404, "policy-not-found"),
        ("GET", f"{PATH}/", None, {}, 404, "not-found"),
        ("GET", "/", None, {}, 404, "not-found"),
        ("GET", "/nothing", None, {}, 404, "not-found"),
        ("GET", "//health", None, {}, 404, "not-found"),
        ("GET", "/v1/operations/0", None, {}, 404, "operation-not-found"),
        ("GET", "/v1/operations/-1", None, {}, 404, "operation-not-found"),
        ("GET", "/v1/operations/%D9%A1", None, {}, 404, "operation-not-found"),
        ("GET", "/v1/operations/" + "9" * 5_000, None, {}, 404, "operation-not-found"),
        ("DELETE", "/health", None, {}, 405, "method-not-allowed"),
        ("OPTIONS", "/metrics", None, {}, 405, "method-not-allowed"),
        ("TRACE", PATH, None, {}, 405, "method-not-allowed"),
    ],
)  # fmt: skip
def test_a_refusal_names_its_reason_and_changes_nothing(
    unchanged: Daemon, store: Store, method: str, path: str, body: Any, headers: dict[str, str], status: int, kind: str
) -> None:
    before = state(unchanged, store)
    result, reply, answered = unchanged.ask(method, path, body, headers)
    assert (result, reply["type"], reply["status"]) == (status, f"urn:pillion:{kind}", status)
    assert answered["Content-Type"].startswith("application/problem+json")
    assert reply["title"]
    assert reply["detail"]
    assert ("Allow" in answered) == (status == 405)
    assert state(unchanged, store) == before


def raw(daemon: Daemon, request: bytes) -> tuple[int, str, dict[str, Any]]:
    """Sends bytes; returns status, content type and JSON of the answer, up to the end of the connection."""
    with daemon.admin_socket() as peer:
        peer.sendall(request)
        answer = b"".join(iter(lambda: peer.recv(65_536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    kind = re.search(rb"Content-Type: ([^\r;]*)", head)
    assert kind
    return int(head.split()[1]), kind[1].decode(), json.loads(body)


def post(*lines: bytes, body: bytes = b"") -> bytes:
    return b"\r\n".join([f"POST {STAGE} HTTP/1.1".encode(), b"Host: x", *lines, b"", body])


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400),
        (b"hello\r\n\r\n", 400),
        (b"GET /health HTTP/9.9\r\nHost: x\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\n\r\n", 400),
        (b"GET /v1/policies/\xff HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"WHAT /health HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /" + b"a" * 9_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 431),
        (b"GET /health HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * 9_000 + b"\r\n\r\n", 431),
        (b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 500 + b"\r\n", 400),
        (post(b"Content-Length: x"), 400),
        (post(b"Content-Length: -1"), 400),
        (post(b"Content-Length: 2", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"), 400),
        (post(b"Content-Encoding: gzip", b"Content-Length: 2", b"Connection: close", body=b"{}"), 415),
        (post(b"Transfer-Encoding: chunked", body=b"zz\r\n{}\r\n0\r\n\r\n"), 400),
    ],
    ids=lambda value: value[:24].decode("latin-1") if isinstance(value, bytes) else str(value),
)
def test_data_that_is_no_http_is_a_problem_and_is_not_logged(
    unchanged: Daemon, store: Store, request_bytes: bytes, status: int
) -> None:
    before = state(unchanged, store)
    log = unchanged.stderr
    result, kind, reply = raw(unchanged, request_bytes)
    assert (result, kind, reply["status"]) == (status, "application/problem+json", status)
    assert state(unchanged, store) == before
    assert unchanged.stderr == log


WHOLE = post(b'If-Match: "x"', b"Content-Type: application/json", b"Content-Length: 20", body=b'{"version": "9.9.9"}')


@hypothesis.settings(max_examples=200, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow])
@hypothesis.given(
    changes=strategies.lists(
        strategies.tuples(strategies.integers(0, len(WHOLE)), strategies.integers(0, 4), strategies.binary(max_size=6)),
        min_size=1, max_size=4,
    )
)  # fmt: skip
def test_any_bytes_get_an_answer_or_end_the_connection(
    unchanged: Daemon, changes: list[tuple[int, int, bytes]]
) -> None:
    request = WHOLE
    for at, taken, put in changes:
        request = request[:at] + put + request[at + taken :]
    log = unchanged.stderr
    with unchanged.admin_socket() as peer:
        peer.sendall(request)
        peer.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: peer.recv(65_536), b""))
    for head in re.findall(rb"HTTP/1\.[01] (?!100)[^{]*\r\n\r\n", answer):
        assert 200 <= int(head.split()[1]) < 500
        assert head.startswith(b"HTTP/1.1 2") or b"Content-Type: application/problem+json\r\n" in head
    assert "Traceback" not in unchanged.stderr[len(log) :]
    assert unchanged.get("/livez") == (200, "ok\n")


def test_head_works_wherever_get_does(unchanged: Daemon) -> None:
    for path in ("/health", "/livez", "/readyz", "/info", "/metrics", "/openapi.json", "/v1/policies", PATH):
        connection = unchanged.admin_connection()
        try:
            connection.request("HEAD", path)
            response = connection.getresponse()
            assert (response.status, response.read()) == (200, b""), path
            assert int(response.headers["Content-Length"]) > 0
        finally:
            connection.close()


def test_a_tag_counts_among_others_and_for_one_change(followed: Daemon) -> None:
    tag = followed.ask("GET", PATH)[2]["ETag"]
    headers = {"If-Match": f'"another", {tag}'}
    assert followed.operation(followed.ask("PUT", ROUTE, {"arms": []}, headers))["outcome"] == "done"
    status, reply, _ = followed.ask("PUT", ROUTE, {"arms": []}, headers)
    assert (status, reply["type"]) == (412, "urn:pillion:changed-meanwhile")
    assert followed.ask("PUT", ROUTE, {"arms": []}, {"If-Match": "*"})[0] == 202


def at_once(*calls: Callable[[], tuple[int, dict[str, Any], dict[str, str]]]) -> list[tuple[int, dict[str, Any]]]:
    """Status and JSON of concurrent requests."""
    barrier = threading.Barrier(len(calls))

    def call(one: Callable[[], tuple[int, dict[str, Any], dict[str, str]]]) -> tuple[int, dict[str, Any]]:
        barrier.wait()
        return one()[:2]

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(call, calls))


def test_of_operators_with_the_same_tag_exactly_one_wins(followed: Daemon) -> None:
    for _ in range(5):
        tag = followed.ask("GET", PATH)[2]["ETag"]

        def change(reason: str, tag: str = tag) -> tuple[int, dict[str, Any], dict[str, str]]:
            return followed.ask("PUT", ROUTE, {"arms": [], "reason": reason}, {"If-Match": tag})

        result = at_once(lambda: change("one"), lambda: change("two"), lambda: change("three"))
        assert sorted(status for status, _ in result) == [202, 412, 412]
        (winner,) = [reply for status, reply in result if status == 202]
        followed.operation((202, winner, {}))


def test_the_tag_is_checked_after_the_body_arrived(followed: Daemon) -> None:
    tag = followed.ask("GET", PATH)[2]["ETag"]
    body = b'{"arms": [], "reason": "decided long ago"}'
    head = f"PUT {ROUTE} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nIf-Match: {tag}\r\nContent-Length: {len(body)}\r\n\r\n"
    with followed.admin_socket() as peer:
        peer.sendall(head.encode())
        time.sleep(0.1)
        followed.operation(followed.ask("PUT", ROUTE, {"arms": []}, {"If-Match": tag}))
        peer.sendall(body)
        answer = b"".join(iter(lambda: peer.recv(65_536), b""))
    assert answer.startswith(b"HTTP/1.1 412 ")


def test_two_concurrent_rollbacks_do_not_undo_each_other(followed: Daemon) -> None:
    followed.operation(followed.ask("POST", f"{PATH}/switch", {"version": "1.1.0"}))
    result = at_once(*[lambda: followed.ask("POST", f"{PATH}/rollback", {})] * 2)
    assert {status for status, _ in result} <= {200, 409}
    done = [reply for status, reply in result if status == 200]
    refused = [reply for status, reply in result if status == 409]
    # They may also have come one after the other: then the second goes forward again.
    assert all(reply["type"] == "urn:pillion:busy" for reply in refused)
    assert followed.ask("GET", PATH)[1]["stable"] == ("1.0.0" if len(done) == 1 else "1.1.0")
    assert "a bug" not in json.dumps(result)


def test_a_cancelled_operation_does_not_block_the_next(followed: Daemon) -> None:
    for _ in range(40):
        result = at_once(
            lambda: followed.ask("POST", STAGE, {"version": "1.1.0"}),
            *[lambda: followed.ask("DELETE", STAGE, {"reason": "changed my mind"})] * 3,
        )
        assert {status for status, _ in result} <= {200, 202, 409}
        assert result[0][0] == 202, result[0]
        ended = followed.operation((202, result[0][1], {}))
        assert ended["outcome"] in ("done", "cancelled"), ended


def test_two_rollbacks_restore_the_version_and_the_alias(followed: Daemon, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    for version in ("1.2.0", "1.1.0"):
        followed.operation(followed.ask("POST", f"{PATH}/switch", {"version": version}))
    for expected in ("1.2.0", "1.1.0", "1.2.0", "1.1.0"):
        assert followed.operation(followed.ask("POST", f"{PATH}/rollback", {}))["outcome"] == "done"
        assert followed.ask("GET", PATH)[1]["stable"] == expected
        assert store.resolve(f"{POLICY}@stable").version == expected
    assert not followed.events("alias_left_behind")


def test_a_damaged_store_and_an_unreadable_one_get_different_problems(followed: Daemon, tmp_path: Path) -> None:
    index = tmp_path / "store" / "index.json"
    whole = index.read_bytes()
    index.write_bytes(b"{")
    status, reply, _ = followed.ask("GET", f"{PATH}/versions")
    assert (status, reply["type"]) == (422, "urn:pillion:artifact")
    index.write_bytes(whole)
    with no_descriptor_left(followed) as connection:
        connection.request("GET", f"{PATH}/versions")
        response = connection.getresponse()
        assert (response.status, json.loads(response.read())["type"]) == (503, "urn:pillion:store")
    assert followed.ask("GET", f"{PATH}/versions")[0] == 200


@contextmanager
def no_descriptor_left(daemon: Daemon) -> Iterator[http.client.HTTPConnection]:
    """Takes all descriptors of the control process; yields a connection that was opened before."""
    control = psutil.Process(daemon.pid)
    connection = daemon.admin_connection()
    connection.request("GET", "/livez")
    assert connection.getresponse().read() == b"ok\n"
    taken = {int(name) for name in os.listdir(f"/proc/{daemon.pid}/fd")}
    limits = control.rlimit(psutil.RLIMIT_NOFILE)
    control.rlimit(psutil.RLIMIT_NOFILE, (min(set(range(len(taken) + 1)) - taken), limits[1]))
    try:
        yield connection
    finally:
        control.rlimit(psutil.RLIMIT_NOFILE, limits)
        connection.close()


def test_malformed_requests_do_not_change_any_action(unchanged: Daemon) -> None:
    with pillion.connect(unchanged.address) as session, session.begin(seed=1) as episode:
        first = episode.act(OBSERVATION).tobytes()
        deadline_s = time.monotonic() + START_S_MAX
        for request in (b"hello\r\n\r\n", post(b"Content-Length: x"), b"GET /nothing HTTP/1.0\r\n\r\n") * 20:
            assert time.monotonic() < deadline_s
            raw(unchanged, request)
            assert episode.act(OBSERVATION).tobytes() == first
