"""`/v2`: the handlers of KServe's inference protocol, for tools that use it. Simulators should use the lane."""

from __future__ import annotations

import secrets
from functools import partial
from http import HTTPStatus
from typing import Any, Final

import msgspec
from aiohttp import web

import pilliond
from pilliond.admin.http.endpoints import Endpoint, Scope, body_of, json_response
from pilliond.admin.kserve.body import HEADER_LENGTH, Body, read_body
from pilliond.admin.kserve.connection import Target
from pilliond.admin.kserve.data_path import Call, DataPath, Result
from pilliond.admin.kserve.errors import ErrorBody, KServeError
from pilliond.admin.kserve.messages import (
    IndexEntry,
    IndexRequest,
    InferParameters,
    InferRequest,
    InferResponse,
    InferResponseParameters,
    Live,
    ModelConfig,
    ModelMetadata,
    ModelReadiness,
    Readiness,
    RequestedOutput,
    ServerMetadata,
    Statistics,
)
from pilliond.admin.kserve.statistics import statistics_of
from pilliond.admin.kserve.tensors import (
    body_bytes_max,
    config_of,
    decode_inputs,
    encode_outputs,
    metadata_of,
    select_outputs,
)
from pilliond.ipc.sealed_version import SealedVersion
from pilliond.limits import KSERVE_ANSWER_S_MAX, KSERVE_REQUESTS_MAX, KSERVE_SEEDS_MAX
from pilliond.supervision.policy_channel import PolicyChannel
from pilliond.supervision.serving_state import ServingState
from pilliond.supervision.supervisor import Supervisor
from pilliond.traffic_split import salt_of, unit_of

_EXTENSIONS: Final = ["binary_tensor_data", "model_configuration", "sequence", "statistics"]
_SEED_BITS: Final = 62
_INFER_PROBLEMS: Final = (HTTPStatus.GONE, HTTPStatus.INTERNAL_SERVER_ERROR, HTTPStatus.GATEWAY_TIMEOUT)


class KServeRoutes:
    """The handlers below `/v2`. Owns its sessions with the serving process; `close` ends them."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._data_paths = {
            name: DataPath(partial(self._target, channel)) for name, channel in supervisor.policies.items()
        }
        self._running = 0

    def endpoints(self) -> list[Endpoint]:
        """Returns its rows of the table. Inference takes engine time from simulators, so it needs more than `view`."""
        view, ok = Scope.VIEW, (HTTPStatus.OK, HTTPStatus.SERVICE_UNAVAILABLE)
        rows = [
            Endpoint("GET", "/v2", self._server, "Show the server and its extensions", view, ServerMetadata),
            Endpoint("GET", "/v2/health/live", self._live, "Check that the daemon is alive", Scope.OPEN, Live),
            Endpoint(
                "GET", "/v2/health/ready", self._ready, "Check that acts are answered", Scope.OPEN, Readiness, statuses=ok
            ),
            Endpoint(
                "POST", "/v2/repository/index", self._index, "List the loaded versions", view, list[IndexEntry],
                body=IndexRequest,
            ),
            Endpoint("GET", "/v2/models/stats", self._all_statistics, "Show the statistics of every version", view, Statistics),
        ]  # fmt: skip
        for model in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
            rows += [
                Endpoint("GET", model, self._model, "Show the tensors of a policy", view, ModelMetadata),
                Endpoint(
                    "GET", f"{model}/ready", self._model_ready, "Check that a policy is served", Scope.OPEN, ModelReadiness,
                    statuses=ok,
                ),
                Endpoint("GET", f"{model}/config", self._config, "Show the model configuration", view, ModelConfig),
                Endpoint("GET", f"{model}/stats", self._statistics, "Show the statistics of its versions", view, Statistics),
                Endpoint(
                    "POST", f"{model}/infer", self._infer, "Run the policy on observations", Scope.OPERATE, InferResponse,
                    body=InferRequest, reads_body=True, problems=_INFER_PROBLEMS,
                ),
            ]  # fmt: skip
        return [msgspec.structs.replace(row, error=ErrorBody) for row in rows]

    async def close(self) -> None:
        """Ends its sessions with the serving process."""
        for data_path in self._data_paths.values():
            await data_path.close()

    # Reading

    async def _server(self, request: web.Request) -> web.Response:
        return json_response(ServerMetadata("pilliond", pilliond.__version__, _EXTENSIONS))

    async def _live(self, request: web.Request) -> web.Response:
        return json_response(Live(True))

    async def _ready(self, request: web.Request) -> web.Response:
        return json_response(Readiness(self._is_ready), _ready_status(self._is_ready))

    async def _model_ready(self, request: web.Request) -> web.Response:
        channel = self._channel_of(request)
        version = _answering_version(channel, request)
        is_ready = self._is_ready and not channel.why_out(version)
        return json_response(ModelReadiness(version.policy, is_ready), _ready_status(is_ready))

    async def _model(self, request: web.Request) -> web.Response:
        channel = self._channel_of(request)
        version = _answering_version(channel, request)
        spec = version.card.spec()
        return json_response(
            ModelMetadata(
                version.policy,
                [each.version for each in _answering(channel)],
                "onnx_onnxv1",
                metadata_of(spec.observation),
                metadata_of(spec.outputs),
            )
        )

    async def _config(self, request: web.Request) -> web.Response:
        channel = self._channel_of(request)
        version = _answering_version(channel, request)
        spec = version.card.spec()
        inputs, outputs = config_of(spec.observation), config_of(spec.outputs)
        return json_response(
            ModelConfig(version.policy, "onnxruntime_onnx", "onnxruntime", channel.rows_max, inputs, outputs)
        )

    async def _statistics(self, request: web.Request) -> web.Response:
        channel = self._channel_of(request)
        wanted = [_loaded_version(channel, request)] if "version" in request.match_info else channel.version_table
        return json_response(statistics_of(wanted, self._supervisor.page))

    async def _all_statistics(self, request: web.Request) -> web.Response:
        return json_response(statistics_of(self._supervisor.versions(), self._supervisor.page))

    async def _index(self, request: web.Request) -> web.Response:
        await body_of(request, IndexRequest)
        answering = [version for channel in self._supervisor.policies.values() for version in _answering(channel)]
        return json_response(
            [
                IndexEntry(each.policy, each.version, "READY", "" if each in answering else "answers no new episodes")
                for each in self._supervisor.versions()
            ]
        )

    # Inference

    async def _infer(self, request: web.Request) -> web.Response:
        channel = self._channel_of(request)
        _loaded_version(channel, request)
        self._target(channel)
        if self._running >= KSERVE_REQUESTS_MAX:
            raise KServeError(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"expected at most {KSERVE_REQUESTS_MAX} requests at once, got one more",
            )
        self._running += 1
        try:
            specs = [version.card.spec() for version in channel.version_table]
            bytes_max = max(body_bytes_max(spec, channel.rows_max) for spec in specs)
            return await self._answer(channel, request, await read_body(request, bytes_max))
        finally:
            self._running -= 1

    async def _answer(self, channel: PolicyChannel, request: web.Request, body: Body) -> web.Response:
        asked = body.request
        version = self._version_for(channel, request, asked.parameters)
        spec = version.card.spec()
        rows, observation = decode_inputs(asked, body.binary, spec, channel.rows_max)
        wanted = select_outputs(asked, spec)
        named = version if "version" in request.match_info else None
        parameters = asked.parameters
        result = await self._data_paths[channel.name].run(
            Call(
                observation,
                _seeds(channel, parameters, rows, named),
                parameters.deterministic,
                min(parameters.timeout, round(KSERVE_ANSWER_S_MAX * 1e6)),
                named.digest if named else "",
                parameters.sequence_id,
                parameters.sequence_start,
                parameters.sequence_end,
            )
        )
        return _response(channel, asked, wanted, result)

    def _version_for(self, channel: PolicyChannel, request: web.Request, parameters: InferParameters) -> SealedVersion:
        """Returns the version whose tensors a request has: the one that its sequence began with, else the one that it names."""
        if parameters.begins:
            return _answering_version(channel, request)
        digest = self._data_paths[channel.name].digest_of(parameters.sequence_id)
        held = next((each for each in channel.version_table if each.digest == digest), None)
        return _loaded_version(channel, request) if held is None or "version" in request.match_info else held

    # State

    @property
    def _is_ready(self) -> bool:
        return self._supervisor.state is ServingState.SERVING

    def _target(self, channel: PolicyChannel) -> Target:
        """Returns what to connect to for a policy: the lane if there is one. Raises `KServeError` if the daemon is not ready."""
        supervisor = self._supervisor
        if supervisor.ready is None or not supervisor.is_ready:
            phase = supervisor.phase.name.lower()
            raise KServeError(HTTPStatus.SERVICE_UNAVAILABLE, f"the serving process is {phase}, not ready")
        listen = supervisor.ready.listen
        address = next((each for each in listen if each.startswith("lane://")), listen[0])
        return Target(address, channel.name, supervisor.starts, channel.stable.key)

    def _channel_of(self, request: web.Request) -> PolicyChannel:
        """Returns the policy that a request names; raises `KServeError`."""
        asked = request.match_info["model"]
        channel = self._supervisor.policies.get(asked)
        if channel is None:
            served = " or ".join(self._supervisor.policies)
            raise KServeError(HTTPStatus.NOT_FOUND, f"model {_short(asked)}: expected {served}")
        return channel


def _answering(channel: PolicyChannel) -> list[SealedVersion]:
    """Returns the versions that answer new episodes, the stable one first."""
    version_table = channel.version_table
    arms = [version_table.find(arm.digest) for arm in version_table.arms]
    return [version_table.stable, *(version for version in arms if version is not None)]


def _answering_version(channel: PolicyChannel, request: web.Request) -> SealedVersion:
    """Returns the version that a request names, which must answer new episodes; the stable one if it names none."""
    answering = _answering(channel)
    named = request.match_info.get("version")
    version = next((each for each in answering if named in (None, each.version)), None)
    if version is None:
        served = ", ".join(each.version for each in answering)
        raise KServeError(
            HTTPStatus.NOT_FOUND, f"version {_short(named)}: expected one that answers new episodes: {served}"
        )
    return version


def _loaded_version(channel: PolicyChannel, request: web.Request) -> SealedVersion:
    """Returns the version that a request names, which must be loaded; the stable one if it names none."""
    version_table = channel.version_table
    named = request.match_info.get("version", version_table.stable.version)
    version = next((each for each in version_table if each.version == named), None)
    if version is None:
        loaded = ", ".join(each.version for each in version_table)
        raise KServeError(HTTPStatus.NOT_FOUND, f"version {_short(named)}: expected a loaded one: {loaded}")
    return version


def _response(
    channel: PolicyChannel, asked: InferRequest, wanted: list[RequestedOutput], result: Result
) -> web.Response:
    tensors, frames = encode_outputs(result.outputs, wanted, asked.parameters.binary_data_output)
    versions = [_version_of(channel, digest) for digest in result.row_digests]
    differ = len(set(result.row_digests)) > 1
    head = msgspec.json.encode(
        InferResponse(
            channel.stable.policy,
            versions[0],
            tensors,
            InferResponseParameters(result.row_digests[0], ",".join(versions) if differ else ""),
            asked.id,
        )
    )
    if not frames:
        return web.Response(body=head, content_type="application/json")
    return web.Response(
        body=b"".join([head, *frames]),
        content_type="application/octet-stream",
        headers={HEADER_LENGTH: str(len(head))},
    )


def _seeds(channel: PolicyChannel, parameters: InferParameters, rows: int, named: SealedVersion | None) -> list[int]:
    """Returns a seed for each row. A deterministic request without a seed uses the same for all: one version runs them."""
    if parameters.seed is not None:
        return [parameters.seed + row for row in range(rows)]
    count = 1 if parameters.deterministic else rows
    if named is not None and parameters.begins and channel.version_table.arms:
        seeds = _seeds_for(channel, named, count)
    else:
        seeds = [_random_seed() for _ in range(count)]
    return seeds * (rows // count)


def _seeds_for(channel: PolicyChannel, named: SealedVersion, count: int) -> list[int]:
    """Returns seeds that the traffic split maps to a version; raises `KServeError` if its share is too small to find them."""
    salt = salt_of(named.policy)
    found: list[int] = []
    for _ in range(KSERVE_SEEDS_MAX):
        seed = _random_seed()
        if _digest_for(channel, unit_of(salt, seed)) == named.key:
            found.append(seed)
        if len(found) == count:
            return found
    raise KServeError(
        HTTPStatus.NOT_FOUND,
        f"version {named.version} has too small a share of the new episodes for {count} of them",
    )


def _digest_for(channel: PolicyChannel, unit: float) -> bytes:
    """Returns the digest of the version that an episode gets, as `Router` decides."""
    end = 0.0
    for arm in channel.version_table.arms:
        end += arm.share
        if unit < end:
            return arm.digest
    return channel.stable.key


def _version_of(channel: PolicyChannel, digest: str) -> str:
    version = channel.version_table.find(bytes.fromhex(digest.removeprefix("sha256:")))
    return digest if version is None else version.version


def _ready_status(is_ready: bool) -> HTTPStatus:
    return HTTPStatus.OK if is_ready else HTTPStatus.SERVICE_UNAVAILABLE


def _random_seed() -> int:
    return secrets.randbits(_SEED_BITS)


def _short(text: Any) -> str:
    return repr(str(text)[:80])
