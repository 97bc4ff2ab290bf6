"""Evaluation holds: versions that a named campaign needs. A hold outlives the daemon, and has an end time."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec.structs import asdict

from pillion_artifacts.errors import HoldExistsError, PolicyNotFoundError
from pillion_artifacts.limits import EVALUATION_HOLDS_MAX
from pillion_artifacts.store.audit_log import AuditLog
from pillion_artifacts.store.state_files import encode_list, read_list

if TYPE_CHECKING:
    from pillion_artifacts.store.store import Resolved, Store

EVALUATIONS_NAME: Final = "evaluations.json"


class EvaluationHold(msgspec.Struct, frozen=True):
    """A version held for a campaign: `gc` keeps it, and a daemon keeps it loaded."""

    id: str
    """The name and the number of the first audit record, so that a later hold of the same name has another id."""
    name: str
    """The campaign's name, unique within a policy."""
    policy: str
    version: str
    digest: str
    at: str
    until: datetime
    """UTC; from then on the hold has no effect."""
    by: str
    reason: str = ""


def read_evaluations(root: Path) -> list[EvaluationHold]:
    """Reads all holds that were not ended, expired ones included. Raises `InvalidArtifactError` for a damaged file."""
    return read_list(root, EVALUATIONS_NAME, list[EvaluationHold])


def held_digests(root: Path, now: datetime) -> set[str]:
    """The digests that are held at `now`. Raises `InvalidArtifactError` for a damaged file."""
    return {hold.digest for hold in read_evaluations(root) if hold.until > now}


def hold_version(
    store: Store, target: Resolved, name: str, until: datetime, *, by: str = "", reason: str = ""
) -> EvaluationHold:
    """Holds a version for the campaign `name`, or extends its hold on that version.

    Raises `HoldExistsError` if the name holds another version, or if the policy has too many holds.
    """
    with store.change(f"{target}: hold {name}") as change:
        now = store.now()
        active = [hold for hold in read_evaluations(store.root) if hold.until > now]
        of_policy = [hold for hold in active if hold.policy == target.policy]
        same = next((hold for hold in of_policy if hold.name == name), None)
        if same is not None and same.digest != target.digest:
            raise HoldExistsError(f"hold {name!r} holds {same.version}: end it first, or choose another name")
        if same is None and len(of_policy) >= EVALUATION_HOLDS_MAX:
            raise HoldExistsError(f"expected at most {EVALUATION_HOLDS_MAX} holds of {target.policy}, got one more")
        record = store.record("hold", by, _reason(name, reason), **asdict(target))
        identity = same.id if same else f"{name}-{AuditLog(store.root).next_sequence()}"
        hold = EvaluationHold(identity, name, **asdict(target), at=record.at, until=until, by=record.by, reason=reason)
        change.write(EVALUATIONS_NAME, encode_list([*(each for each in active if each is not same), hold]))
        change.commit([record])
    return hold


def end_hold(store: Store, policy: str, name: str, *, by: str = "", reason: str = "") -> EvaluationHold:
    """Ends an evaluation hold, an expired one too. Raises `PolicyNotFoundError` if there is none."""
    with store.change(f"{policy}: hold {name}") as change:
        holds = read_evaluations(store.root)
        hold = next((each for each in holds if (each.policy, each.name) == (policy, name)), None)
        if hold is None:
            raise PolicyNotFoundError(f"policy {policy!r} has no evaluation hold {name!r}")
        change.write(EVALUATIONS_NAME, encode_list([each for each in holds if each is not hold]))
        reason = _reason(name, reason)
        record = store.record("end-hold", by, reason, policy=policy, version=hold.version, digest=hold.digest)
        change.commit([record])
    return hold


def _reason(name: str, reason: str) -> str:
    """The audit log has no field for the campaign, so its reason starts with the name."""
    return f"{name}: {reason}".rstrip(": ")
