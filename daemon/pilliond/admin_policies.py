"""The admin port's `/v1`: which versions there are, which one serves, and the verbs that change it."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Any

import msgspec
from aiohttp import web

from pillion_artifacts import Resolved
from pillion_artifacts.store import who
from pilliond import metrics_page
from pilliond.endpoints import Endpoint, Scope, Text, body_of, json_response
from pilliond.limits import ARMS_MAX
from pilliond.metrics_page import PLACES, Phase
from pilliond.operation import Operation
from pilliond.problems import ProblemError
from pilliond.releases import Releases
from pilliond.sealed_version import SealedVersion
from pilliond.shadow_report import ShadowReport
from pilliond.supervisor import Supervisor


class Why(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a verb that names no version."""

    reason: Text = ""
    by: Text = ""
    """Who asks; empty: the user that the daemon runs as."""


class Which(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a verb that names one: `1.2.3`, a range, an alias or a digest."""

    version: Text
    reason: Text = ""
    by: Text = ""


class ArmBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An arm of a route."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    version: Text
    share: Annotated[float, msgspec.Meta(gt=0, le=1)]


class ShadowBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is to be compared with the stable version, on a share of its episodes."""

    version: Text
    share: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0


class RouteBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who gets which share of new episodes; the stable version gets the rest."""

    arms: Annotated[list[ArmBody], msgspec.Meta(max_length=ARMS_MAX)]
    shadow: ShadowBody | msgspec.UnsetType | None = msgspec.UNSET
    """None: none; without it what shadows now goes on."""
    reason: Text = ""
    by: Text = ""

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        if len(set(names)) < len(names) or sum(arm.share for arm in self.arms) > 1 + 1e-9:
            raise ValueError("expected arms of different names whose shares make at most 1")


class PolicyRoutes:
    """The handlers below `/v1`. Every verb answers with the operation that it began; the reader follows it there."""

    def __init__(self, supervisor: Supervisor, releases: Releases) -> None:
        self._supervisor = supervisor
        self._releases = releases

    def endpoints(self) -> list[Endpoint]:
        """What is served."""
        policy = "/v1/policies/{policy}"
        begun = (HTTPStatus.ACCEPTED, HTTPStatus.OK)
        view, operate = Scope.VIEW, Scope.OPERATE
        return [
            Endpoint("GET", "/v1/policies", self._list, "The policies that are served", view),
            Endpoint("GET", policy, self._policy, "What is stable, loaded, leased and under way", view),
            Endpoint("GET", f"{policy}/versions", self._versions, "The stored versions", view),
            Endpoint(
                "POST", f"{policy}/stage", self._stage, "Try and load a version", operate, body=Which, statuses=begun
            ),
            Endpoint("DELETE", f"{policy}/stage", self._cancel, "Cancel what is being staged", operate, body=Why),
            Endpoint(
                "POST", f"{policy}/switch", self._switch, "Make a version stable", operate, body=Which, statuses=begun
            ),
            Endpoint(
                "POST", f"{policy}/rollback", self._roll_back, "Go back", operate, body=Why, statuses=begun
            ),
            Endpoint(
                "PUT", f"{policy}/route", self._route, "Share out new episodes", operate, body=RouteBody, statuses=begun
            ),
            Endpoint(
                "GET", f"{policy}/shadow", self._shadow, "What the shadow would have answered", view, answer=ShadowReport
            ),
            Endpoint("GET", "/v1/operations/{number}", self._operation, "How an operation stands", view),
            Endpoint(
                "POST", "/v1/drain", self._drain, "Answer what has arrived, and end", Scope.ADMIN,
                body=Why, statuses=(HTTPStatus.ACCEPTED,),
            ),
        ]  # fmt: skip

    # Looking

    async def _list(self, request: web.Request) -> web.Response:
        return json_response({"policies": [self._state()]})

    async def _policy(self, request: web.Request) -> web.Response:
        self._check_policy(request)
        return self._tagged(self._state())

    async def _versions(self, request: web.Request) -> web.Response:
        self._check_policy(request)
        policy = self._supervisor.stable.policy
        entries = [entry for entry in self._releases.store.index().versions() if entry.title == policy]
        aliases = self._releases.store.aliases(policy)
        roles = {version.digest: self._role(version) for version in self._supervisor.residents}
        shadow = self._releases.shadows.current
        if shadow is not None:
            roles.setdefault(shadow.digest, "shadow")
        stored = [
            {
                "version": entry.version,
                "digest": entry.digest,
                "role": roles.get(entry.digest, "stored"),
                "aliases": [alias.alias for alias in aliases if alias.digest == entry.digest],
            }
            for entry in entries
        ]
        return json_response({"policy": policy, "versions": stored})

    async def _shadow(self, request: web.Request) -> web.Response:
        self._check_policy(request)
        report = self._releases.shadows.report()
        if report is None:
            raise ProblemError(HTTPStatus.NOT_FOUND, "shadow-not-found", "nothing has shadowed since the daemon began")
        return json_response(report)

    async def _operation(self, request: web.Request) -> web.Response:
        number = request.match_info["number"]
        operation = self._releases.find(int(number)) if number.isascii() and number.isdecimal() else None
        if operation is None:
            raise ProblemError(HTTPStatus.NOT_FOUND, "operation-not-found", f"no operation {number[:20]} is remembered")
        return json_response(_told(operation))

    def _state(self) -> dict[str, Any]:
        supervisor, releases = self._supervisor, self._releases
        operations = releases.operations
        return {
            "policy": supervisor.stable.policy,
            "phase": supervisor.phase.name.lower(),
            "stable": supervisor.stable.version,
            "digest": supervisor.stable.digest,
            "previous": supervisor.residents.previous.version if supervisor.residents.previous else None,
            "follows": releases.followed or None,
            "sessions": supervisor.page.cells[metrics_page.SESSIONS],
            "resident": [self._resident(version) for version in supervisor.residents],
            "route": self._arms(),
            "shadow": self._shadow_now(),
            "swap_impact": releases.stager.swap_impact,
            "operation": _told(operations[-1]) if operations else None,
        }

    def _arms(self) -> list[dict[str, Any]]:
        residents = self._supervisor.residents
        return [
            {"name": arm.name, "version": version.version, "share": arm.share}
            for arm in residents.arms
            if (version := residents.find(arm.digest)) is not None
        ]

    def _shadow_now(self) -> dict[str, Any] | None:
        shadow = self._releases.shadows.current
        if shadow is None:
            return None
        state = self._releases.shadows.state(shadow)
        return {"version": shadow.version, "share": shadow.process.share, "live": shadow.live_version, "state": state}

    def _resident(self, version: SealedVersion) -> dict[str, Any]:
        certificate = version.certificate
        return {
            "version": version.version,
            "digest": version.digest,
            "role": self._role(version),
            "leases": self._supervisor.page.cells[PLACES[version.place].episodes],
            "signed_by": version.signed_by,
            "certificate": None if certificate is None else msgspec.to_builtins(certificate),
        }

    def _role(self, version: SealedVersion) -> str:
        residents = self._supervisor.residents
        if version is residents.stable:
            return "stable"
        arm = next((arm.name for arm in residents.arms if arm.digest == version.key), None)
        return arm or ("previous" if version is residents.previous else "resident")

    # Changing

    async def _stage(self, request: web.Request) -> web.Response:
        which, target = await self._which(request)
        return _begun(self._releases.stage(target, which.by or who(), which.reason))

    async def _switch(self, request: web.Request) -> web.Response:
        which, target = await self._which(request)
        return _begun(self._releases.switch(target, which.by or who(), which.reason))

    async def _roll_back(self, request: web.Request) -> web.Response:
        self._check_change(request)
        why = await body_of(request, Why)
        return _begun(await self._releases.roll_back(why.by or who(), why.reason))

    async def _route(self, request: web.Request) -> web.Response:
        self._check_change(request)
        body = await body_of(request, RouteBody)
        targets = [(arm.name, self._releases.resolve(arm.version), arm.share) for arm in body.arms]
        if len({target.digest for _, target, _ in targets}) < len(targets):
            raise ProblemError(HTTPStatus.BAD_REQUEST, "malformed", "arms: expected a version in one arm only")
        shadow = body.shadow
        wish = (self._releases.resolve(shadow.version), shadow.share) if isinstance(shadow, ShadowBody) else shadow
        return _begun(self._releases.route(targets, body.by or who(), body.reason, wish))

    async def _cancel(self, request: web.Request) -> web.Response:
        self._check_change(request)
        why = await body_of(request, Why)
        cancelled = await self._releases.cancel(f"cancelled by {why.by or who()}: {why.reason}".rstrip(": "))
        if cancelled is None:
            raise ProblemError(HTTPStatus.CONFLICT, "nothing-to-cancel", "no version is being staged")
        return json_response(_told(cancelled))

    async def _drain(self, request: web.Request) -> web.Response:
        why = await body_of(request, Why)
        stable = self._supervisor.stable
        target = Resolved(stable.policy, stable.version, stable.digest)
        await self._releases.note("drain", target, "", why.by or who(), why.reason)
        self._supervisor.stop(f"an operator drains it: {why.reason}" if why.reason else "an operator drains it")
        return json_response({"phase": Phase.DRAINING.name.lower()}, HTTPStatus.ACCEPTED)

    async def _which(self, request: web.Request) -> tuple[Which, Resolved]:
        self._check_change(request)
        which = await body_of(request, Which)
        return which, self._releases.resolve(which.version)

    def _check_policy(self, request: web.Request) -> None:
        served, asked = self._supervisor.stable.policy, request.match_info["policy"]
        if asked != served:
            raise ProblemError(HTTPStatus.NOT_FOUND, "policy-not-found", f"expected {served}, came {asked[:128]}")

    def _check_change(self, request: web.Request) -> None:
        self._check_policy(request)
        asked = request.headers.get("If-Match", "*")
        if asked not in ("*", self._tag()):
            raise ProblemError(
                HTTPStatus.PRECONDITION_FAILED, "changed-meanwhile", f"expected {asked[:80]}, it is {self._tag()} now"
            )

    def _tagged(self, value: dict[str, Any]) -> web.Response:
        response = json_response(value)
        response.headers["ETag"] = self._tag()
        return response

    def _tag(self) -> str:
        return f'"{self._supervisor.stable.digest[7:19]}-{self._releases.revision}"'


def _told(operation: Operation) -> dict[str, Any]:
    told: dict[str, Any] = msgspec.to_builtins(operation)
    del told["began_ns"]
    return told


def _begun(operation: Operation) -> web.Response:
    status = HTTPStatus.ACCEPTED if operation.outcome == "running" else HTTPStatus.OK
    if operation.outcome == "failed":
        raise ProblemError(HTTPStatus.CONFLICT, "cannot-switch", operation.error)
    response = json_response(_told(operation), status)
    response.headers["Location"] = f"/v1/operations/{operation.number}"
    return response
