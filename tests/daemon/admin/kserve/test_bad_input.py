"""A request that `/v2` cannot answer gets a status and an error, and disturbs no other client."""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pillion
from pillion_protocol import ErrorCode
from pilliond.admin.kserve.errors import STATUSES
from pilliond.admin.kserve.messages import DATATYPES
from tests.conftest import StartDaemon
from tests.harness import Daemon

INFER = "/v2/models/lunar-lander/infer"
HEADER = "Inference-Header-Content-Length"
ROW = [0.0] * 8
FLOATS = np.zeros((1, 8), np.float32).tobytes()


def an_input(**fields: Any) -> dict[str, Any]:
    return {"name": "observation", "shape": [1, 8], "datatype": "FP32", **fields}


def asking(*inputs: Any, **fields: Any) -> dict[str, Any]:
    return {"inputs": list(inputs), **fields}


GOOD = asking(an_input(data=ROW))


@pytest.fixture(scope="module")
def lander(module_daemon: StartDaemon) -> Daemon:
    return module_daemon()


@pytest.fixture(autouse=True)
def _nobody_else_notices(lander: Daemon) -> Iterator[None]:
    """An episode of another client gets the same answers before and after."""
    with pillion.connect(lander.address) as session, session.begin(seed=1) as episode:
        before = episode.act(np.zeros(8, np.float32))
        yield
        assert episode.act(np.zeros(8, np.float32)) == before
    status, reply, _ = lander.ask("POST", INFER, GOOD)
    assert (status, reply["outputs"][0]["data"]) == (200, [int(before)])


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (asking(), "input 'observation': expected, got none"),
        (asking(an_input(data=ROW), an_input(data=ROW)), "input 'observation': expected once, got twice"),
        (asking(an_input(name="other", data=ROW)), "input 'other': expected one of observation"),
        (asking(an_input(shape=[1, 7], data=[0.0] * 7)), "expected shape [1, 8], got [1, 7]"),
        (asking(an_input(shape=[8], data=ROW)), "expected shape [8, 8], got [8]"),
        (asking(an_input(shape=[], data=ROW)), "expected 1 to 256 rows, got shape []"),
        (asking(an_input(shape=[0, 8], data=[])), "expected 1 to 256 rows, got shape [0, 8]"),
        (asking(an_input(shape=[257, 8], data=[])), "expected 1 to 256 rows, got shape [257, 8]"),
        (asking(an_input(shape=[2**62, 8], data=ROW)), "expected 1 to 256 rows"),
        (asking(an_input(shape=[-1, 8], data=ROW)), "$.inputs[0].shape[0]"),
        (asking(an_input(shape=[1.5, 8], data=ROW)), "$.inputs[0].shape[0]"),
        (asking(an_input(datatype="FP64", data=ROW)), "expected datatype FP32, got FP64"),
        (asking(an_input(datatype="BYTES", data=["a"] * 8)), "expected datatype FP32, got BYTES"),
        (asking(an_input(data=["a"] * 8)), "data: "),
        (asking(an_input(data=[None] * 8)), "data: "),
        (asking(an_input(data=[*ROW[:7], True])), "$[7]"),
        (asking(an_input(data={"0": 1})), "data: "),
        (asking(an_input(data=ROW[:7])), "expected data of shape [1, 8], got [7]"),
        (asking(an_input(data=[ROW, ROW])), "expected data of shape [1, 8], got [2, 8]"),
        (asking(an_input(data=[[0.0], ROW])), "expected data of shape [1, 8], got lists of several lengths"),
        (asking(an_input(data=[1e39] * 8)), "non_finite: observation 'observation' is not finite"),
        (asking(an_input()), "expected either data or binary_data_size"),
        (asking(an_input(data=ROW, parameters={"binary_data_size": 32})), "expected either data or binary_data_size"),
        (
            asking(an_input(parameters={"binary_data_size": 32})),
            "expected 32 bytes of binary data, got 0 (binary_data_size 32)",
        ),
        (asking(an_input(parameters={"shared_memory_region": "x"})), "shared memory is not supported"),
        (asking(an_input(data=ROW), outputs=[{"name": "other"}]), "output 'other': expected one of action"),
        (asking(an_input(data=ROW), outputs=[{"name": "action"}] * 2), "output 'action': expected once, got twice"),
        (
            asking(an_input(data=ROW), outputs=[{"name": "action", "parameters": {"classification": 2}}]),
            "classification is not supported",
        ),
        (
            asking(an_input(data=ROW), outputs=[{"name": "action", "parameters": {"shared_memory_region": "x"}}]),
            "shared memory is not supported",
        ),
        (asking(an_input(data=ROW), parameters={"sed": 1}), "`sed`"),
        (asking(an_input(data=ROW), parameters={"seed": -1}), "$.parameters.seed"),
        (asking(an_input(data=ROW), parameters={"seed": 2**63}), "$.parameters.seed"),
        (asking(an_input(data=ROW), parameters={"timeout": -1}), "$.parameters.timeout"),
        (asking(an_input(data=ROW), parameters={"sequence_id": 5}), "sequence 5 is not open"),
        (
            asking(an_input(data=ROW), parameters={"sequence_id": "five", "sequence_end": True}),
            "'five' is not open",
        ),
        ({}, "`inputs`"),
        ([], "body: "),
        (b"", "body: "),
        (b"\xff\xfe", "body: "),
        (b"[" * 60_000, "body: "),
        (b'{"inputs": [{"name": "observation", "shape": [1, 8], "datatype": "FP32", "data": [NaN]}]}', "body: "),
        (json.dumps(asking(an_input(data=0))).replace(": 0}", ": " + "[" * 5_000 + "]" * 5_000 + "}").encode(), ""),
    ],
)
def test_a_request_that_does_not_fit_the_policy_gets_what_is_expected(body: Any, sentence: str, lander: Daemon) -> None:
    status, reply, headers = lander.ask("POST", INFER, body)
    assert (status, list(reply), headers["Content-Type"].split(";")[0]) == (400, ["error"], "application/json")
    assert sentence in reply["error"]
    assert "\n" not in reply["error"]
    assert len(reply["error"]) < 400


def binary(*parts: bytes, **fields: Any) -> bytes:
    return b"".join([json.dumps(asking(an_input(parameters={"binary_data_size": 32}, **fields))).encode(), *parts])


LENGTH = len(binary())


@pytest.mark.parametrize(
    ("length", "body", "sentence"),
    [
        (LENGTH, binary(FLOATS[:31]), "got 31 (binary_data_size 32)"),
        (LENGTH, binary(FLOATS, b"\0"), "expected 32 bytes behind the JSON, got 33"),
        (LENGTH, binary(), "got 0 (binary_data_size 32)"),
        (
            LENGTH,
            binary(struct.pack("<8f", *[float("nan")] * 8)),
            "non_finite: observation 'observation' is not finite",
        ),
        (LENGTH + 33, binary(FLOATS), "Inference-Header-Content-Length: expected 0 to"),
        (LENGTH + 32, binary(FLOATS), "body: "),
        (LENGTH - 1, binary(FLOATS), "body: "),
        (0, binary(FLOATS), "body: "),
        (-1, binary(FLOATS), "Inference-Header-Content-Length: expected 0 to"),
        ("9" * 40, binary(FLOATS), "Inference-Header-Content-Length: expected 0 to"),
        ("two", binary(FLOATS), "Inference-Header-Content-Length: expected 0 to"),
        (len(json.dumps(GOOD)), json.dumps(GOOD).encode() + b"more", "expected 0 bytes behind the JSON, got 4"),
    ],
)
def test_binary_data_that_differs_from_its_announcement_is_refused(
    length: Any, body: bytes, sentence: str, lander: Daemon
) -> None:
    status, reply, _ = lander.ask("POST", INFER, body, {HEADER: str(length)})
    assert status == 400
    assert sentence in reply["error"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v2/models/another/infer", 404),
        ("POST", "/v2/models/lunar-lander/versions/9.0.0/infer", 404),
        ("GET", "/v2/models/another", 404),
        ("GET", "/v2/models/lunar-lander/versions/stable", 404),
        ("GET", "/v2/models/lunar-lander/versions/9.0.0/stats", 404),
        ("GET", "/v2/models/another/stats", 404),
        ("GET", "/v2/nothing", 404),
        ("POST", "/v2/repository/models/lunar-lander/load", 404),
        ("POST", "/v2/repository/index", 400),
        ("GET", INFER, 405),
        ("DELETE", "/v2", 405),
    ],
)
def test_an_unknown_path_is_an_error_in_the_protocols_form(method: str, path: str, status: int, lander: Daemon) -> None:
    result, reply, headers = lander.ask(method, path, [] if method == "POST" else None)
    assert (result, list(reply), headers["Content-Type"]) == (status, ["error"], "application/json")
    assert ("Allow" in headers) == (status == 405)


def test_a_body_that_is_too_large_is_refused_plain_or_inflated(lander: Daemon) -> None:
    blanks = b" " * 20_000_000
    for body, headers in ((blanks, {}), (gzip.compress(blanks), {"Content-Encoding": "gzip"})):
        status, reply, _ = lander.ask("POST", INFER, body, headers)
        assert status == 413
        # 64 KB, and 32 bytes for each of 256 × 8 numbers
        assert reply["error"] == "body: expected at most 131072 bytes, got more"


def test_a_body_with_a_wrong_content_encoding_is_refused(lander: Daemon) -> None:
    packed = gzip.compress(json.dumps(GOOD).encode())
    for data in (b"not gzip at all", packed[:-12], packed + b"more", b""):
        status, reply, _ = lander.ask("POST", INFER, data, {"Content-Encoding": "gzip"})
        assert status == 400
        assert "expected one gzip or zlib stream" in reply["error"]
    assert lander.ask("POST", INFER, packed, {"Content-Encoding": "gzip"})[0] == 200
    status, reply, _ = lander.ask("POST", INFER, packed, {"Content-Encoding": "br"})
    assert (status, reply["error"]) == (415, "Content-Encoding: expected gzip or deflate, got 'br'")


def test_a_content_length_beyond_all_bounds_is_refused_before_anything_is_read(lander: Daemon) -> None:
    status, reply = _raw(lander, b"", {"Content-Length": "1000000000000"})
    assert status == 413
    assert "got more" in json.loads(reply)["error"]


@pytest.mark.parametrize("rest", ["Content-Length: 100\r\n\r\n{", "Transfer-Encoding: chunked\r\n\r\n5\r\n{"])
def test_a_client_that_disconnects_in_its_body_disturbs_nobody(rest: str, lander: Daemon) -> None:
    for _ in range(5):
        connection = lander.admin_connection()
        connection.connect()
        connection.sock.sendall(f"POST {INFER} HTTP/1.1\r\nHost: x\r\n{rest}".encode())
        # What comes later on another connection shows that this head was read.
        assert lander.ask("POST", INFER, GOOD)[0] == 200
        connection.close()
    assert lander.ask("POST", INFER, GOOD)[0] == 200
    assert "Traceback" not in lander.stderr


def _raw(daemon: Daemon, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
    """Status and body of a request with exactly these headers."""
    connection = daemon.admin_connection()
    try:
        connection.putrequest("POST", INFER)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


_numbers = st.integers() | st.floats(width=32) | st.booleans() | st.none() | st.text(max_size=3)
_nested = st.recursive(_numbers, lambda inner: st.lists(inner, max_size=9), max_leaves=30)
_inputs = st.fixed_dictionaries(
    {
        "name": st.just("observation") | st.text(max_size=5),
        "shape": st.just([1, 8]) | st.lists(st.integers(-1, 9), max_size=3),
        "datatype": st.sampled_from(sorted(DATATYPES.values())) | st.just("FP32"),
    },
    optional={
        "data": st.just(ROW) | _nested,
        "parameters": st.fixed_dictionaries({}, optional={"binary_data_size": st.just(32) | st.integers()}),
    },
)
_requests = st.fixed_dictionaries(
    {"inputs": st.lists(_inputs, max_size=2)},
    optional={
        "id": st.text(max_size=5),
        "outputs": st.lists(st.fixed_dictionaries({"name": st.just("action") | st.text(max_size=5)}), max_size=2),
        "parameters": st.dictionaries(
            st.sampled_from(["seed", "timeout", "priority", "deterministic", "binary_data_output"]),
            _numbers,
            max_size=3,
        ),
    },
)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(asked=_requests, data=st.binary(max_size=40) | st.just(FLOATS), cut=st.integers(-2, 2))
def test_any_json_request_gets_an_answer_or_an_error(
    lander: Daemon, asked: dict[str, Any], data: bytes, cut: int
) -> None:
    text = json.dumps(asked).encode()
    status, reply = _raw(lander, text + data, {HEADER: str(len(text) + cut)})
    assert status in (200, 400, 504)
    if status != 200:
        assert list(msgspec.json.decode(reply)) == ["error"]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(max_size=100), length=st.none() | st.integers(-1, 120))
def test_any_bytes_get_an_error(lander: Daemon, body: bytes, length: int | None) -> None:
    status, reply = _raw(lander, body, {} if length is None else {HEADER: str(length)})
    assert (status, list(msgspec.json.decode(reply))) == (400, ["error"])


def test_every_error_of_the_data_path_has_a_status() -> None:
    assert set(STATUSES) == set(ErrorCode)
    assert all(status >= 400 for status in STATUSES.values())
