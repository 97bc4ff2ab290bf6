"""The admin port's `/v1`: which versions there are, which one serves, and the verbs that change it."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Final

import msgspec
from aiohttp import web

from pillion_artifacts import Resolved
from pilliond.admin.http.endpoints import Endpoint, Scope, T, Text, Version, body_of, json_response
from pilliond.admin.http.guard import asked_by
from pilliond.admin.http.problems import ProblemError
from pilliond.admin.v1.policy_state import (
    ArmStatus,
    Draining,
    PolicyList,
    PolicyState,
    Resident,
    ShadowStatus,
    StoredVersion,
    VersionList,
)
from pilliond.errors import SwitchError
from pilliond.ipc import metrics_page
from pilliond.ipc.metrics_page import VERSION_CELLS, Phase
from pilliond.ipc.sealed_version import SealedVersion
from pilliond.limits import ARMS_MAX
from pilliond.rollout.operation import Operation, OperationStatus
from pilliond.rollout.releases import Releases
from pilliond.shadow.report import ShadowReport
from pilliond.supervision.supervisor import Supervisor

_DIGITS_MAX: Final = 18

ArmName = Annotated[
    str,
    msgspec.Meta(max_length=64, pattern=r"^(?!(stable|previous|resident|stored|shadow)$)[A-Za-z0-9][A-Za-z0-9._-]*$"),
]
"""It stands in metrics and tables beside the words for versions that are no arm."""


class Why(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a verb that names no version."""

    reason: Text = ""
    by: Text = ""
    """Who asks, as they say; who they are to the daemon is noted beside it."""


class Which(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a verb that names one: `1.2.3`, a range, an alias or a digest."""

    version: Version
    reason: Text = ""
    by: Text = ""


class WarmupBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a warm-up; without a version it is the stable one."""

    version: Text = ""
    reason: Text = ""
    by: Text = ""


class ArmBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An arm of a route."""

    name: ArmName
    version: Version
    share: Annotated[float, msgspec.Meta(gt=0, le=1)]


class ShadowBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is to be compared with the stable version, on a share of its episodes."""

    version: Version
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
        done = OperationStatus
        return [
            Endpoint("GET", "/v1/policies", self._list, "The policies that are served", view, PolicyList),
            Endpoint(
                "GET", policy, self._policy, "What is stable, loaded, leased and under way", view, PolicyState,
                tagged=True,
            ),
            Endpoint(
                "GET", f"{policy}/versions", self._versions, "The stored versions", view, VersionList,
                problems=(HTTPStatus.UNPROCESSABLE_ENTITY, HTTPStatus.SERVICE_UNAVAILABLE),
            ),
            Endpoint(
                "POST", f"{policy}/stage", self._stage, "Try and load a version", operate, done, Which, begun,
                tagged=True,
            ),
            Endpoint(
                "DELETE", f"{policy}/stage", self._cancel, "Cancel what is being staged", operate, done, Why,
                tagged=True,
            ),
            Endpoint(
                "POST", f"{policy}/switch", self._switch, "Make a version stable", operate, done, Which, begun,
                tagged=True,
            ),
            Endpoint(
                "POST", f"{policy}/rollback", self._roll_back, "Go back", operate, done, Why, begun, tagged=True
            ),
            Endpoint(
                "POST", f"{policy}/warmup", self._warm_up, "Run every bucket once", operate, done, WarmupBody, begun,
                tagged=True,
            ),
            Endpoint(
                "PUT", f"{policy}/route", self._route, "Share out new episodes", operate, done, RouteBody, begun,
                tagged=True,
            ),
            Endpoint(
                "GET", f"{policy}/shadow", self._shadow, "What the shadow would have answered", view, ShadowReport
            ),
            Endpoint("GET", "/v1/operations/{number}", self._operation, "How an operation stands", view, done),
            Endpoint(
                "POST", "/v1/drain", self._drain, "Answer what has arrived, and end", Scope.ADMIN,
                Draining, Why, (HTTPStatus.ACCEPTED,),
            ),
        ]  # fmt: skip

    # Looking

    async def _list(self, request: web.Request) -> web.Response:
        return json_response(PolicyList([self._state()]))

    async def _policy(self, request: web.Request) -> web.Response:
        self.check_policy(request)
        return self._tagged(self._state())

    async def _versions(self, request: web.Request) -> web.Response:
        self.check_policy(request)
        policy = self._supervisor.stable.policy
        entries = [entry for entry in self._releases.store.index().versions() if entry.title == policy]
        aliases = self._releases.store.aliases(policy)
        roles = {version.digest: self._role(version) for version in self._supervisor.version_table}
        shadow = self._releases.shadows.current
        if shadow is not None:
            roles.setdefault(shadow.digest, "shadow")
        stored = [
            StoredVersion(
                version=entry.version,
                digest=entry.digest,
                role=roles.get(entry.digest, "stored"),
                aliases=[alias.alias for alias in aliases if alias.digest == entry.digest],
            )
            for entry in entries
        ]
        return json_response(VersionList(policy, stored))

    async def _shadow(self, request: web.Request) -> web.Response:
        self.check_policy(request)
        report = self._releases.shadows.report()
        if report is None:
            raise ProblemError(HTTPStatus.NOT_FOUND, "shadow-not-found", "nothing has shadowed since the daemon began")
        return json_response(report)

    async def _operation(self, request: web.Request) -> web.Response:
        number = request.match_info["number"]
        is_number = number.isascii() and number.isdecimal() and len(number) <= _DIGITS_MAX
        operation = self._releases.operations.find(int(number)) if is_number else None
        if operation is None:
            raise ProblemError(HTTPStatus.NOT_FOUND, "operation-not-found", f"no operation {number[:20]} is remembered")
        return json_response(operation.status())

    def _state(self) -> PolicyState:
        supervisor, releases = self._supervisor, self._releases
        operation, previous = releases.operations.last, supervisor.version_table.previous
        return PolicyState(
            policy=supervisor.stable.policy,
            phase=supervisor.phase.name.lower(),
            stable=supervisor.stable.version,
            digest=supervisor.stable.digest,
            previous=previous.version if previous else None,
            follows=releases.keeper.alias.name or None,
            sessions=supervisor.page.cells[metrics_page.SESSIONS],
            resident=[self._resident(version) for version in supervisor.version_table],
            route=self._arms(),
            shadow=self._shadow_now(),
            swap_impact=releases.stager.swap_impact,
            operation=operation.status() if operation else None,
        )

    def _arms(self) -> list[ArmStatus]:
        version_table = self._supervisor.version_table
        return [
            ArmStatus(arm.name, version.version, arm.share)
            for arm in version_table.arms
            if (version := version_table.find(arm.digest)) is not None
        ]

    def _shadow_now(self) -> ShadowStatus | None:
        shadow = self._releases.shadows.current
        if shadow is None:
            return None
        state = self._releases.shadows.state(shadow)
        return ShadowStatus(shadow.version, shadow.process.share, shadow.live_version, state)

    def _resident(self, version: SealedVersion) -> Resident:
        return Resident(
            version=version.version,
            digest=version.digest,
            role=self._role(version),
            leases=self._supervisor.page.cells[VERSION_CELLS[version.metrics_index].episodes],
            signed_by=version.signed_by,
            certificate=version.certificate,
        )

    def _role(self, version: SealedVersion) -> str:
        version_table = self._supervisor.version_table
        if version is version_table.stable:
            return "stable"
        arm = next((arm.name for arm in version_table.arms if arm.digest == version.key), None)
        if arm is None and version is version_table.previous:
            return "previous"
        return arm or ("evaluation" if version.key in version_table.held else "resident")

    # Changing

    async def _stage(self, request: web.Request) -> web.Response:
        which, target = await self._which(request)
        return _begun(self._releases.stage(target, asked_by(request, which.by), which.reason))

    async def _switch(self, request: web.Request) -> web.Response:
        which, target = await self._which(request)
        return _begun(self._releases.switch(target, asked_by(request, which.by), which.reason))

    async def _roll_back(self, request: web.Request) -> web.Response:
        why = await self.decided(request, Why)
        return _begun(await self._releases.roll_back(asked_by(request, why.by), why.reason))

    async def _route(self, request: web.Request) -> web.Response:
        body = await self.decided(request, RouteBody)
        targets = [(arm.name, self._releases.resolve(arm.version), arm.share) for arm in body.arms]
        if len({target.digest for _, target, _ in targets}) < len(targets):
            raise ProblemError(HTTPStatus.BAD_REQUEST, "malformed", "arms: expected a version in one arm only")
        shadow = body.shadow
        wish = (self._releases.resolve(shadow.version), shadow.share) if isinstance(shadow, ShadowBody) else shadow
        return _begun(self._releases.route(targets, asked_by(request, body.by), body.reason, wish))

    async def _warm_up(self, request: web.Request) -> web.Response:
        body = await self.decided(request, WarmupBody)
        version_table = self._supervisor.version_table
        target = self._releases.resolve(body.version) if body.version else None
        key = bytes.fromhex(target.digest.removeprefix("sha256:")) if target else version_table.stable.key
        version = version_table.find(key)
        if version is None:
            raise SwitchError(f"{target} is not loaded: expected one that is; stage it first")
        return _begun(self._releases.warm_up(version, asked_by(request, body.by), body.reason))

    async def _cancel(self, request: web.Request) -> web.Response:
        why = await self.decided(request, Why)
        cancelled = await self._releases.operations.cancel(
            f"cancelled by {asked_by(request, why.by)}: {why.reason}".rstrip(": ")
        )
        if cancelled is None:
            raise ProblemError(HTTPStatus.CONFLICT, "nothing-to-cancel", "no version is being staged")
        return json_response(cancelled.status())

    async def _drain(self, request: web.Request) -> web.Response:
        why = await body_of(request, Why)
        stable = self._supervisor.stable
        target = Resolved(stable.policy, stable.version, stable.digest)
        await self._releases.keeper.note("drain", target, "", asked_by(request, why.by), why.reason)
        self._supervisor.stop(f"an operator drains it: {why.reason}" if why.reason else "an operator drains it")
        return json_response(Draining(Phase.DRAINING.name.lower()), HTTPStatus.ACCEPTED)

    async def _which(self, request: web.Request) -> tuple[Which, Resolved]:
        which = await self.decided(request, Which)
        return which, self._releases.resolve(which.version)

    def check_policy(self, request: web.Request) -> None:
        """For what is below a policy; raises `ProblemError` (404)."""
        served, asked = self._supervisor.stable.policy, request.match_info["policy"]
        if asked != served:
            raise ProblemError(HTTPStatus.NOT_FOUND, "policy-not-found", f"expected {served}, got {asked[:128]}")

    async def decided(self, request: web.Request, kind: type[T]) -> T:
        """The body of a verb. The tag is looked at after it: while it is waited for, another may change something."""
        self.check_policy(request)
        body = await body_of(request, kind)
        self._check_tag(request)
        return body

    def _check_tag(self, request: web.Request) -> None:
        asked = ",".join(request.headers.getall("If-Match", ["*"]))
        if not {"*", self._tag()} & {tag.strip() for tag in asked.split(",")}:
            raise ProblemError(
                HTTPStatus.PRECONDITION_FAILED, "changed-meanwhile", f"expected {asked[:80]}, it is {self._tag()} now"
            )

    def _tagged(self, value: PolicyState) -> web.Response:
        response = json_response(value)
        response.headers["ETag"] = self._tag()
        return response

    def _tag(self) -> str:
        return f'"{self._supervisor.stable.digest[7:19]}-{self._releases.operations.revision}"'


def _begun(operation: Operation) -> web.Response:
    status = HTTPStatus.ACCEPTED if operation.outcome == "running" else HTTPStatus.OK
    if operation.outcome == "failed":
        raise ProblemError(HTTPStatus.CONFLICT, "cannot-switch", operation.error)
    response = json_response(operation.status(), status)
    response.headers["Location"] = f"/v1/operations/{operation.number}"
    return response
