"""Why a message is refused: one function per reason, each returns the `RemoteProtocolError` to answer with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pillion_protocol import Act, ErrorCode, Hello, RemoteProtocolError
from pillion_protocol.lane import Frame
from pillion_protocol.limits import TENSOR_BYTES_MAX
from pilliond.core.episodes import EpisodeGroup
from pilliond.versions.loaded_version import Identity, Version


def draining() -> RemoteProtocolError:
    """The daemon is stopping."""
    return RemoteProtocolError(ErrorCode.DRAINING, "the daemon is stopping and takes no new work")


# Sessions


def epoch_stale(expected: int, actual: int) -> RemoteProtocolError:
    """The session belongs to an earlier start of the serving process."""
    return RemoteProtocolError(
        ErrorCode.EPOCH_STALE, "the serving process has restarted; say hello again", f"epoch {expected}", f"{actual}"
    )


def session_unknown() -> RemoteProtocolError:
    """No session has this id. The id is a secret, so the text does not repeat it."""
    return RemoteProtocolError(
        ErrorCode.SESSION_UNKNOWN, "no such session; say hello", "the session id of a welcome", "another number"
    )


def too_many_sessions(sessions_max: int) -> RemoteProtocolError:
    """The daemon has as many sessions as its settings allow."""
    return RemoteProtocolError(ErrorCode.OVERLOADED, "too many sessions", f"at most {sessions_max}", "one more")


def no_safe_action() -> RemoteProtocolError:
    """The session asks for the fallback `safe`, and the model card has no safe action."""
    return RemoteProtocolError(
        ErrorCode.NO_SAFE_ACTION,
        "the model card of this policy names no safe action",
        "fallback error, last or zeros",
        "safe",
    )


def sequence_stale(last: int, actual: int) -> RemoteProtocolError:
    """A newer request was already taken."""
    return RemoteProtocolError(
        ErrorCode.SEQUENCE_STALE, "this request is older than the last one taken", f"more than {last}", f"{actual}"
    )


# Routing


def policy_not_found(served: Iterable[str], hello: Hello) -> RemoteProtocolError:
    """The session asks for a policy that this daemon does not serve."""
    return RemoteProtocolError(
        ErrorCode.POLICY_NOT_FOUND, "this policy is not served here", " or ".join(served), hello.policy
    )


def invalid_range(hello: Hello) -> RemoteProtocolError:
    """The text in `version_range` is not a version range."""
    return RemoteProtocolError(
        ErrorCode.VERSION_NOT_FOUND,
        "this is not a version range",
        "comparators joined by commas, such as >=1.2,<2",
        hello.version_range,
    )


def version_not_found(served: Identity, hello: Hello) -> RemoteProtocolError:
    """No version that is served fits the range."""
    return RemoteProtocolError(
        ErrorCode.VERSION_NOT_FOUND,
        f"no served version of {served.policy} fits the range",
        hello.version_range,
        served.version,
    )


def spec_mismatch(version: Version, hello: Hello) -> RemoteProtocolError:
    """The client was built for another observation and action spec."""
    return RemoteProtocolError(
        ErrorCode.SPEC_MISMATCH,
        "the client was built for other observations or outputs",
        version.spec_hash.hex(),
        hello.spec_hash.hex(),
    )


def version_gone(version: Version) -> RemoteProtocolError:
    """The version that an episode leases was unloaded."""
    return RemoteProtocolError(
        ErrorCode.VERSION_GONE,
        f"version {version.identity.version} was unloaded after a switch",
        "a new episode",
        "an episode of a version that is gone",
    )


def hold_ended(version: Version) -> RemoteProtocolError:
    """A session of an evaluation begins an episode after the evaluation hold has ended."""
    return RemoteProtocolError(
        ErrorCode.VERSION_GONE,
        f"version {version.identity.version} is no longer held for an evaluation",
        "a new session",
        "an episode of a session opened during the hold",
    )


# Episode groups


def wrong_number_of_seeds(rows_max: int, actual: int) -> RemoteProtocolError:
    """A begin has no seed, or more than a batch has rows."""
    return RemoteProtocolError(
        ErrorCode.ROWS_MISMATCH, "wrong number of seeds", f"1 to {rows_max}, one for each row", f"{actual}"
    )


def too_many_groups(episodes_max: int) -> RemoteProtocolError:
    """The session has as many episode groups as its settings allow."""
    return RemoteProtocolError(
        ErrorCode.OVERLOADED, "too many episode groups in this session", f"at most {episodes_max}", "one more"
    )


def state_lost(rows: list[int]) -> RemoteProtocolError:
    """The recurrent state of these rows went with the worker whose device held it."""
    return RemoteProtocolError(
        ErrorCode.STATE_LOST,
        "the recurrent state was lost with the process of the device that held it",
        "an act that begins these rows anew",
        f"rows {', '.join(map(str, rows))} in the middle of an episode",
    )


def no_state_memory(states_mb_max: int, state_bytes: int) -> RemoteProtocolError:
    """The recurrent state of another episode group does not fit into its budget."""
    return RemoteProtocolError(
        ErrorCode.OVERLOADED,
        "no memory is left for recurrent state",
        f"at most {states_mb_max} MB for all episode groups",
        f"{state_bytes} bytes more",
    )


def episode_unknown(episode: int) -> RemoteProtocolError:
    """The session has no episode group with this number."""
    return RemoteProtocolError(
        ErrorCode.EPISODE_UNKNOWN,
        "no such episode in this session",
        "the episode of a begun that has not ended",
        f"{episode}",
    )


# Acts


def wrong_number_of_rows(expected: int, actual: int) -> RemoteProtocolError:
    """An act has more or fewer rows than its episode group."""
    return RemoteProtocolError(ErrorCode.ROWS_MISMATCH, "wrong number of rows", f"{expected}", f"{actual}")


def outputs_too_large(version: Version, rows: int) -> RemoteProtocolError:
    """The outputs of an act fit into no packet of the lane, and the act is not in a slot."""
    return RemoteProtocolError(
        ErrorCode.TOO_LARGE,
        "the outputs do not fit into a packet of the lane",
        f"at most {TENSOR_BYTES_MAX} bytes, or an act in a slot",
        f"{sum(version.output_bytes) * rows} bytes",
    )


def not_samplable() -> RemoteProtocolError:
    """The act asks for a sampled action, and the policy has no distribution."""
    return RemoteProtocolError(
        ErrorCode.NOT_SAMPLABLE, "this policy is deterministic", "deterministic true", "deterministic false"
    )


def queue_full(rows_max: int, actual: int) -> RemoteProtocolError:
    """As many rows wait for the engine as the settings allow."""
    return RemoteProtocolError(
        ErrorCode.OVERLOADED, "too many rows wait for the engine", f"at most {rows_max} rows", f"{actual}"
    )


def superseded(by: int) -> RemoteProtocolError:
    """A newer act of the same episode group arrived before this one ran."""
    return RemoteProtocolError(ErrorCode.SUPERSEDED, f"act {by} of the same episode group replaced it before it ran")


def shape_mismatch(group: EpisodeGroup, tensors: Sequence[Frame]) -> RemoteProtocolError:
    """The tensor frames of an act are not those of the spec."""
    expected = group.frames_bytes
    if len(tensors) != len(expected):
        return RemoteProtocolError(
            ErrorCode.SHAPE_MISMATCH, "wrong number of tensor frames", f"{len(expected)}", f"{len(tensors)}"
        )
    index = next(index for index, size in enumerate(expected) if len(tensors[index]) != size)
    tensor = group.version.spec.observation[index]
    return RemoteProtocolError(
        ErrorCode.SHAPE_MISMATCH,
        f"observation {tensor.name!r} has the wrong size",
        f"{tensor.dtype} {[group.rows, *tensor.shape]}, {expected[index]} bytes",
        f"{len(tensors[index])} bytes",
    )


def slot_unknown(group: EpisodeGroup, act: Act) -> RemoteProtocolError:
    """The episode group has no slot with this number."""
    slots = len(group.slots.slots) if group.slots is not None else 0
    return RemoteProtocolError(
        ErrorCode.SLOT_UNKNOWN,
        "this episode group has no such slot over this connection",
        f"1 to {slots}" if group.slots is not None else "observations in the packet",
        f"{act.slot}",
    )


def slot_stale(expected: int, actual: int) -> RemoteProtocolError:
    """The slot holds another generation than the act says."""
    return RemoteProtocolError(
        ErrorCode.SLOT_STALE, "the slot holds another generation than the act", f"{expected}", f"{actual}"
    )


def check_starts(act: Act, rows: int) -> None:
    """Raises `RemoteProtocolError` if the start marks or seeds of an act do not fit its rows."""
    if len(act.episode_start) != rows:
        raise RemoteProtocolError(
            ErrorCode.ROWS_MISMATCH, "episode_start has the wrong length", f"{rows} bytes", f"{len(act.episode_start)}"
        )
    started = rows - act.episode_start.count(0)
    if act.seeds and len(act.seeds) != started:
        raise RemoteProtocolError(
            ErrorCode.ROWS_MISMATCH, "wrong number of seeds", f"{started}, or none", f"{len(act.seeds)}"
        )
