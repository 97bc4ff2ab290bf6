"""The description of the admin port: OpenAPI 3.1, made of the endpoint table and the types that it names, and of nothing else."""

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
"""Parameters of paths that are whole numbers; all others are words."""

_MEANINGS: Final = {
    HTTPStatus.BAD_REQUEST: "The request cannot be read: its head, or its body against the schema.",
    HTTPStatus.UNAUTHORIZED: "A token is needed, and none came, or one that nobody has.",
    HTTPStatus.FORBIDDEN: "The token's scope is below the one that is needed.",
    HTTPStatus.NOT_FOUND: "What the path or the body names is not there.",
    HTTPStatus.REQUEST_TIMEOUT: "The body was too slow to come.",
    HTTPStatus.CONFLICT: "It cannot be done as things stand: another operation is under way, or there is nothing to do it to.",
    HTTPStatus.GONE: "The sequence, or the version that it holds, is gone.",
    HTTPStatus.PRECONDITION_FAILED: "Something has changed since the `ETag` in `If-Match`.",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "The body is too long.",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "The body says that it is not JSON, or is compressed.",
    HTTPStatus.UNPROCESSABLE_ENTITY: "The version is damaged, not signed as it must be, or cannot have that name.",
    HTTPStatus.TOO_MANY_REQUESTS: "Too many tokens that nobody has came from there.",
    HTTPStatus.INTERNAL_SERVER_ERROR: "The policy gave what JSON cannot say, or has failed.",
    HTTPStatus.SERVICE_UNAVAILABLE: "The daemon is not ready, or cannot read its store.",
    HTTPStatus.GATEWAY_TIMEOUT: "The budget was spent.",
}


def describe(endpoints: Sequence[Endpoint]) -> Tree:
    """The OpenAPI document of these endpoints, as JSON has it."""
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
            "summary": "Which policy versions serve, and the verbs that change it.",
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
    """The schema of each type that the endpoints name, and the components that these refer to."""
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
        "description": f"A token has one of these scopes; each holds those before it: {scopes}. "
        "A daemon that only its own host can reach may have no tokens, and asks for none then.",
    }


def _identity(endpoint: Endpoint) -> str:
    return "_".join(re.findall(r"\w+", f"{endpoint.method.lower()} {endpoint.path}"))


def _operation(endpoint: Endpoint, schemas: dict[Any, Tree]) -> Tree:
    told: Tree = {"operationId": _identity(endpoint), "summary": endpoint.summary}
    if endpoint.scope is Scope.OPEN:
        told["security"] = []
    else:
        scope = endpoint.scope.name.lower()
        told |= {"description": f"Needs the scope `{scope}`.", "security": [{"bearer": [scope]}, {}]}
    if parameters := _parameters(endpoint):
        told["parameters"] = parameters
    if endpoint.body is not None:
        is_needed = any(field.required for field in msgspec.structs.fields(endpoint.body))
        told["requestBody"] = {"required": is_needed, "content": {_JSON: {"schema": schemas[endpoint.body]}}}
    told["responses"] = _responses(endpoint, schemas)
    return told


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
                "description": "The `ETag` that this was decided by, or `*`.",
                "schema": {"type": "string"},
            }
        )
    return parameters


def _query(kind: type[msgspec.Struct]) -> list[Tree]:
    _, components = msgspec.json.schema_components([kind])
    schema = canonical(components[kind.__name__])
    return [
        {"name": name, "in": "query", "required": name in schema["required"], "schema": told}
        for name, told in schema["properties"].items()
    ]


def takes_tag(endpoint: Endpoint) -> bool:
    """Whether it is refused where the state has changed since it was looked at."""
    return endpoint.tagged and endpoint.method != "GET"


def refusals(endpoint: Endpoint) -> list[HTTPStatus]:
    """The statuses of its problems: what its row says of itself, and those in `Endpoint.problems`."""
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
    told: Tree = {"description": status.phrase, "content": content}
    if headers := _headers(endpoint):
        told["headers"] = headers
    return told


def _link(endpoints: Sequence[Endpoint], paths: dict[str, Tree]) -> None:
    """Says of each answer that is an operation under way where that can be looked at."""
    looks = [each for each in endpoints if each.method == "GET" and each.answer is OperationStatus]
    for endpoint in endpoints:
        if looks and _begins(endpoint):
            link = {"operationId": _identity(looks[0]), "parameters": {"number": "$response.body#/number"}}
            for status in endpoint.statuses:
                told = paths[endpoint.path][endpoint.method.lower()]["responses"][str(int(status))]
                told["links"] = {"operation": link}


def _begins(endpoint: Endpoint) -> bool:
    return endpoint.answer is OperationStatus and HTTPStatus.ACCEPTED in endpoint.statuses


def _headers(endpoint: Endpoint) -> Tree:
    if endpoint.method == "GET":
        return {"ETag": _header("What is so now; for `If-Match`.")} if endpoint.tagged else {}
    if _begins(endpoint) or HTTPStatus.CREATED in endpoint.statuses:
        return {"Location": _header("Where the operation can be followed, or what was made can be found.")}
    return {}


def _header(description: str, is_sure: bool = True) -> Tree:
    return {"description": description, "required": is_sure, "schema": {"type": "string"}}


def _name(status: HTTPStatus) -> str:
    return status.name.title().replace("_", "")


def _refusal(status: HTTPStatus, error: type[msgspec.Struct], schemas: dict[Any, Tree]) -> Tree:
    media_type = PROBLEM_TYPE if error is Problem else _JSON
    told: Tree = {
        "description": _MEANINGS.get(status, status.phrase),
        "content": {media_type: {"schema": schemas[error]}},
    }
    if status is HTTPStatus.UNAUTHORIZED:
        told["headers"] = {"WWW-Authenticate": _header("Which token is needed.", is_sure=False)}
    return told
