"""Which version each row of an episode group leases. A row keeps its lease from the start of its episode to its end."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pillion_protocol.action_steps import ActionStep
from pilliond.core.action_steps import ExplicitActionStep
from pilliond.core.episodes import EpisodeGroup
from pilliond.engine.interface import Array
from pilliond.ipc.metrics_page import mixed_index
from pilliond.versions.loaded_version import Version
from pilliond.versions.mixed_version import MixedVersion


def versions_of(group: EpisodeGroup) -> list[Version]:
    """The version of each row."""
    return group.row_versions or [group.version] * group.rows


def version_of_rows(row_versions: list[Version]) -> Version:
    """The version that answers for all rows: the only one they lease, or a `MixedVersion`."""
    first = row_versions[0]
    if all(version is first for version in row_versions):
        return first
    mixed = MixedVersion(row_versions)
    mixed.metrics_index = mixed_index(first.metrics_index)
    return mixed


def take_leases(group: EpisodeGroup) -> None:
    """Counts a group as a leaseholder of each version that its rows lease."""
    for version in set(versions_of(group)):
        version.leases += 1


def give_back_leases(group: EpisodeGroup) -> None:
    """Undoes `take_leases`."""
    for version in set(versions_of(group)):
        version.leases -= 1


def end_lease(group: EpisodeGroup, version: Version, left: Version) -> bool:
    """Replaces `version` by `left`, which has no engine, in the rows that lease it; returns whether there were any."""
    leased = versions_of(group)
    if not any(each is version for each in leased):
        return False
    give_back_leases(group)
    group.row_versions = [left if each is version else each for each in leased]
    group.version = left
    group.head_middle = b""
    group.forget_states(version)
    take_leases(group)
    return True


def find_unloaded(group: EpisodeGroup, mask: bytes = b"") -> Version | None:
    """An unloaded version that a row leases, if `mask` does not start that row anew; else None."""
    for row, version in enumerate(versions_of(group)):
        if version.gone and not (mask and mask[row]):
            return version
    return None


def lease_anew(group: EpisodeGroup, choose: Callable[[int], Version], epoch: int) -> None:
    """Leases `choose(seed)` for each row that starts a new episode."""
    leased = versions_of(group)
    chosen = list(leased)
    for row, seed in group.starting.items():
        if leased[row].gone or seed is not None or group.acts != int(group.started_at[row]):
            chosen[row] = choose(group.seed_of_start(row))
    if all(new is old for new, old in zip(chosen, leased, strict=True)):
        return
    give_back_leases(group)
    _set_versions(group, chosen, epoch)
    take_leases(group)


def _set_versions(group: EpisodeGroup, row_versions: list[Version], epoch: int) -> None:
    version = version_of_rows(row_versions)
    _carry_states(group, versions_of(group), row_versions, version)
    group.version = version
    group.row_versions = row_versions if isinstance(version, MixedVersion) else []
    if isinstance(version, MixedVersion):
        group.step = ExplicitActionStep(group, epoch, version.named, version.row_leases, None)
    else:
        tensor_bytes = [size * group.rows for size in version.output_bytes]
        plain = ActionStep(group.session.id, epoch, group.id, group.rows, version.digest, tensor_bytes)
        group.step = ExplicitActionStep(group, epoch, [version.lease], [], plain)


def _carry_states(group: EpisodeGroup, old: list[Version], new: list[Version], version: Version) -> None:
    """Lays the recurrent state out for `version`: rows that keep their version keep their state, others begin with zeros."""
    stay = np.array([now is before for now, before in zip(new, old, strict=True)])
    owners = version.state_owners
    states = version.first_states(group.rows)
    for owner in set(owners) & set(group.state_owners):
        mine = stay & np.array([now is owner for now in new])
        for state, kept in zip(_of(owner, owners, states), _of(owner, group.state_owners, group.states), strict=True):
            state[mine] = kept[mine]
            kept[mine] = 0
    group.drop_states()
    group.states, group.state_owners = states, owners


def _of(owner: Version, owners: list[Version], states: list[Array]) -> list[Array]:
    return [state for state, its_owner in zip(states, owners, strict=True) if its_owner is owner]
