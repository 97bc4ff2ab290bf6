"""The types of `/v2`: each has a JSON Schema, and each endpoint names its request and response."""

from __future__ import annotations

from typing import ClassVar, cast

import msgspec

from pilliond.admin.http.endpoints import Scope
from pilliond.admin.kserve.errors import ErrorBody
from pilliond.admin.kserve.routes import KServeRoutes
from pilliond.supervision.supervisor import Supervisor


class NoSupervisor:
    """Everything that the routes use before the first request."""

    policies: ClassVar[dict[str, object]] = {}


def test_every_endpoint_has_types_that_a_schema_describes() -> None:
    endpoints = KServeRoutes(cast(Supervisor, NoSupervisor())).endpoints()
    kinds = [kind for each in endpoints for kind in (each.answer, each.body) if kind is not None]
    assert all(each.answer is not None for each in endpoints)
    assert all((each.body is not None) == (each.method == "POST") for each in endpoints)
    schemas, components = msgspec.json.schema_components([*kinds, ErrorBody])
    assert len(schemas) == len(kinds) + 1
    assert components["InferRequest"]["required"] == ["inputs"]


def test_inference_needs_more_than_view_and_health_needs_no_token() -> None:
    endpoints = KServeRoutes(cast(Supervisor, NoSupervisor())).endpoints()
    scopes = {each.path: each.scope for each in endpoints}
    assert scopes["/v2/models/{model}/infer"] is Scope.OPERATE
    assert {path for path, scope in scopes.items() if scope is Scope.OPEN} == {
        "/v2/health/live",
        "/v2/health/ready",
        "/v2/models/{model}/ready",
        "/v2/models/{model}/versions/{version}/ready",
    }
    assert [each.path for each in endpoints if each.reads_body] == [
        "/v2/models/{model}/infer",
        "/v2/models/{model}/versions/{version}/infer",
    ]
