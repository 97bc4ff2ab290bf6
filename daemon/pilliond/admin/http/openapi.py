"""The OpenAPI 3.1 description of the admin port, made only of the endpoint table and the types that it names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from http import HTTPStatus
from typing import Any, Final

import msgspec

import pilliond
from pillion_artifacts.json_schema import canonical
from pilliond.admin.http.endpoints import Endpoint, Scope
from pilliond.admin.http.problems import TYPE as PROBLEM_TYPE
from pilliond.admin.http.problems import Problem
from pilliond.rollout.operation import OperationStatus

Tree = dict[str, Any]

_JSON: Final = "application/json"
_INTEGERS: Final = {"number"}
"""Path parameters that are integers; all others are strings."""

_MEANINGS: Final = {
    HTTPStatus.BAD_REQUEST: "The request is malformed, or its body does not match the schema.",
    HTTPStatus.UNAUTHORIZED: "The request needs a token and has none, or an unknown or expired one.",
    HTTPStatus.FORBIDDEN: "The caller may not do this: the token has too small a scope, or the user, host or origin is not allowed.",
    HTTPStatus.NOT_FOUND: "The path or the body names something that does not exist.",
    HTTPStatus.REQUEST_TIMEOUT: "The body took too long to arrive.",
    HTTPStatus.CONFLICT: "The current state does not allow it: another operation is running, or there is nothing to act on.",
    HTTPStatus.GONE: "The sequence, or the version that it holds, no longer exists.",
    HTTPStatus.PRECONDITION_FAILED: "The state changed since the `ETag` in `If-Match`.",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "The body is too large.",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "The body is declared as something other than JSON, or its encoding is not supported.",
    HTTPStatus.UNPROCESSABLE_ENTITY: "The version is damaged, not signed as required, or cannot have that name.",
    HTTPStatus.TOO_MANY_REQUESTS: "Too many requests of this peer were refused.",
    HTTPStatus.INTERNAL_SERVER_ERROR: "The policy failed, or returned a number that JSON cannot represent.",
    HTTPStatus.SERVICE_UNAVAILABLE: "The daemon is not ready, or cannot read its store.",
    HTTPStatus.GATEWAY_TIMEOUT: "The time budget ran out.",
}


def describe(endpoints: Sequence[Endpoint]) -> Tree:
    """Returns the OpenAPI document of these endpoints, as a JSON value."""
    schemas, components = _schemas(endpoints)
    statuses = {status for endpoint in endpoints if endpoint.error is Problem for status in refusals(endpoint)}
    paths: dict[str, Tree] = {}
    for endpoint in endpoints:
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint, schemas)
    _link(endpoints, paths)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Pillion's admin port",
            "version": pilliond.__version__,
            "summary": "Inspect a running daemon, and change which policy versions it serves.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": components,
            "responses": {_name(status): _refusal(status, Problem, schemas) for status in sorted(statuses)},
            "securitySchemes": {"bearer": _bearer()},
        },
    }


def _schemas(endpoints: Iterable[Endpoint]) -> tuple[dict[Any, Tree], Tree]:
    """Returns the schema of each type that the endpoints name, and the components that these schemas refer to."""
    named = [kind for endpoint in endpoints for kind in (endpoint.answer, endpoint.body, endpoint.error)]
    kinds = [kind for kind in dict.fromkeys(named) if kind is not None]
    made = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    schemas, components = canonical(list(made))
    return dict(zip(kinds, schemas, strict=True)), dict(sorted(components.items()))


def _bearer() -> Tree:
    scopes = ", ".join(scope.name.lower() for scope in Scope if scope is not Scope.OPEN)
    return {
        "type": "http",
        "scheme": "bearer",
        "description": f"A token has one of these scopes, and each scope includes those before it: {scopes}. "
        "A daemon without a tokens file is reachable only from its own host: there every caller may read over TCP, and "
        "none may change anything.",
    }


def _identity(endpoint: Endpoint) -> str:
    return "_".join(re.findall(r"\w+", f"{endpoint.method.lower()} {endpoint.path}"))


def _operation(endpoint: Endpoint, schemas: dict[Any, Tree]) -> Tree:
    described: Tree = {"operationId": _identity(endpoint), "summary": endpoint.summary}
    if endpoint.scope is Scope.OPEN:
        described["security"] = []
    else:
        scope = endpoint.scope.name.lower()
        described |= {"description": f"Needs the scope `{scope}`.", "security": [{"bearer": [scope]}, {}]}
    if parameters := _parameters(endpoint):
        described["parameters"] = parameters
    if endpoint.body is not None:
        is_required = any(field.required for field in msgspec.structs.fields(endpoint.body))
        described["requestBody"] = {"required": is_required, "content": {_JSON: {"schema": schemas[endpoint.body]}}}
    described["responses"] = _responses(endpoint, schemas)
    return described


def _responses(endpoint: Endpoint, schemas: dict[Any, Tree]) -> Tree:
    responses = {status: _answer(endpoint, status, schemas) for status in endpoint.statuses}
    for status in refusals(endpoint):
        if endpoint.error is Problem:
            responses[status] = {"$ref": f"#/components/responses/{_name(status)}"}
        else:
            responses[status] = _refusal(status, endpoint.error, schemas)
    return {str(int(status)): responses[status] for status in sorted(responses)}


def _parameters(endpoint: Endpoint) -> list[Tree]:
    parameters: list[Tree] = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": {"type": "integer", "minimum": 1} if name in _INTEGERS else {"type": "string", "minLength": 1},
        }
        for name in re.findall(r"\{(\w+)", endpoint.path)
    ]
    if endpoint.query is not None:
        parameters += _query(endpoint.query)
    if takes_tag(endpoint):
        parameters.append(
            {
                "name": "If-Match",
                "in": "header",
                "description": "The `ETag` of the state that the request is based on, or `*`.",
                "schema": {"type": "string"},
            }
        )
    return parameters


def _query(kind: type[msgspec.Struct]) -> list[Tree]:
    _, components = msgspec.json.schema_components([kind])
    schema = canonical(components[kind.__name__])
    return [
        {"name": name, "in": "query", "required": name in schema["required"], "schema": field}
        for name, field in schema["properties"].items()
    ]


def takes_tag(endpoint: Endpoint) -> bool:
    """Returns whether it accepts `If-Match`, and fails if the state has changed."""
    return endpoint.tagged and endpoint.method != "GET"


def refusals(endpoint: Endpoint) -> list[HTTPStatus]:
    """Returns the statuses of its errors: those that follow from its row, and those in `Endpoint.problems`."""
    found = {HTTPStatus.BAD_REQUEST, *endpoint.problems}
    if endpoint.scope is not Scope.OPEN:
        found |= {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.TOO_MANY_REQUESTS}
    if "{" in endpoint.path:
        found.add(HTTPStatus.NOT_FOUND)
    if endpoint.body is not None:
        found |= {
            HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        }  # fmt: skip
    if endpoint.scope >= Scope.OPERATE:
        found |= {HTTPStatus.CONFLICT, HTTPStatus.UNPROCESSABLE_ENTITY, HTTPStatus.SERVICE_UNAVAILABLE}
    if takes_tag(endpoint):
        found.add(HTTPStatus.PRECONDITION_FAILED)
    return sorted(found - set(endpoint.statuses))


def _answer(endpoint: Endpoint, status: HTTPStatus, schemas: dict[Any, Tree]) -> Tree:
    if endpoint.answer is None:
        content: Tree = {kind: {"schema": {"type": "string"}} for kind in endpoint.media_types}
    else:
        content = {_JSON: {"schema": schemas[endpoint.answer]}}
    described: Tree = {"description": status.phrase, "content": content}
    if headers := _headers(endpoint):
        described["headers"] = headers
    return described


def _link(endpoints: Sequence[Endpoint], paths: dict[str, Tree]) -> None:
    """Links each response that is a running operation to the endpoint that shows it."""
    readers = [each for each in endpoints if each.method == "GET" and each.answer is OperationStatus]
    for endpoint in endpoints:
        if readers and _begins(endpoint):
            link = {"operationId": _identity(readers[0]), "parameters": {"number": "$response.body#/number"}}
            for status in endpoint.statuses:
                response = paths[endpoint.path][endpoint.method.lower()]["responses"][str(int(status))]
                response["links"] = {"operation": link}


def _begins(endpoint: Endpoint) -> bool:
    return endpoint.answer is OperationStatus and HTTPStatus.ACCEPTED in endpoint.statuses


def _headers(endpoint: Endpoint) -> Tree:
    if endpoint.method == "GET":
        return {"ETag": _header("The current state, for `If-Match`.")} if endpoint.tagged else {}
    if _begins(endpoint) or HTTPStatus.CREATED in endpoint.statuses:
        return {"Location": _header("The path of the running operation, or of what was created.")}
    return {}


def _header(description: str, is_required: bool = True) -> Tree:
    return {"description": description, "required": is_required, "schema": {"type": "string"}}


def _name(status: HTTPStatus) -> str:
    return status.name.title().replace("_", "")


def _refusal(status: HTTPStatus, error: type[msgspec.Struct], schemas: dict[Any, Tree]) -> Tree:
    media_type = PROBLEM_TYPE if error is Problem else _JSON
    described: Tree = {
        "description": _MEANINGS.get(status, status.phrase),
        "content": {media_type: {"schema": schemas[error]}},
    }
    if status is HTTPStatus.UNAUTHORIZED:
        described["headers"] = {"WWW-Authenticate": _header("The required token.", is_required=False)}
    return described
