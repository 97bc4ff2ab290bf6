"""The description of the admin port: served, kept in the repository, valid, and in line with the documents."""

from __future__ import annotations

import re
import shlex
import subprocess
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest
from aiohttp import web
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from pilliond.admin.http.endpoints import Endpoint, Scope
from pilliond.admin.http.openapi import describe
from tests.docs.pages import REFERENCE, commands, names, rows
from tests.harness import ROOT, START_S_MAX, Daemon

FILE = ROOT / "daemon" / "openapi.json"


def operations(document: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """The description of each method of each path."""
    return {
        (method.upper(), path): described
        for path, methods in document["paths"].items()
        for method, described in methods.items()
    }


@pytest.fixture
def served(daemon: Daemon) -> dict[str, Any]:
    """The description that a daemon serves."""
    status, document, _ = daemon.ask("GET", "/openapi.json")
    assert status == HTTPStatus.OK
    return document


def test_the_description_is_valid_openapi(served: dict[str, Any]) -> None:
    assert served["openapi"].startswith("3.1.")
    OpenAPIV31SpecValidator(served).validate()


def test_the_file_in_the_repository_is_what_the_command_of_the_reference_makes(daemon: Daemon, tmp_path: Path) -> None:
    (command,) = [command for command in commands(REFERENCE) if command.endswith("-o daemon/openapi.json")]
    made = tmp_path / "openapi.json"
    words = command.replace("http://127.0.0.1:9475", daemon.tcp_admin).replace("daemon/openapi.json", str(made))
    subprocess.run(shlex.split(words), timeout=START_S_MAX, check=True)
    assert FILE.read_text() == made.read_text(), f"an endpoint has changed: {command}"


def test_the_reference_has_a_row_for_each_endpoint(served: dict[str, Any]) -> None:
    requests = [name for row in rows(REFERENCE.read_text()) for name in names(row[0])]
    listed = [found for text in requests if (found := re.match(r"(?:(GET|POST|PUT|DELETE) )?(/[^? ]*)", text))]
    assert sorted((found[1] or "GET", found[2]) for found in listed) == sorted(operations(served))


def test_every_endpoint_describes_its_answers_and_its_scope(served: dict[str, Any]) -> None:
    for (method, path), described in operations(served).items():
        statuses = set(described["responses"])
        assert statuses & {"200", "201", "202", "204"}, path
        if re.search(r"/(livez|readyz|live|ready)$", path):
            assert described["security"] == []
        else:
            token, nothing = described["security"]
            (scope,) = token["bearer"]
            assert nothing == {}
            assert scope in ("view", "operate", "admin")
            assert method != "GET" or scope == "view", path
            assert {"401", "403", "429"} <= statuses


def test_every_answer_matches_the_description(daemon: Daemon, served: dict[str, Any]) -> None:
    policy = daemon.ask("GET", "/v1/policies")[1]["policies"][0]["policy"]
    asked = 0
    for (method, path), described in operations(served).items():
        done = described["responses"].get("200", {})
        known = path.replace("{policy}", policy)
        is_there = "{" not in known and not known.endswith("/shadow")
        if method == "GET" and is_there and "application/json" in done.get("content", {}):
            status, answer, headers = daemon.ask(method, known)
            assert (status, headers["Content-Type"].partition(";")[0]) == (HTTPStatus.OK, "application/json")
            assert set(done.get("headers", {})) <= set(headers), path
            schema = {**done["content"]["application/json"]["schema"], "components": served["components"]}
            OAS31Validator(schema).validate(answer)
            asked += 1
    assert asked >= 6


# What comes of a row


class Asked(msgspec.Struct):
    """A body."""

    name: str


class Page(msgspec.Struct):
    """A query."""

    after: int
    limit: Annotated[int, msgspec.Meta(ge=1, le=10)] = 5


class Greeting(msgspec.Struct):
    """An answer."""

    text: str


class Wrong(msgspec.Struct):
    """An error of another kind."""

    error: str


async def handler(request: web.Request) -> web.Response:
    raise NotImplementedError


def test_a_row_of_the_table_describes_an_endpoint_completely() -> None:
    row = Endpoint(
        "POST", "/v2/models/{model}/infer", handler, "Infer", Scope.OPERATE, Greeting, Asked,
        problems=(HTTPStatus.GATEWAY_TIMEOUT,), error=Wrong,
    )  # fmt: skip
    document = describe([row])
    OpenAPIV31SpecValidator(document).validate()
    described = document["paths"]["/v2/models/{model}/infer"]["post"]
    assert described["operationId"] == "post_v2_models_model_infer"
    assert [parameter["name"] for parameter in described["parameters"]] == ["model"]
    assert described["requestBody"]["required"]
    assert described["security"] == [{"bearer": ["operate"]}, {}]
    greeting = {"application/json": {"schema": {"$ref": "#/components/schemas/Greeting"}}}
    wrong = {"application/json": {"schema": {"$ref": "#/components/schemas/Wrong"}}}
    assert described["responses"]["200"]["content"] == greeting
    assert described["responses"]["504"]["content"] == described["responses"]["404"]["content"] == wrong
    assert set(document["components"]["schemas"]) == {"Asked", "Greeting", "Wrong"}


def test_a_tagged_row_returns_an_etag_and_accepts_if_match() -> None:
    path = "/v1/things/{thing}"
    rows = [
        Endpoint("GET", path, handler, "Look", Scope.VIEW, Greeting, tagged=True),
        Endpoint("PUT", path, handler, "Set", Scope.OPERATE, Greeting, Asked, tagged=True),
    ]
    look, put = (describe(rows)["paths"][path][method] for method in ("get", "put"))
    assert "ETag" in look["responses"]["200"]["headers"]
    assert "412" not in look["responses"]
    assert [parameter["name"] for parameter in put["parameters"]] == ["thing", "If-Match"]
    assert "412" in put["responses"]


def test_a_text_endpoint_describes_its_media_types() -> None:
    row = Endpoint("GET", "/metrics", handler, "Figures", Scope.OPEN, media_types=("text/plain", "text/csv"))
    described = describe([row])["paths"]["/metrics"]["get"]
    assert set(described["responses"]["200"]["content"]) == {"text/plain", "text/csv"}
    assert described["security"] == []


def test_each_field_of_a_query_is_a_parameter_and_a_created_thing_has_a_location() -> None:
    row = Endpoint(
        "POST", "/v1/things", handler, "Make", Scope.OPERATE, Greeting, statuses=(HTTPStatus.CREATED,), query=Page
    )
    document = describe([row])
    OpenAPIV31SpecValidator(document).validate()
    described = document["paths"]["/v1/things"]["post"]
    after, limit = described["parameters"]
    assert (after["name"], after["in"], after["required"]) == ("after", "query", True)
    assert (limit["name"], limit["required"], limit["schema"]["maximum"]) == ("limit", False, 10)
    assert "Location" in described["responses"]["201"]["headers"]
    assert "Page" not in document["components"]["schemas"]
