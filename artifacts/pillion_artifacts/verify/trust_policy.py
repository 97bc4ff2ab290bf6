"""The trust policy: which keys, and how many of them, must sign which policies. Part of the daemon's settings.

This module imports no cryptography, because a policy without a rule needs none.
"""

from __future__ import annotations

import tomllib
from datetime import datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from pillion_artifacts.errors import ArtifactError, InvalidNameError, UntrustedArtifactError
from pillion_artifacts.verify.statement import read_statement

if TYPE_CHECKING:
    from pillion_artifacts.store.store import Resolved, Store


class TrustedKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A public key and its name."""

    name: str
    path: str
    """A PEM file."""
    expires: Annotated[datetime, msgspec.Meta(tz=True)] | None = None
    """From then on its signatures do not count."""


class TrustRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The signatures that policies with these names need."""

    policies: Annotated[list[str], msgspec.Meta(min_length=1)]
    """Policy names; `*` matches anything."""
    keys: Annotated[list[str], msgspec.Meta(min_length=1)]
    """Names of keys."""
    threshold: Annotated[int, msgspec.Meta(ge=1)] = 1
    """The number of different keys that must have signed."""
    required: bool = True
    """Whether a policy without these signatures is refused; otherwise the daemon only logs it."""


class TrustPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All rules. The first one that matches a policy applies."""

    required: bool = False
    """Whether a policy without a rule is refused."""
    keys: list[TrustedKey] = []
    rules: list[TrustRule] = []
    code: list[str] = []
    """The installed packages (distribution names) that Python policies may come from. Empty: none is loaded."""
    torchscript: bool = False
    """Whether TorchScript, which is a program, may run."""

    def __post_init__(self) -> None:
        names = [key.name for key in self.keys]
        if len(set(names)) != len(names):
            raise ValueError(f"keys: expected names that differ, got {', '.join(names)}")
        for rule in self.rules:
            for name in rule.keys:
                if name not in names:
                    raise ValueError(f"rules: expected a key of {', '.join(names) or 'none'}, got {name!r}")
            if rule.threshold > len(set(rule.keys)):
                raise ValueError(f"rules: threshold: expected at most {len(set(rule.keys))}, got {rule.threshold}")

    def rule_for(self, policy: str) -> TrustRule | None:
        """The rule for a policy, None if there is none."""
        return next((rule for rule in self.rules if any(fnmatchcase(policy, name) for name in rule.policies)), None)


def trust_of_keys(paths: list[Path], threshold: int | None) -> TrustPolicy:
    """Requires `threshold` of these keys (None: all) for every version. Raises `InvalidNameError`."""
    keys = [TrustedKey(str(path), str(path)) for path in paths]
    try:
        return TrustPolicy(
            required=True, keys=keys, rules=[TrustRule(["*"], [key.name for key in keys], threshold or len(keys))]
        )
    except ValueError as error:
        raise InvalidNameError(str(error)) from None


def trust_of_settings(file: Path) -> TrustPolicy:
    """Reads `[trust]` from the daemon's settings in `file`. Raises `InvalidNameError`."""
    try:
        section = tomllib.loads(file.read_text()).get("trust", {})
        return msgspec.convert(section, TrustPolicy)
    except OSError as error:
        raise InvalidNameError(f"{file}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise InvalidNameError(f"{file}: {error}") from None


class Trust(msgspec.Struct, frozen=True):
    """The result of checking one version."""

    signed_by: list[str] = []
    """The names of the keys whose signatures count."""
    faults: list[str] = []
    """Why other signatures do not count, a line each."""
    refusal: str = ""
    """Why the version must not be loaded, empty if it may be."""


def check_trust(store: Store, resolved: Resolved, policy: TrustPolicy, now: datetime) -> Trust:
    """Checks the signatures of a version. Raises `UntrustedArtifactError` if it must not be loaded."""
    trust = examine_trust(store, resolved, policy, now)
    if trust.refusal:
        raise UntrustedArtifactError(trust.refusal)
    return trust


def examine_trust(store: Store, resolved: Resolved, policy: TrustPolicy, now: datetime) -> Trust:
    """Checks the signatures of a version, and reports a refusal instead of raising it."""
    rule = policy.rule_for(resolved.policy)
    if rule is None:
        refusal = f"{resolved}: trust.rules has no rule for it" if policy.required else ""
        return Trust(refusal=refusal)
    keys = [key for key in policy.keys if key.name in rule.keys]
    signed_by: list[str] = []
    faults: list[str] = []
    if store.index().about(resolved.digest):
        signed_by, faults = _signers(store, resolved, keys, now)
    if len(signed_by) >= rule.threshold or not rule.required:
        return Trust(signed_by, faults)
    names = ", ".join(key.name for key in keys)
    why = f" ({'; '.join(faults)})" if faults else ""
    refusal = (
        f"{resolved}: expected signatures of {rule.threshold} of {names}, "
        f"got {', '.join(signed_by) or 'none'} that count{why}"
    )
    return Trust(signed_by, faults, refusal)


def _signers(store: Store, resolved: Resolved, keys: list[TrustedKey], now: datetime) -> tuple[list[str], list[str]]:
    """The names of the keys with valid signatures, and why other signatures do not count."""
    from pillion_artifacts.verify.attestations import read_envelopes
    from pillion_artifacts.verify.keys import read_public_key

    try:
        envelopes, faults = read_envelopes(store, resolved)
    except ModuleNotFoundError as error:
        return [], [f"{error.name} is not installed: pip install 'pillion[sign]'"]
    by_id = {}
    for key in keys:
        try:
            by_id[read_public_key(Path(key.path)).keyid] = (key, read_public_key(Path(key.path)))
        except ArtifactError as error:
            faults.append(f"key {key.name}: {error}")
    signed_by = list[str]()
    for envelope in envelopes:
        for identity in envelope.signatures:
            if identity not in by_id:
                faults.append(f"key {identity[:12]} is not trusted")
                continue
            key, public = by_id[identity]
            fault = _fault(envelope, key, public, resolved, now)
            if fault:
                faults.append(f"key {key.name}: {fault}")
            elif key.name not in signed_by:
                signed_by.append(key.name)
    return signed_by, faults


def _fault(envelope: Any, key: TrustedKey, public: Any, resolved: Resolved, now: datetime) -> str:
    """Why a signature does not count, empty if it does."""
    from securesystemslib.exceptions import VerificationError

    try:
        envelope.verify([public], 1)
        predicate = read_statement(envelope.payload, envelope.payload_type, str(resolved), resolved.digest)
    except VerificationError:
        return "the signature is wrong"
    except ArtifactError as error:
        return str(error)
    if key.expires is not None and key.expires <= now:
        return f"the key expired at {key.expires.isoformat()}"
    if predicate.expires_at is not None and predicate.expires_at <= now:
        return f"the signature expired at {predicate.expires_at.isoformat()}"
    return ""
