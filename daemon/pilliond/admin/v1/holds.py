"""`/v1/policies/{policy}/holds`: the evaluation holds, which keep versions loaded for campaigns."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated

import msgspec
from aiohttp import web

from pillion_artifacts.store.evaluation_holds import EvaluationHold
from pilliond.admin.http.endpoints import Endpoint, Scope, Text, Version, json_response
from pilliond.admin.http.guard import asked_by
from pilliond.admin.http.problems import ProblemError
from pilliond.admin.v1.policies import PolicyRoutes, ReasonBody
from pilliond.limits import EVALUATION_S_MAX
from pilliond.rollout.evaluation_holds import EvaluationHolds
from pilliond.rollout.operation import Operation

HoldName = Annotated[str, msgspec.Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
"""The name of a hold, chosen by its campaign."""


class HoldBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which version to hold, for which campaign and for how long."""

    name: HoldName
    version: Version
    """`1.2.3`, a range, an alias or a digest."""
    ttl_s: Annotated[float, msgspec.Meta(gt=0, le=EVALUATION_S_MAX)]
    reason: Text = ""
    by: Text = ""


class HoldStatus(EvaluationHold, frozen=True, kw_only=True):
    """An evaluation hold, and whether its version is loaded."""

    reason: str
    is_held: bool
    """Whether the version is loaded and held, so that sessions of the campaign can get it."""
    operation: int | None = None
    """The operation that loads the version, if this request began one."""


class HoldList(msgspec.Struct, frozen=True):
    """The evaluation holds of a policy."""

    policy: str
    holds: list[HoldStatus]


class HoldRoutes:
    """The handlers below `/v1/policies/{policy}/holds`."""

    def __init__(self, policies: PolicyRoutes) -> None:
        self._policies = policies

    def endpoints(self) -> list[Endpoint]:
        """Returns its rows of the table."""
        path = "/v1/policies/{policy}/holds"
        return [
            Endpoint("GET", path, self._list, "List the evaluation holds", Scope.VIEW, HoldList),
            Endpoint(
                "POST", path, self._add, "Hold a version for a campaign", Scope.OPERATE,
                HoldStatus, HoldBody, (HTTPStatus.CREATED,), tagged=True,
            ),
            Endpoint(
                "DELETE", f"{path}/{{name}}", self._end, "End a hold", Scope.OPERATE, HoldStatus, ReasonBody, tagged=True
            ),
        ]  # fmt: skip

    async def _list(self, request: web.Request) -> web.Response:
        evaluations = self._policies.policy_of(request).evaluations
        holds = [_status(evaluations, hold) for hold in evaluations.holds()]
        return json_response(HoldList(request.match_info["policy"], holds))

    async def _add(self, request: web.Request) -> web.Response:
        body = await self._policies.verb_body(request, HoldBody)
        policy = self._policies.policy_of(request)
        target = policy.releases.resolve(body.version)
        by = asked_by(request, body.by)
        hold, operation = await policy.evaluations.add(target, body.name, body.ttl_s, by, body.reason)
        response = json_response(_status(policy.evaluations, hold, operation), HTTPStatus.CREATED)
        response.headers["Location"] = f"{request.path}/{hold.name}"
        return response

    async def _end(self, request: web.Request) -> web.Response:
        why = await self._policies.verb_body(request, ReasonBody)
        name = request.match_info["name"]
        evaluations = self._policies.policy_of(request).evaluations
        if evaluations.find(name) is None:
            raise ProblemError(HTTPStatus.NOT_FOUND, "hold-not-found", f"there is no evaluation hold {name[:64]!r}")
        ended = await evaluations.end(name, asked_by(request, why.by), why.reason)
        return json_response(_status(evaluations, ended))


def _status(evaluations: EvaluationHolds, hold: EvaluationHold, operation: Operation | None = None) -> HoldStatus:
    number = operation.number if operation else None
    return HoldStatus(**msgspec.structs.asdict(hold), is_held=evaluations.is_held(hold), operation=number)
