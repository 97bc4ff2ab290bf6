"""The signed statement: an in-toto Statement v1 about the manifest of one version, inside a DSSE envelope.

Formats: https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md and
https://github.com/secure-systems-lab/dsse/blob/master/envelope.md.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Final, Literal

import msgspec

from pillion_artifacts.errors import UNREADABLE, InvalidArtifactError

ENVELOPE_MEDIA_TYPE: Final = "application/vnd.dsse.envelope.v1+json"
PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
PREDICATE_TYPE: Final = "urn:pillion:signed-policy:v1"

Moment = Annotated[datetime, msgspec.Meta(tz=True)]


class Subject(msgspec.Struct, frozen=True):
    """The subject of a statement."""

    name: str
    digest: dict[str, str]


class Signed(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """The predicate: who signed the version, when, and until when the signature counts."""

    signed_at: Moment
    signed_by: str = ""
    expires_at: Moment | None = None
    reason: str = ""


class Statement(msgspec.Struct, frozen=True):
    """An in-toto statement with Pillion's predicate."""

    type: Literal["https://in-toto.io/Statement/v1"] = msgspec.field(name="_type")
    subject: Annotated[list[Subject], msgspec.Meta(min_length=1, max_length=1)]
    predicate_type: Literal["urn:pillion:signed-policy:v1"] = msgspec.field(name="predicateType")
    predicate: Signed


def make_statement(name: str, digest: str, predicate: Signed) -> bytes:
    """The bytes to sign for the version `name` with that manifest digest."""
    subject = Subject(name, {"sha256": digest.removeprefix("sha256:")})
    return msgspec.json.encode(Statement("https://in-toto.io/Statement/v1", [subject], PREDICATE_TYPE, predicate))


def read_statement(payload: bytes, payload_type: str, name: str, digest: str) -> Signed:
    """Reads the predicate about a version. Raises `InvalidArtifactError` if the payload is about another subject."""
    if payload_type != PAYLOAD_TYPE:
        raise InvalidArtifactError(f"expected a payload of type {PAYLOAD_TYPE}, got {payload_type!r}")
    try:
        statement = msgspec.json.decode(payload, type=Statement)
    except UNREADABLE as error:
        raise InvalidArtifactError(f"expected an in-toto statement: {error}") from None
    subject = statement.subject[0]
    if subject.name != name or subject.digest.get("sha256") != digest.removeprefix("sha256:"):
        raise InvalidArtifactError(f"expected a statement about {name} {digest}, got one about {subject.name}")
    return statement.predicate
