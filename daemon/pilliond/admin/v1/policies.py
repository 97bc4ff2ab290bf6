"""`/v1/policies`, `/v1/operations` and `/v1/drain`: the versions of a policy, and the verbs that change which one serves."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Annotated

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
from pilliond.ipc.device_status import device_status
from pilliond.ipc.metrics_page import VERSION_CELLS, Phase
from pilliond.ipc.sealed_version import SealedVersion
from pilliond.limits import ARMS_MAX, OPERATION_DIGITS_MAX
from pilliond.policy_rollout import PolicyRollout
from pilliond.rollout.operation import Operation, OperationStatus
from pilliond.rollout.releases import Releases
from pilliond.rollout.shadow_rollout import Shadows
from pilliond.shadow.report import ShadowReport
from pilliond.supervision.policy_channel import PolicyChannel
from pilliond.supervision.supervisor import Supervisor
from pilliond.supervision.version_table import VersionTable, resolved
from pilliond.supervision.worker_status import replica_statuses, worker_status

ArmName = Annotated[
    str,
    msgspec.Meta(max_length=64, pattern=r"^(?!(stable|previous|resident|stored|shadow)$)[A-Za-z0-9][A-Za-z0-9._-]*$"),
]
"""The name of an arm. The excluded words are the roles of versions that are no arm, in the same metrics and tables."""


class ReasonBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a verb without a version."""

    reason: Text = ""
    by: Text = ""
    """The author as the request names it. The audit log also records the user or token that the daemon sees."""


class VersionBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a verb with a version: `1.2.3`, a range, an alias or a digest."""

    version: Version
    reason: Text = ""
    by: Text = ""


class WarmupBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a warm-up. Without a version it warms the stable one."""

    version: Text = ""
    reason: Text = ""
    by: Text = ""


class ArmBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An arm of a route."""

    name: ArmName
    version: Version
    share: Annotated[float, msgspec.Meta(gt=0, le=1)]


class ShadowBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The version to compare with the stable one, and on which share of its episodes."""

    version: Version
    share: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0


class RouteBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The share of new episodes that each arm gets; the stable version gets the rest."""

    arms: Annotated[list[ArmBody], msgspec.Meta(max_length=ARMS_MAX)]
    shadow: ShadowBody | msgspec.UnsetType | None = msgspec.UNSET
    """null stops the shadow. Without this field the shadow stays as it is."""
    reason: Text = ""
    by: Text = ""

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        if len(set(names)) < len(names) or sum(arm.share for arm in self.arms) > 1 + 1e-9:
            raise ValueError("expected arms of different names whose shares make at most 1")


class PolicyRoutes:
    """The handlers. Every verb returns the operation that it began, which `/v1/operations/{number}` shows."""

    def __init__(self, supervisor: Supervisor, policies: Mapping[str, PolicyRollout]) -> None:
        self._supervisor = supervisor
        self._policies = policies

    def endpoints(self) -> list[Endpoint]:
        """Returns its rows of the table."""
        policy = "/v1/policies/{policy}"
        begun = (HTTPStatus.ACCEPTED, HTTPStatus.OK)
        view, operate = Scope.VIEW, Scope.OPERATE
        done = OperationStatus
        return [
            Endpoint("GET", "/v1/policies", self._list, "List the served policies", view, PolicyList),
            Endpoint(
                "GET", policy, self._policy, "Show the state of a policy", view, PolicyState,
                tagged=True,
            ),
            Endpoint(
                "GET", f"{policy}/versions", self._versions, "List the stored versions", view, VersionList,
                problems=(HTTPStatus.UNPROCESSABLE_ENTITY, HTTPStatus.SERVICE_UNAVAILABLE),
            ),
            Endpoint(
                "POST", f"{policy}/stage", self._stage, "Check a version and load it", operate,
                done, VersionBody, begun, tagged=True,
            ),
            Endpoint(
                "DELETE", f"{policy}/stage", self._cancel, "Cancel the staging of a version", operate,
                done, ReasonBody, tagged=True,
            ),
            Endpoint(
                "POST", f"{policy}/switch", self._switch, "Make a version the stable one", operate,
                done, VersionBody, begun, tagged=True,
            ),
            Endpoint(
                "POST", f"{policy}/rollback", self._roll_back, "Roll back to the previous version", operate,
                done, ReasonBody, begun, tagged=True,
            ),
            Endpoint(
                "POST", f"{policy}/warmup", self._warm_up, "Run every bucket of a loaded version once", operate,
                done, WarmupBody, begun, tagged=True,
            ),
            Endpoint(
                "PUT", f"{policy}/route", self._route, "Set the shares of new episodes, and the shadow", operate,
                done, RouteBody, begun, tagged=True,
            ),
            Endpoint(
                "GET", f"{policy}/shadow", self._shadow, "Compare the shadow with the stable version", view, ShadowReport
            ),
            Endpoint("GET", "/v1/operations/{number}", self._operation, "Show an operation", view, done),
            Endpoint(
                "POST", "/v1/drain", self._drain, "Answer pending requests, then stop the daemon", Scope.ADMIN,
                Draining, ReasonBody, (HTTPStatus.ACCEPTED,),
            ),
        ]  # fmt: skip

    # Reading

    async def _list(self, request: web.Request) -> web.Response:
        return json_response(PolicyList([self._state(policy) for policy in self._policies.values()]))

    async def _policy(self, request: web.Request) -> web.Response:
        policy = self.policy_of(request)
        response = json_response(self._state(policy))
        response.headers["ETag"] = _tag(policy)
        return response

    async def _versions(self, request: web.Request) -> web.Response:
        policy = self.policy_of(request)
        version_table, store = policy.channel.version_table, policy.releases.store
        entries = [entry for entry in store.index().versions() if entry.title == policy.channel.name]
        aliases = store.aliases(policy.channel.name)
        roles = {version.digest: _role(version_table, version) for version in version_table}
        shadow = policy.releases.shadows.current
        if shadow is not None:
            roles.setdefault(shadow.digest, "shadow")
        placements = {version.digest: version.placement.where for version in version_table if version.placement}
        workers = self._supervisor.workers
        states = {
            version.digest: worker.state
            for version in version_table
            if (worker := worker_status(version, workers)) is not None
        }
        stored = [
            StoredVersion(
                version=entry.version,
                digest=entry.digest,
                role=roles.get(entry.digest, "stored"),
                placement=placements.get(entry.digest, ""),
                worker_state=states.get(entry.digest, ""),
                aliases=[alias.alias for alias in aliases if alias.digest == entry.digest],
            )
            for entry in entries
        ]
        return json_response(VersionList(policy.channel.name, stored))

    async def _shadow(self, request: web.Request) -> web.Response:
        report = self.policy_of(request).releases.shadows.report()
        if report is None:
            raise ProblemError(
                HTTPStatus.NOT_FOUND, "shadow-not-found", "there has been no shadow since the daemon started"
            )
        return json_response(report)

    async def _operation(self, request: web.Request) -> web.Response:
        number = request.match_info["number"]
        is_number = number.isascii() and number.isdecimal() and len(number) <= OPERATION_DIGITS_MAX
        operation = self._find_operation(int(number)) if is_number else None
        if operation is None:
            raise ProblemError(
                HTTPStatus.NOT_FOUND, "operation-not-found", f"there is no operation {number[:20]}, or it is too old"
            )
        return json_response(operation.status())

    def _find_operation(self, number: int) -> Operation | None:
        found = (policy.releases.operations.find(number) for policy in self._policies.values())
        return next((operation for operation in found if operation is not None), None)

    def _state(self, policy: PolicyRollout) -> PolicyState:
        channel, releases = policy.channel, policy.releases
        operation, previous = releases.operations.last, channel.version_table.previous
        return PolicyState(
            policy=channel.name,
            phase=self._supervisor.phase.name.lower(),
            stable=channel.stable.version,
            digest=channel.stable.digest,
            previous=previous.version if previous else None,
            follows=releases.keeper.alias.name or None,
            sessions=channel.page.cells[channel.cells.sessions],
            resident=[self._resident(channel, version) for version in channel.version_table],
            route=_arms(channel.version_table),
            shadow=_shadow_now(releases.shadows),
            swap_impact=releases.stager.swap_impact,
            operation=operation.status() if operation else None,
        )

    def _resident(self, channel: PolicyChannel, version: SealedVersion) -> Resident:
        device = device_status(version.engine)
        return Resident(
            version=version.version,
            digest=version.digest,
            role=_role(channel.version_table, version),
            leases=channel.page.cells[VERSION_CELLS[version.metrics_index].episodes],
            signed_by=version.signed_by,
            certificate=version.certificate,
            placement=version.placement.where if version.placement else "",
            placement_reason=version.placement.reason if version.placement else "",
            device=device.device,
            fallback=device.fallback,
            worker=worker_status(version, self._supervisor.workers),
            replicas=replica_statuses(version, self._supervisor.workers),
        )

    # Changing

    async def _stage(self, request: web.Request) -> web.Response:
        releases, body, target = await self._version_body(request)
        return _begun(releases.stage(target, asked_by(request, body.by), body.reason))

    async def _switch(self, request: web.Request) -> web.Response:
        releases, body, target = await self._version_body(request)
        return _begun(releases.switch(target, asked_by(request, body.by), body.reason))

    async def _roll_back(self, request: web.Request) -> web.Response:
        releases, why = await self._verb(request, ReasonBody)
        return _begun(await releases.roll_back(asked_by(request, why.by), why.reason))

    async def _route(self, request: web.Request) -> web.Response:
        releases, body = await self._verb(request, RouteBody)
        targets = [(arm.name, releases.resolve(arm.version), arm.share) for arm in body.arms]
        if len({target.digest for _, target, _ in targets}) < len(targets):
            raise ProblemError(HTTPStatus.BAD_REQUEST, "malformed", "arms: expected a version in one arm only")
        shadow = body.shadow
        target = (releases.resolve(shadow.version), shadow.share) if isinstance(shadow, ShadowBody) else shadow
        return _begun(releases.route(targets, asked_by(request, body.by), body.reason, target))

    async def _warm_up(self, request: web.Request) -> web.Response:
        releases, body = await self._verb(request, WarmupBody)
        version_table = self.policy_of(request).channel.version_table
        target = releases.resolve(body.version) if body.version else None
        key = bytes.fromhex(target.digest.removeprefix("sha256:")) if target else version_table.stable.key
        version = version_table.find(key)
        if version is None:
            raise SwitchError(f"{target} is not loaded: stage it first")
        return _begun(releases.warm_up(version, asked_by(request, body.by), body.reason))

    async def _cancel(self, request: web.Request) -> web.Response:
        releases, why = await self._verb(request, ReasonBody)
        cancelled = await releases.operations.cancel(
            f"cancelled by {asked_by(request, why.by)}: {why.reason}".rstrip(": ")
        )
        if cancelled is None:
            raise ProblemError(HTTPStatus.CONFLICT, "nothing-to-cancel", "no version is being staged")
        return json_response(cancelled.status())

    async def _drain(self, request: web.Request) -> web.Response:
        why = await body_of(request, ReasonBody)
        for policy in self._policies.values():
            target = resolved(policy.channel.stable)
            await policy.releases.keeper.note("drain", target, "", asked_by(request, why.by), why.reason)
        self._supervisor.stop(f"an operator drains it: {why.reason}" if why.reason else "an operator drains it")
        return json_response(Draining(Phase.DRAINING.name.lower()), HTTPStatus.ACCEPTED)

    async def _version_body(self, request: web.Request) -> tuple[Releases, VersionBody, Resolved]:
        releases, body = await self._verb(request, VersionBody)
        return releases, body, releases.resolve(body.version)

    async def _verb(self, request: web.Request, kind: type[T]) -> tuple[Releases, T]:
        body = await self.verb_body(request, kind)
        return self.policy_of(request).releases, body

    def policy_of(self, request: web.Request) -> PolicyRollout:
        """Returns the policy in the path; raises `ProblemError` (404)."""
        asked = request.match_info["policy"]
        policy = self._policies.get(asked)
        if policy is None:
            served = " or ".join(self._policies)
            raise ProblemError(HTTPStatus.NOT_FOUND, "policy-not-found", f"expected {served}, got {asked[:128]}")
        return policy

    async def verb_body(self, request: web.Request, kind: type[T]) -> T:
        """Returns the body of a verb, and checks its tag.

        The tag comes last: while the body arrives, another request may change the state.
        """
        policy = self.policy_of(request)
        body = await body_of(request, kind)
        _check_tag(request, _tag(policy))
        return body


def _arms(version_table: VersionTable) -> list[ArmStatus]:
    return [
        ArmStatus(arm.name, version.version, arm.share)
        for arm in version_table.arms
        if (version := version_table.find(arm.digest)) is not None
    ]


def _shadow_now(shadows: Shadows) -> ShadowStatus | None:
    shadow = shadows.current
    if shadow is None:
        return None
    return ShadowStatus(shadow.version, shadow.process.share, shadow.live_version, shadows.state(shadow))


def _role(version_table: VersionTable, version: SealedVersion) -> str:
    if version is version_table.stable:
        return "stable"
    arm = next((arm.name for arm in version_table.arms if arm.digest == version.key), None)
    if arm is None and version is version_table.previous:
        return "previous"
    return arm or ("evaluation" if version.key in version_table.held else "resident")


def _check_tag(request: web.Request, tag: str) -> None:
    asked = ",".join(request.headers.getall("If-Match", ["*"]))
    if not {"*", tag} & {each.strip() for each in asked.split(",")}:
        raise ProblemError(HTTPStatus.PRECONDITION_FAILED, "changed-meanwhile", f"expected {asked[:80]}, got {tag}")


def _tag(policy: PolicyRollout) -> str:
    return f'"{policy.channel.stable.digest[7:19]}-{policy.releases.operations.revision}"'


def _begun(operation: Operation) -> web.Response:
    status = HTTPStatus.ACCEPTED if operation.outcome == "running" else HTTPStatus.OK
    if operation.outcome == "failed":
        raise ProblemError(HTTPStatus.CONFLICT, "cannot-switch", operation.error)
    response = json_response(operation.status(), status)
    response.headers["Location"] = f"/v1/operations/{operation.number}"
    return response
