"""Which version each row of a handle leases. A row keeps its lease from the start of its episode to the end."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pillion_protocol.steps import ActionStep
from pilliond.core.action_steps import ExplicitActionStep
from pilliond.core.episodes import EpisodeGroup
from pilliond.engine.interface import Array
from pilliond.versions.loaded_version import Version
from pilliond.versions.mixed_version import MixedVersion


def versions_of(group: EpisodeGroup) -> list[Version]:
    """The version of each row."""
    return group.row_versions or [group.version] * group.rows


def version_of_rows(row_versions: list[Version]) -> Version:
    """What stands for the versions of all rows: the version itself, where there is only one."""
    first = row_versions[0]
    return first if all(version is first for version in row_versions) else MixedVersion(row_versions)


def take_leases(group: EpisodeGroup) -> None:
    """Counts the leases of a handle, once for each version that it holds."""
    for version in set(versions_of(group)):
        version.leases += 1


def give_back_leases(group: EpisodeGroup) -> None:
    """Takes the leases of a handle from the count."""
    for version in set(versions_of(group)):
        version.leases -= 1


def end_lease(group: EpisodeGroup, version: Version, left: Version) -> bool:
    """Lets the rows of a handle that lease `version` hold `left` of it; tells whether there were any."""
    leased = versions_of(group)
    if not any(each is version for each in leased):
        return False
    give_back_leases(group)
    group.row_versions = [left if each is version else each for each in leased]
    group.version = left
    group.head_middle = b""
    group.forget_states(version)
    take_leases(group)
    for slot in group.slots.slots if group.slots is not None else ():
        slot.run = None
    return True


def find_unloaded(group: EpisodeGroup, mask: bytes = b"") -> Version | None:
    """A version that is gone and that a row leases which `mask` does not start anew; else None."""
    for row, version in enumerate(versions_of(group)):
        if version.gone and not (mask and mask[row]):
            return version
    return None


def lease_anew(group: EpisodeGroup, choose: Callable[[int], Version], epoch: int) -> None:
    """Gives the rows that start new episodes the versions that `choose(seed)` says."""
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
    if group.slots is not None:
        for slot in group.slots.slots:
            slot.run = version.engine.bind(slot.inputs, group.rows)


def _carry_states(group: EpisodeGroup, were: list[Version], are: list[Version], version: Version) -> None:
    """Lays out for `version` what the rows carry: those that keep their version keep it, any other begins with zeros."""
    stay = np.array([new is old for new, old in zip(are, were, strict=True)])
    owners = version.state_owners
    states = version.first_states(group.rows)
    for owner in set(owners) & set(group.state_owners):
        mine = stay & np.array([new is owner for new in are])
        for state, kept in zip(_of(owner, owners, states), _of(owner, group.state_owners, group.states), strict=True):
            state[mine] = kept[mine]
    group.states, group.state_owners = states, owners


def _of(owner: Version, owners: list[Version], states: list[Array]) -> list[Array]:
    return [state for state, whose in zip(states, owners, strict=True) if whose is owner]
