"""KServe's protocol below `/v2`, with Triton's own client: real daemons, real policies, HTTP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http
import tritonclient.http.aio
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tritonclient._plugin import InferenceServerClientPlugin
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

import pillion
from pillion_artifacts import Store
from pillion_artifacts.store.aliases import move_alias
from pillion_bench.variants import POLICY, publish_variant
from pilliond.limits import KSERVE_REQUESTS_MAX
from tests.conftest import StartDaemon
from tests.daemon.support.policies.recurrent import publish_summing
from tests.daemon.support.policies.texts import action_of, publish_reader
from tests.daemon.support.tokens import make_token
from tests.harness import START_S_MAX, Daemon, publish

Array = NDArray[Any]
Connect = Callable[[Daemon], Any]
PATH = f"/v1/policies/{POLICY}"
INFER = f"/v2/models/{POLICY}/infer"
STEP = 100.0


def url(daemon: Daemon) -> str:
    return daemon.tcp_admin.removeprefix("http://")


class Bearer(InferenceServerClientPlugin):  # type: ignore[misc]  # tritonclient has no types
    """Adds a token to every request of Triton's client, which supports only TCP."""

    def __init__(self, secret: str) -> None:
        self._header = {"Authorization": f"Bearer {secret}"}

    def __call__(self, request: Any) -> None:
        request.headers.update(self._header)


@pytest.fixture(scope="module")
def tokens_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokens") / "tokens"


@pytest.fixture(scope="module")
def bearer(tokens_file: Path) -> Bearer:
    return Bearer(make_token(tokens_file, "triton", "operate"))


@pytest.fixture(scope="module")
def module_daemon(module_daemon: StartDaemon, tokens_file: Path, bearer: Bearer) -> StartDaemon:
    return partial(module_daemon, settings={"admin__tokens_file": tokens_file})


@pytest.fixture
def start_daemon(start_daemon: StartDaemon, tokens_file: Path, bearer: Bearer) -> StartDaemon:
    def start(*flags: str, settings: Mapping[str, object] | None = None, **others: Any) -> Daemon:
        return start_daemon(*flags, settings={"admin__tokens_file": tokens_file, **(settings or {})}, **others)

    return start


@pytest.fixture
def connect(bearer: Bearer) -> Iterator[Connect]:
    """Makes Triton's clients, and closes them."""
    made: list[Any] = []

    def make(daemon: Daemon) -> Any:
        made.append(tritonclient.http.InferenceServerClient(url(daemon)))
        made[-1].register_plugin(bearer)
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture(scope="module")
def highway_daemon(module_daemon: StartDaemon) -> Daemon:
    return module_daemon(policy=POLICY)


@pytest.fixture(scope="module")
def pixels_daemon(module_daemon: StartDaemon, short_path: Path) -> Daemon:
    """Serves images over the lane, in slots."""
    return module_daemon(policy="cart-pole-pixels", listen=[f"lane://{short_path}/kserve-pixels.sock"])


def observations(session: pillion.Session, rows: int, seed: int = 1) -> Array:
    """Random rows of the session's only observation."""
    (tensor,) = session.spec.observation
    shape = (rows, *tensor.shape)
    generator = np.random.default_rng(seed)
    if tensor.dtype == "uint8":
        return generator.integers(0, 256, shape, dtype=np.uint8)
    return generator.uniform(-1, 1, shape).astype(tensor.dtype)


def tensor(array: Array, name: str = "observation", *, binary: bool = True) -> Any:
    """An input of Triton's client."""
    given = tritonclient.http.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    return given.set_data_from_numpy(array, binary_data=binary)


def wanted(*names: str, binary: bool = True) -> list[Any]:
    return [tritonclient.http.InferRequestedOutput(name, binary_data=binary) for name in names]


def switch(daemon: Daemon, version: str) -> None:
    policy = daemon.health()["policy"]
    done = daemon.operation(daemon.ask("POST", f"/v1/policies/{policy}/switch", {"version": version}))
    assert done["outcome"] == "done", done


def wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + START_S_MAX
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def test_texts_are_bytes(start_daemon: StartDaemon, connect: Connect, tmp_path: Path) -> None:
    publish_reader(tmp_path / "store", tmp_path / "made")
    client = connect(start_daemon(policy="reader", store=tmp_path / "store"))
    (_, prompt, _) = client.get_model_metadata("reader")["inputs"]
    assert prompt == {"name": "prompt", "datatype": "BYTES", "shape": [-1]}
    speed = tensor(np.zeros((2, 2), np.float32), "speed")
    for binary in (True, False):
        texts = [["left", "größer"], ["", "é"]]
        prompts, notes = (
            tensor(np.array(each, object), name, binary=binary)
            for name, each in zip(("prompt", "note"), texts, strict=True)
        )
        actions = client.infer("reader", [speed, prompts, notes]).as_numpy("action")
        assert actions.tolist() == [action_of(prompt, note, 0.0) for prompt, note in zip(*texts, strict=True)]
    with pytest.raises(InferenceServerException, match="row 1: expected at most 24 bytes of UTF-8") as refused:
        client.infer("reader", [speed, tensor(np.array(["a", "b" * 25], object), "prompt"), notes])
    assert refused.value.status() == "400"


# Looking


def test_it_reports_that_it_is_live_and_ready_and_its_models(highway_daemon: Daemon, connect: Connect) -> None:
    client = connect(highway_daemon)
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(POLICY)
    assert client.is_model_ready(POLICY, "1.0.0")
    assert not client.is_model_ready(POLICY, "9.0.0")
    assert not client.is_model_ready("another")
    server = client.get_server_metadata()
    assert server["name"] == "pilliond"
    assert {"binary_tensor_data", "sequence", "statistics"} <= set(server["extensions"])
    (entry,) = client.get_model_repository_index()
    assert (entry["name"], entry["version"], entry["state"]) == (POLICY, "1.0.0", "READY")


def test_the_metadata_names_datatypes_and_shapes_with_the_rows_open(
    highway_daemon: Daemon, pixels_daemon: Daemon, connect: Connect
) -> None:
    reply = connect(highway_daemon).get_model_metadata(POLICY)
    assert (reply["name"], reply["versions"]) == (POLICY, ["1.0.0"])
    assert reply["inputs"] == [{"name": "observation", "datatype": "FP32", "shape": [-1, 5, 5]}]
    assert reply["outputs"][0] == {"name": "action", "datatype": "INT64", "shape": [-1]}
    assert reply == connect(highway_daemon).get_model_metadata(POLICY, "1.0.0")
    reply = connect(pixels_daemon).get_model_metadata("cart-pole-pixels")
    assert reply["inputs"] == [{"name": "observation", "datatype": "UINT8", "shape": [-1, 4, 84, 84]}]


def test_the_configuration_is_what_tritons_client_expects(highway_daemon: Daemon, connect: Connect) -> None:
    reply = connect(highway_daemon).get_model_config(POLICY, "1.0.0")
    assert reply["max_batch_size"] == 256
    assert reply["input"] == [{"name": "observation", "data_type": "TYPE_FP32", "dims": [5, 5]}]
    assert [output["name"] for output in reply["output"]] == ["action", "value", "log_probability"]


def test_the_statistics_count_rows_batches_and_failures_of_each_version(
    module_daemon: StartDaemon, connect: Connect
) -> None:
    daemon = module_daemon()
    client = connect(daemon)

    def model_entry() -> Any:
        (entry,) = client.get_inference_statistics("lunar-lander")["model_stats"]
        return entry

    assert (model_entry()["inference_count"], model_entry()["inference_stats"]["success"]["count"]) == (0, 0)
    for _ in range(2):
        client.infer("lunar-lander", [tensor(np.zeros((3, 8), np.float32))])
    with pytest.raises(InferenceServerException, match="deadline_exceeded") as late:
        client.infer("lunar-lander", [tensor(np.zeros((3, 8), np.float32))], timeout=1)
    assert late.value.status() == "504"
    wait_until(lambda: bool(model_entry()["inference_count"] == 6))
    entry = model_entry()
    assert (entry["name"], entry["version"], entry["execution_count"]) == ("lunar-lander", "1.0.0", 2)
    statistics = entry["inference_stats"]
    assert (statistics["success"]["count"], statistics["fail"]["count"]) == (2, 1)
    assert 0 < statistics["compute_infer"]["ns"] < statistics["success"]["ns"]
    assert client.get_inference_statistics()["model_stats"] == [entry]
    assert client.get_inference_statistics("lunar-lander", "1.0.0")["model_stats"] == [entry]


# Inference


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
@pytest.mark.parametrize("rows", [1, 3])
def test_its_answers_equal_those_of_pillions_own_client_bit_for_bit(
    rows: int, binary: bool, highway_daemon: Daemon, pixels_daemon: Daemon, connect: Connect
) -> None:
    for daemon, policy in ((highway_daemon, POLICY), (pixels_daemon, "cart-pole-pixels")):
        with pillion.connect(daemon.address) as session, session.begin_many(rows) as group:
            rows_of = observations(session, rows)
            group.act(rows_of)
            expected = group.last
            names = list(expected.outputs)
            result = connect(daemon).infer(
                policy, [tensor(rows_of, binary=binary)], outputs=wanted(*names, binary=binary), request_id="seven"
            )
            for name, output in expected.outputs.items():
                array = result.as_numpy(name)
                assert (array.dtype, array.shape) == (output.dtype, output.shape)
                assert array.tobytes() == output.tobytes()
            reply = result.get_response()
            assert (reply["id"], reply["model_name"], reply["model_version"]) == ("seven", policy, expected.version)
            assert reply["parameters"] == {"digest": expected.digest}


def test_as_many_rows_as_a_batch_holds_are_answered_and_one_more_is_refused(
    pixels_daemon: Daemon, connect: Connect
) -> None:
    with pillion.connect(pixels_daemon.address) as session, session.begin_many(256) as group:
        rows_of = observations(session, 256)
        expected = group.act(rows_of)
        one_more = np.concatenate([rows_of, rows_of[:1]])
    client = connect(pixels_daemon)
    result = client.infer("cart-pole-pixels", [tensor(rows_of)])
    assert result.as_numpy("action").tobytes() == expected.tobytes()
    with pytest.raises(InferenceServerException, match="expected 1 to 256 rows"):
        client.infer("cart-pole-pixels", [tensor(one_more)])


def test_answers_have_the_requested_form(highway_daemon: Daemon, connect: Connect) -> None:
    client, given = connect(highway_daemon), [tensor(np.zeros((2, 5, 5), np.float32))]
    everything = client.infer(POLICY, given).get_response()
    assert [output["name"] for output in everything["outputs"]] == ["action", "value", "log_probability"]
    assert all("binary_data_size" in output["parameters"] for output in everything["outputs"])
    asked = [*wanted("value", binary=False), *wanted("action", binary=True)]
    mixed = client.infer(POLICY, given, outputs=asked)
    value, action = mixed.get_response()["outputs"]
    assert (value["name"], len(value["data"]), "parameters" in value) == ("value", 2, False)
    assert (action["name"], action["parameters"], "data" in action) == ("action", {"binary_data_size": 16}, False)
    assert mixed.as_numpy("action").shape == (2,)
    assert "id" not in everything


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_a_request_may_be_compressed(algorithm: str, highway_daemon: Daemon, connect: Connect) -> None:
    given = [tensor(np.ones((4, 5, 5), np.float32))]
    plain = connect(highway_daemon).infer(POLICY, given)
    packed = connect(highway_daemon).infer(POLICY, given, request_compression_algorithm=algorithm)
    assert packed.as_numpy("value").tobytes() == plain.as_numpy("value").tobytes()


def test_a_sample_depends_on_the_seed_as_in_an_episode(highway_daemon: Daemon, connect: Connect) -> None:
    client = connect(highway_daemon)
    with pillion.connect(highway_daemon.address) as session, session.begin_many(64, seeds=range(7, 71)) as group:
        rows_of = np.repeat(observations(session, 1), 64, axis=0)
        expected = group.act(rows_of, deterministic=False)

    def drawn(**parameters: Any) -> Array:
        result: Array = client.infer(POLICY, [tensor(rows_of)], parameters=parameters).as_numpy("action")
        return result

    assert drawn(seed=7, deterministic=False).tolist() == expected.tolist()
    assert len(set(drawn(seed=7).tolist())) == 1
    assert drawn(deterministic=False).tolist() != drawn(deterministic=False).tolist()


async def test_concurrent_requests_each_get_their_own_answer(highway_daemon: Daemon, bearer: Bearer) -> None:
    async with tritonclient.http.aio.InferenceServerClient(url(highway_daemon)) as client:
        client.register_plugin(bearer)
        assert await client.is_server_ready()
        with pillion.connect(highway_daemon.address) as session:
            asked = [observations(session, 1 + number % 3, seed=number) for number in range(24)]
            expected = []
            for rows_of in asked:
                with session.begin_many(len(rows_of)) as group:
                    group.act(rows_of)
                    expected.append(group.last.outputs["value"])
        result = await asyncio.gather(*(client.infer(POLICY, [tensor(rows_of)]) for rows_of in asked))
    for answer, value in zip(result, expected, strict=True):
        assert answer.as_numpy("value").shape == value.shape
        # Another batch may round otherwise: an answer must not be another one's.
        np.testing.assert_allclose(answer.as_numpy("value"), value, atol=1e-5)


def test_too_many_concurrent_requests_get_503_with_retry_after(highway_daemon: Daemon, connect: Connect) -> None:
    head = f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n".encode()
    slow = [highway_daemon.admin_connection() for _ in range(KSERVE_REQUESTS_MAX)]
    try:
        for connection in slow:
            connection.connect()
            connection.sock.sendall(head)
        wait_until(lambda: highway_daemon.ask("POST", INFER, {})[0] == 503)
        status, reply, headers = highway_daemon.ask("POST", INFER, {})
        assert (status, headers["Retry-After"]) == (503, "1")
        assert reply["error"] == f"expected at most {KSERVE_REQUESTS_MAX} requests at once, got one more"
    finally:
        for connection in slow:
            connection.close()
    wait_until(lambda: highway_daemon.ask("POST", INFER, {})[0] == 400)
    connect(highway_daemon).infer(POLICY, [tensor(np.zeros((1, 5, 5), np.float32))])


def test_a_daemon_with_kserve_requests_stops_cleanly(summing: Daemon, connect: Connect) -> None:
    sums = Sums(connect(summing))
    sums()
    sums(5, start=True)
    assert summing.stop() == 0
    assert "Traceback" not in summing.stderr
    assert [record["level"] for record in summing.events("stopped")] == ["info"]


# Sequences


def publish_both(store: Path) -> Path:
    """Two versions of a recurrent policy: the action is the sum of the episode's observations; 1.1.0 adds STEP each time."""
    publish_summing(store, "1.0.0", 0.0)
    publish_summing(store, "1.1.0", STEP)
    move_alias(Store(store), "summing", "stable", "1.0.0", expected="", by="a test")
    return store


@pytest.fixture(scope="module")
def steady(module_daemon: StartDaemon, tmp_path_factory: pytest.TempPathFactory) -> Daemon:
    """Serves 1.0.0 in all tests."""
    return module_daemon(policy="summing@1.0.0", store=publish_both(tmp_path_factory.mktemp("steady") / "store"))


@pytest.fixture
def summing(start_daemon: StartDaemon, tmp_path: Path) -> Daemon:
    """Serves `stable`, which is 1.0.0."""
    return start_daemon(policy="summing@stable", store=publish_both(tmp_path / "store"))


class Sums:
    """Sends `summing` one row after another; `version` is the one that answered last."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.version = ""

    def __call__(self, sequence: int | str = 0, *, start: bool = False, end: bool = False, rows: int = 1) -> float:
        result = self._client.infer(
            "summing",
            [tensor(np.ones((rows, 1), np.float32))],
            sequence_id=sequence,
            sequence_start=start,
            sequence_end=end,
        )
        self.version = result.get_response()["model_version"]
        return float(result.as_numpy("action")[0, 0])


def test_a_sequence_is_one_episode_and_a_request_without_one_an_episode_by_itself(
    steady: Daemon, connect: Connect
) -> None:
    sums = Sums(connect(steady))
    assert [sums(5, start=True), sums("six", start=True)] == [1.0, 1.0]
    assert [sums(), sums(5), sums(), sums("six"), sums(5)] == [1.0, 2.0, 1.0, 2.0, 3.0]
    assert sums(5, start=True) == 1.0
    assert sums(5, end=True) == 2.0
    for sequence in (5, 77):
        with pytest.raises(InferenceServerException, match="begin it with sequence_start") as refused:
            sums(sequence)
        assert refused.value.status() == "400"
    with pytest.raises(InferenceServerException, match="expected 1 rows, as it began, got 2"):
        sums("six", rows=2)
    assert sums("six") == 3.0
    assert sums(9, start=True, end=True) == 1.0
    with pytest.raises(InferenceServerException, match="is not open"):
        sums(9)


def test_a_request_that_is_refused_does_not_advance_its_sequence(steady: Daemon, connect: Connect) -> None:
    client = connect(steady)
    sums = Sums(client)
    sums(5, start=True)
    with pytest.raises(InferenceServerException, match="non_finite"):
        client.infer("summing", [tensor(np.full((1, 1), np.nan, np.float32))], sequence_id=5)
    assert sums(5) == 2.0


def test_a_switch_applies_to_new_requests_and_an_open_sequence_keeps_its_version(
    summing: Daemon, connect: Connect
) -> None:
    client = connect(summing)
    sums = Sums(client)
    assert (sums(), sums.version) == (1.0, "1.0.0")
    sums(5, start=True)
    switch(summing, "1.1.0")
    assert (sums(), sums.version) == (1.0 + STEP, "1.1.0")
    assert (sums(5), sums.version) == (2.0, "1.0.0")
    assert (sums(6, start=True), sums.version) == (1.0 + STEP, "1.1.0")
    assert client.get_model_metadata("summing")["versions"] == ["1.1.0"]
    given = [tensor(np.ones((1, 1), np.float32))]
    with pytest.raises(
        InferenceServerException, match=r"'1\.0\.0': expected one that answers new episodes: 1\.1\.0"
    ) as gone:
        client.infer("summing", given, model_version="1.0.0")
    assert gone.value.status() == "404"
    going_on = client.infer("summing", given, model_version="1.0.0", sequence_id=5)
    assert going_on.as_numpy("action").tolist() == [[3.0]]
    with pytest.raises(InferenceServerException, match="another version answers it"):
        client.infer("summing", given, model_version="1.1.0", sequence_id=5)
    assert sums(5) == 4.0


def publish_pairs(store: Path) -> None:
    """Publishes `summing` 2.0.0 without a state; its observation is two numbers of twice the width."""
    ends = [
        helper.make_tensor_value_info("observation", TensorProto.DOUBLE, ["rows", 2]),
        helper.make_tensor_value_info("action", TensorProto.DOUBLE, ["rows", 1]),
    ]
    axis = numpy_helper.from_array(np.array([1], np.int64), "axis")
    node = helper.make_node("ReduceSum", ["observation", "axis"], ["action"])
    graph = helper.make_graph([node], "pairs", ends[:1], ends[1:], [axis])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    publish(store, "summing", "2.0.0", model.SerializeToString(), PAIRS)


PAIRS = """
schema: 2
name: summing
version: 2.0.0
description: Adds up two numbers.
licence: Apache-2.0
observation:
- {name: observation, dtype: float64, shape: [2]}
outputs:
- {name: action, dtype: float64, shape: [1]}
"""


def test_after_a_switch_to_other_tensors_requests_have_the_new_ones_and_an_open_sequence_the_old(
    start_daemon: StartDaemon, tmp_path: Path, connect: Connect
) -> None:
    store = publish_both(tmp_path / "store")
    publish_pairs(store)
    daemon = start_daemon(policy="summing@1.0.0", store=store)
    client = connect(daemon)
    sums = Sums(client)
    sums(5, start=True)
    switch(daemon, "2.0.0")
    assert client.get_model_metadata("summing")["inputs"][0] == {
        "name": "observation",
        "datatype": "FP64",
        "shape": [-1, 2],
    }
    result = client.infer("summing", [tensor(np.array([[3.0, 4.0]]))])
    assert (result.as_numpy("action").tolist(), result.get_response()["model_version"]) == ([[7.0]], "2.0.0")
    assert (sums(5), sums.version) == (2.0, "1.0.0")
    with pytest.raises(InferenceServerException, match="expected datatype FP64, got FP32"):
        sums()


def test_a_request_keeps_no_old_version_loaded(summing: Daemon, connect: Connect) -> None:
    sums = Sums(connect(summing))
    sums()
    switch(summing, "1.1.0")

    def leases() -> dict[str, int]:
        resident = summing.ask("GET", "/v1/policies/summing")[1]["resident"]
        return {entry["version"]: entry["leases"] for entry in resident}

    wait_until(lambda: leases() == {"1.0.0": 0, "1.1.0": 0})
    wait_until(lambda: bool(summing.health()["sessions"] == 0))
    assert sums() == 1.0 + STEP


def test_a_sequence_with_an_unloaded_version_gets_410(
    start_daemon: StartDaemon, tmp_path: Path, connect: Connect
) -> None:
    store = publish_both(tmp_path / "store")
    daemon = start_daemon(policy="summing@1.0.0", store=store, settings={"versions__old_max": 0})
    sums = Sums(connect(daemon))
    sums(5, start=True)
    switch(daemon, "1.1.0")
    daemon.wait_for_event("version_unloaded")
    with pytest.raises(InferenceServerException, match="version_gone") as gone:
        sums(5)
    assert gone.value.status() == "410"
    with pytest.raises(InferenceServerException, match="is not open"):
        sums(5)
    assert (sums(5, start=True), sums.version) == (1.0 + STEP, "1.1.0")


def test_after_a_restart_of_the_serving_process_requests_are_answered_and_sequences_are_lost(
    summing: Daemon, connect: Connect
) -> None:
    client = connect(summing)
    sums = Sums(client)
    sums(5, start=True)
    assert sums() == 1.0
    summing.kill_serving()
    statuses = set()
    deadline_s = time.monotonic() + START_S_MAX
    while (status := summing.ask("POST", "/v2/models/summing/infer", JSON_ONE)[0]) != 200:
        assert time.monotonic() < deadline_s
        statuses.add(status)
        time.sleep(0.02)
    assert statuses <= {503}
    assert client.is_server_ready()
    with pytest.raises(InferenceServerException) as lost:
        sums(5)
    assert lost.value.status() == "410"
    assert [sums(5, start=True), sums(5)] == [1.0, 2.0]


JSON_ONE = {"inputs": [{"name": "observation", "shape": [1, 1], "datatype": "FP32", "data": [1.0]}]}


def test_without_a_serving_process_it_reports_not_ready(summing: Daemon, connect: Connect) -> None:
    # Between the end of one serving process and the start of the next there is a pause.
    client = connect(summing)
    summing.kill_serving()
    summing.wait_for_event("serving_died")
    seen = []
    deadline_s = time.monotonic() + START_S_MAX
    while not client.is_server_ready():
        assert time.monotonic() < deadline_s
        assert client.is_server_live()
        seen.append(summing.ask("POST", "/v2/models/summing/infer", JSON_ONE))
    refused = [(reply["error"], headers["Retry-After"]) for status, reply, headers in seen if status == 503]
    assert refused
    assert all(error.endswith("not ready") and after == "1" for error, after in refused)


# Shares


def test_a_named_version_with_a_share_answers_and_each_row_reports_its_version(
    start_daemon: StartDaemon, tmp_path: Path, connect: Connect
) -> None:
    for number in range(2):
        publish_variant(tmp_path / "store", f"1.{number}.0", number * STEP)
    daemon = start_daemon(policy=f"{POLICY}@1.0.0", store=tmp_path / "store")
    client, rows_of = connect(daemon), np.zeros((32, 5, 5), np.float32)
    base = client.infer(POLICY, [tensor(rows_of)]).as_numpy("value")[0]
    arms = {"arms": [{"name": "canary", "version": "1.1.0", "share": 0.5}]}
    assert daemon.operation(daemon.ask("PUT", f"{PATH}/route", arms))["outcome"] == "done"
    assert client.get_model_metadata(POLICY)["versions"] == ["1.0.0", "1.1.0"]
    for version, value in (("1.0.0", base), ("1.1.0", base + STEP)):
        for parameters in ({}, {"deterministic": False}):
            result = client.infer(POLICY, [tensor(rows_of)], model_version=version, parameters=parameters)
            assert result.get_response()["model_version"] == version
            np.testing.assert_allclose(result.as_numpy("value"), value, atol=1e-3)
    # One request is answered by one version, unless its rows have seeds of their own.
    assert "row_versions" not in client.infer(POLICY, [tensor(rows_of)]).get_response()["parameters"]
    result = client.infer(POLICY, [tensor(rows_of)], parameters={"seed": 1})
    versions = result.get_response()["parameters"]["row_versions"].split(",")
    assert set(versions) == {"1.0.0", "1.1.0"}
    expected = [base + STEP * (version == "1.1.0") for version in versions]
    np.testing.assert_allclose(result.as_numpy("value"), expected, atol=1e-3)
    assert result.get_response()["model_version"] == versions[0]
    client.infer(POLICY, [tensor(rows_of)], sequence_id=5, sequence_start=True, model_version="1.1.0")
    going_on = client.infer(POLICY, [tensor(rows_of)], sequence_id=5, model_version="1.1.0")
    np.testing.assert_allclose(going_on.as_numpy("value"), base + STEP, atol=1e-3)
