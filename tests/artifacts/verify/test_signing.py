"""A signature counts if a trusted key made it for this version, and neither has expired."""

from __future__ import annotations

import json
import os
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from securesystemslib.dsse import Envelope

from pillion_artifacts import ArtifactError, InvalidArtifactError, Store
from pillion_artifacts.errors import StoreError, UntrustedArtifactError
from pillion_artifacts.maintenance.inspection import inspect_store
from pillion_artifacts.oci.layouts import LayoutSource
from pillion_artifacts.remotes.archive import ArchiveFiles, ArchiveTarget
from pillion_artifacts.remotes.transfer import export_versions, import_versions
from pillion_artifacts.verify.attestations import read_envelopes
from pillion_artifacts.verify.keys import generate_keys, key_id, open_signer, public_path
from pillion_artifacts.verify.signing import sign
from pillion_artifacts.verify.trust_policy import Trust, TrustedKey, TrustPolicy, TrustRule, check_trust, examine_trust
from pillion_artifacts.verify.verification import Verifier
from tests.artifacts.support.stores import POLICY, example_card, example_model, flip
from tests.harness import blob_of, publish

NOW = datetime(2026, 6, 1, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    publish(tmp_path / "store", POLICY, "1.0.0", example_model(), example_card())
    return Store(tmp_path / "store", lambda: NOW)


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, Path]:
    """Private keys by the name of their owner."""
    for name in ("ann", "ben", "eve"):
        generate_keys(tmp_path / name)
    return {name: tmp_path / name for name in ("ann", "ben", "eve")}


def trusting(keys: dict[str, Path], *names: str, threshold: int = 1, **attributes: Any) -> TrustPolicy:
    """Trusts these keys for every policy."""
    known = [TrustedKey(name, str(public_path(keys[name])), **attributes) for name in names]
    return TrustPolicy(keys=known, rules=[TrustRule(["*"], list(names), threshold)])


def examine(store: Store, policy: TrustPolicy, now: datetime = NOW) -> Trust:
    return examine_trust(store, store.resolve(POLICY), policy, now)


def sign_by(store: Store, private: Path, **attributes: Any) -> str:
    return sign(store, POLICY, open_signer(str(private), None), **attributes).key


def test_a_signature_of_a_trusted_key_counts(store: Store, keys: dict[str, Path]) -> None:
    assert sign_by(store, keys["ann"], by="ann", reason="tested on the track") == key_id(public_path(keys["ann"]))
    assert examine(store, trusting(keys, "ann")) == Trust(["ann"])
    assert store.history()[-1].action == "sign"
    assert inspect_store(store) == []
    assert Verifier(store).verify(store.resolve(POLICY)).intact


def test_a_signature_is_a_dsse_envelope_with_an_in_toto_statement_about_the_manifest(
    store: Store, keys: dict[str, Path]
) -> None:
    sign_by(store, keys["ann"], by="ann", reason="tested", expires_at=NOW + DAY)
    ((envelope,), faults) = read_envelopes(store, store.resolve(POLICY))
    assert faults == []
    assert envelope.payload_type == "application/vnd.in-toto+json"
    digest = store.resolve(POLICY).digest.removeprefix("sha256:")
    assert json.loads(envelope.payload) == {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "lunar-lander@v1.0.0", "digest": {"sha256": digest}}],
        "predicateType": "urn:pillion:signed-policy:v1",
        "predicate": {
            "signedAt": "2026-06-01T00:00:00Z", "signedBy": "ann", "expiresAt": "2026-06-02T00:00:00Z",
            "reason": "tested",
        },
    }  # fmt: skip


def test_a_policy_without_a_trusted_signature_is_refused(store: Store, keys: dict[str, Path]) -> None:
    with pytest.raises(
        UntrustedArtifactError, match=r"^lunar-lander@v1\.0\.0: expected signatures of 1 of ann, got none that count$"
    ):
        check_trust(store, store.resolve(POLICY), trusting(keys, "ann"), NOW)
    eve = sign_by(store, keys["eve"])
    with pytest.raises(UntrustedArtifactError, match=rf"got none that count \(key {eve[:12]} is not trusted\)"):
        check_trust(store, store.resolve(POLICY), trusting(keys, "ann"), NOW)


def test_the_threshold_counts_different_keys(store: Store, keys: dict[str, Path]) -> None:
    both = trusting(keys, "ann", "ben", threshold=2)
    sign_by(store, keys["ann"])
    sign_by(store, keys["ann"], reason="once more")
    assert examine(store, both).refusal.startswith("lunar-lander@v1.0.0: expected signatures of 2 of ann, ben, got ann")
    sign_by(store, keys["ben"])
    assert sorted(examine(store, both).signed_by) == ["ann", "ben"]
    assert not examine(store, both).refusal


def test_a_key_or_a_signature_that_expired_does_not_count(store: Store, keys: dict[str, Path]) -> None:
    sign_by(store, keys["ann"], expires_at=NOW + 10 * DAY)
    trusted = trusting(keys, "ann")
    assert examine(store, trusted, NOW + 9 * DAY).signed_by == ["ann"]
    assert "the signature expired at 2026-06-11" in examine(store, trusted, NOW + 10 * DAY).refusal
    expiring = trusting(keys, "ann", expires=NOW + DAY)
    assert examine(store, expiring, NOW).signed_by == ["ann"]
    assert "key ann: the key expired at 2026-06-02" in examine(store, expiring, NOW + DAY).refusal


def test_the_first_matching_rule_applies(store: Store, keys: dict[str, Path]) -> None:
    known = [TrustedKey("ann", str(public_path(keys["ann"])))]
    strict = TrustRule(["*"], ["ann"])
    for rules, refused in (
        ([TrustRule(["lunar-*"], ["ann"], required=False), strict], False),
        ([TrustRule(["highway-*"], ["ann"]), strict], True),
        ([TrustRule(["highway-*"], ["ann"])], False),
        ([], False),
    ):
        assert bool(examine(store, TrustPolicy(keys=known, rules=rules)).refusal) == refused
    nothing_fits = TrustPolicy(required=True, keys=known, rules=[TrustRule(["highway-*"], ["ann"])])
    assert examine(store, nothing_fits).refusal == "lunar-lander@v1.0.0: trust.rules has no rule for it"


def test_a_signature_about_another_version_does_not_count(store: Store, keys: dict[str, Path]) -> None:
    publish(store.root, POLICY, "1.1.0", example_model(), example_card("1.1.0"))
    sign(store, f"{POLICY}@1.0.0", open_signer(str(keys["ann"]), None))
    ((envelope,), _) = read_envelopes(store, store.resolve(f"{POLICY}@1.0.0"))
    graft(store, envelope)
    trust = examine(store, trusting(keys, "ann"))
    assert trust.signed_by == []
    assert "key ann: expected a statement about lunar-lander@v1.1.0" in trust.refusal


@pytest.mark.parametrize("what", ["payload", "signature", "type"])
def test_an_edited_envelope_does_not_count(store: Store, keys: dict[str, Path], what: str) -> None:
    publish(store.root, POLICY, "1.1.0", example_model(), example_card("1.1.0"))
    sign_by(store, keys["ann"])
    ((envelope,), _) = read_envelopes(store, store.resolve(POLICY))
    publish(store.root, POLICY, "1.2.0", example_model(), example_card("1.2.0"))
    if what == "payload":
        about = store.resolve(POLICY)
        statement = json.loads(envelope.payload)
        statement["subject"] = [{"name": str(about), "digest": {"sha256": about.digest.removeprefix("sha256:")}}]
        envelope.payload = json.dumps(statement).encode()
    elif what == "type":
        envelope.payload_type = "application/json"
    else:
        (signature,) = envelope.signatures.values()
        signature.signature = "00" * 64
    graft(store, envelope)
    assert "key ann: the signature is wrong" in examine(store, trusting(keys, "ann")).refusal


def graft(store: Store, envelope: Envelope) -> None:
    """Attaches an envelope to the newest version, as a registry or an attacker could."""
    from pillion_artifacts.oci.manifest import encode_json
    from pillion_artifacts.verify.signing import _attach

    _attach(store, store.resolve(POLICY), encode_json(envelope.to_dict()), "eve", "grafted")


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}", b'{"payload":"!","payloadType":"x","signatures":[]}', b"\x80\x04."]
)
def test_an_invalid_envelope_does_not_count_and_does_no_harm(store: Store, keys: dict[str, Path], data: bytes) -> None:
    from pillion_artifacts.verify.signing import _attach

    sign_by(store, keys["ann"])
    _attach(store, store.resolve(POLICY), data, "eve", "")
    trust = examine(store, trusting(keys, "ann"))
    assert trust.signed_by == ["ann"]
    assert len(trust.faults) == 1
    assert trust.faults[0].startswith("lunar-lander@v1.0.0: attestation: no DSSE envelope")


def test_a_flipped_bit_in_a_signature_is_found(store: Store, keys: dict[str, Path]) -> None:
    sign_by(store, keys["ann"])
    (entry,) = store.index().about(store.resolve(POLICY).digest)
    manifest = json.loads(store.read_manifest(entry.digest, "x"))
    flip(store.root / "blobs" / "sha256" / manifest["layers"][0]["digest"].removeprefix("sha256:"), 0.5)
    verdict = Verifier(store).verify(store.resolve(POLICY))
    assert len(verdict.faults) == 1
    assert verdict.faults[0].startswith("lunar-lander@v1.0.0: attestation is not what was published")
    assert "got none that count" in examine(store, trusting(keys, "ann")).refusal


def test_a_damaged_version_is_not_signed(store: Store, keys: dict[str, Path]) -> None:
    flip(blob_of(store.root, POLICY, "model.onnx"), 0.5)
    with pytest.raises(InvalidArtifactError, match="a damaged version is not signed: lunar-lander"):
        sign_by(store, keys["ann"])


def test_signatures_travel_with_their_versions(store: Store, keys: dict[str, Path], tmp_path: Path) -> None:
    sign_by(store, keys["ann"])
    with ArchiveTarget(tmp_path / "policy.tar") as target:
        export_versions(store, target, [POLICY])
    other = Store(tmp_path / "other", lambda: NOW)
    with ArchiveFiles(tmp_path / "policy.tar") as files:
        import_versions(other, LayoutSource(files), [], where="policy.tar")
    assert examine(other, trusting(keys, "ann")).signed_by == ["ann"]
    sign_by(store, keys["ben"])
    with ArchiveTarget(tmp_path / "policy.tar") as target:
        export_versions(store, target, [POLICY])
    with ArchiveFiles(tmp_path / "policy.tar") as files:
        assert import_versions(other, LayoutSource(files), [], where="policy.tar").attestations == 1
    assert sorted(examine(other, trusting(keys, "ann", "ben")).signed_by) == ["ann", "ben"]
    assert inspect_store(other) == []


def test_a_private_key_is_readable_only_by_its_user_and_never_overwritten(tmp_path: Path) -> None:
    generate_keys(tmp_path / "key")
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    before = (tmp_path / "key").read_bytes()
    with pytest.raises(StoreError, match="key: File exists"):
        generate_keys(tmp_path / "key")
    assert (tmp_path / "key").read_bytes() == before


def test_a_private_key_may_have_a_passphrase(store: Store, keys: dict[str, Path], tmp_path: Path) -> None:
    generate_keys(tmp_path / "key", "open sesame")
    assert b"ENCRYPTED" in (tmp_path / "key").read_bytes()
    for passphrase in ("", "wrong"):
        with pytest.raises(ArtifactError, match="passphrase"):
            open_signer(str(tmp_path / "key"), None, passphrase)
    sign(store, POLICY, open_signer(str(tmp_path / "key"), None, "open sesame"))
    assert examine(store, trusting({"key": tmp_path / "key"}, "key")).signed_by == ["key"]


def test_an_invalid_key_is_one_line(tmp_path: Path, keys: dict[str, Path]) -> None:
    (tmp_path / "text").write_text("no key")
    for path in (tmp_path / "text", public_path(keys["ann"])):
        with pytest.raises(ArtifactError, match="expected a private key in PEM"):
            open_signer(str(path), None)
    with pytest.raises(ArtifactError, match="expected a public key in PEM"):
        key_id(keys["ann"])
    with pytest.raises(ArtifactError, match="No such file"):
        key_id(tmp_path / "nothing")
    with pytest.raises(ArtifactError, match="expected its public key with --public"):
        open_signer("hsm:2?label=x", None)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([TrustRule(["*"], ["carl"])], r"rules: expected a key of ann, got 'carl'"),
        ([TrustRule(["*"], ["ann"], threshold=2)], "rules: threshold: expected at most 1, got 2"),
    ],
)
def test_a_trust_policy_that_contradicts_itself_is_refused(rules: list[TrustRule], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrustPolicy(keys=[TrustedKey("ann", "/x")], rules=rules)
    with pytest.raises(msgspec.ValidationError, match=message):
        msgspec.convert({"keys": [{"name": "ann", "path": "/x"}], "rules": msgspec.to_builtins(rules)}, TrustPolicy)


def test_a_missing_trusted_key_is_named(store: Store, keys: dict[str, Path]) -> None:
    sign_by(store, keys["ann"])
    os.unlink(public_path(keys["ann"]))
    assert "key ann: " in examine(store, trusting(keys, "ann")).refusal
    assert "No such file" in examine(store, trusting(keys, "ann")).refusal
