"""An OCI registry: a repository for each policy, a tag for each version, signatures as referrers.

The protocol is the OCI Distribution Specification 1.1. Manifests are sent byte for byte: a library that encodes them
again would change their digests.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
from collections.abc import AsyncIterator, Coroutine, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar
from urllib.parse import urljoin, urlsplit

import aiohttp
import msgspec
import semver

from pillion_artifacts.errors import (
    UNREADABLE,
    ArtifactError,
    InvalidArtifactError,
    InvalidNameError,
    PolicyNotFoundError,
    RemoteError,
)
from pillion_artifacts.limits import (
    ATTESTATIONS_MAX,
    CHUNK_BYTES,
    INDEX_BYTES_MAX,
    MANIFEST_BYTES_MAX,
    REMOTE_S_MAX,
)
from pillion_artifacts.names import parse_reference
from pillion_artifacts.oci.layouts import select
from pillion_artifacts.oci.manifest import (
    INDEX_MEDIA_TYPE,
    MANIFEST_MEDIA_TYPE,
    Descriptor,
    Index,
    decode_attestation,
    decode_index,
    decode_manifest,
    digest_of,
)
from pillion_artifacts.oci.remote_interface import Chunks, Offer
from pillion_artifacts.version_range import VersionRange

Result = TypeVar("Result")

_TAG = re.compile(r"v(.+)")
_OK: Final = 200
_MISSING: Final = 404
_UNAUTHORISED: Final = 401
_ACCEPTED: Final = f"{MANIFEST_MEDIA_TYPE}, {INDEX_MEDIA_TYPE}"


class Registry:
    """A registry, as a source and as a target. Owns its connections; `close` closes them.

    `url` is `oci://HOST[:PORT]/PREFIX`; the policy `x` is the repository `PREFIX/x`. With `plain_http` there is no TLS.
    User name and password come from docker's `config.json`, if it has an entry for the host.
    """

    def __init__(self, url: str, *, plain_http: bool = False) -> None:
        parts = urlsplit(url)
        if parts.scheme != "oci" or not parts.netloc:
            raise InvalidNameError(f"expected oci://HOST/PREFIX, got {url!r}")
        self.where = url
        self._allows_plain_http = plain_http
        self._host = parts.netloc
        self._base = f"{'http' if plain_http else 'https'}://{parts.netloc}/v2/"
        self._prefix = parts.path.strip("/")
        self._authorization = _basic(parts.netloc)
        self._loop = asyncio.new_event_loop()
        self._session = self._run(self._open())

    def close(self) -> None:
        """Closes the connections."""
        self._run(self._session.close())
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # As a source

    def offers(self, references: list[str]) -> list[Offer]:
        """The versions that the references mean. There must be one: a registry does not list its policies."""
        if not references:
            raise PolicyNotFoundError(f"{self.where}: expected the name of a policy, got none")
        offers = [offer for reference in references for offer in self._offers_of(reference)]
        if not offers:
            raise PolicyNotFoundError(f"{self.where}: nothing there fits {', '.join(references)}")
        return select(offers, references, self.where)

    def chunks(self, policy: str, descriptor: Descriptor, what: str) -> Iterator[bytes]:
        response = self._run(self._request("GET", f"{self._repository(policy)}/blobs/{descriptor.digest}"))
        try:
            self._check(response, _OK, what)
            left = descriptor.size + 1
            while left > 0 and (chunk := self._run(self._read(response, min(CHUNK_BYTES, left)))):
                left -= len(chunk)
                yield chunk
        finally:
            response.close()

    # As a target

    def put_blob(self, policy: str, descriptor: Descriptor, chunks: Chunks) -> None:
        repository = self._repository(policy)
        head = self._run(self._request("HEAD", f"{repository}/blobs/{descriptor.digest}"))
        head.close()
        if head.status == _OK:
            return
        started = self._run(self._request("POST", f"{repository}/blobs/uploads/"))
        started.close()
        self._check(started, 202, repository)
        upload = urljoin(str(started.url), started.headers.get("Location", ""))
        upload += ("&" if "?" in upload else "?") + f"digest={descriptor.digest}"
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(descriptor.size)}
        done = self._run(self._request("PUT", upload, data=_as_async(chunks), headers=headers))
        done.close()
        self._check(done, 201, f"{repository}: {descriptor.digest}")

    def put_version(self, entry: Descriptor, manifest: bytes) -> None:
        self._put_manifest(self._repository(entry.title), f"v{entry.version}", manifest, MANIFEST_MEDIA_TYPE)

    def put_attestation(self, policy: str, entry: Descriptor, manifest: bytes) -> None:
        repository = self._repository(policy)
        self._put_manifest(repository, entry.digest, manifest, MANIFEST_MEDIA_TYPE)
        subject = decode_attestation(manifest).subject.digest
        if self._referrers_by_api(repository, subject) is None:
            self._add_referrer(repository, subject, entry)

    def finish(self) -> None:
        """Does nothing: a registry shows each version as soon as it has the manifest."""

    # Requests

    def _offers_of(self, reference: str) -> list[Offer]:
        asked = parse_reference(reference)
        if asked.digest:
            return [self._offer(asked.policy, asked.digest)]
        try:
            wanted = VersionRange("" if asked.alias else asked.range_text)
        except ValueError as error:
            raise PolicyNotFoundError(str(error)) from None
        return [
            self._offer(asked.policy, f"v{version}") for version in self._versions(asked.policy) if version in wanted
        ]

    def _versions(self, policy: str) -> list[str]:
        """The versions that have a tag in the registry."""
        path: str | None = f"{self._repository(policy)}/tags/list"
        tags: list[str] = []
        while path is not None:
            response = self._run(self._request("GET", path))
            if response.status == _MISSING:
                response.close()
                raise PolicyNotFoundError(f"{self.where}: it has no policy {policy!r}")
            body = self._body(response, INDEX_BYTES_MAX, f"tags of {policy}")
            tags += _decoded(body, self.where).get("tags") or []
            following: Any = response.links.get("next")
            path = str(following["url"]) if following else None
        matched = [found[1] for tag in tags if (found := _TAG.fullmatch(tag))]
        return [version for version in matched if semver.Version.is_valid(version)]

    def _offer(self, policy: str, tag: str) -> Offer:
        repository = self._repository(policy)
        response = self._run(self._request("GET", f"{repository}/manifests/{tag}", headers={"Accept": _ACCEPTED}))
        if response.status == _MISSING:
            response.close()
            raise PolicyNotFoundError(f"{self.where}: it has no {policy}@{tag}")
        data = self._body(response, MANIFEST_BYTES_MAX, f"{policy}@{tag}")
        digest = digest_of(data)
        if tag.startswith("sha256:") and digest != tag:
            raise InvalidArtifactError(f"{self.where}: {policy}@{tag}: the registry returned {digest}")
        try:
            manifest = decode_manifest(data)
        except InvalidArtifactError as error:
            raise InvalidArtifactError(f"{self.where}: {policy}@{tag}: {error}") from None
        expected = (policy, tag.removeprefix("v") if not tag.startswith("sha256:") else manifest.version)
        if (manifest.policy, manifest.version) != expected:
            raise InvalidArtifactError(
                f"{self.where}: {policy}@{tag}: the manifest belongs to {manifest.policy}@v{manifest.version}"
            )
        return Offer(policy, manifest.version, digest, data, self._attestations(repository, digest))

    def _attestations(self, repository: str, digest: str) -> list[bytes]:
        referrers = self._referrers_by_api(repository, digest)
        if referrers is None:
            referrers = self._referrers_by_tag(repository, digest)
        found = []
        for entry in referrers.manifests[:ATTESTATIONS_MAX]:
            response = self._run(
                self._request("GET", f"{repository}/manifests/{entry.digest}", headers={"Accept": _ACCEPTED})
            )
            data = self._body(response, MANIFEST_BYTES_MAX, entry.digest)
            if digest_of(data) != entry.digest:
                raise InvalidArtifactError(f"{self.where}: {entry.digest}: the registry returned {digest_of(data)}")
            found.append(data)
        return found

    def _referrers_by_api(self, repository: str, digest: str) -> Index | None:
        """The referrers of a manifest, None if the registry does not have that endpoint."""
        response = self._run(self._request("GET", f"{repository}/referrers/{digest}"))
        if response.status == _MISSING or response.content_type != INDEX_MEDIA_TYPE:
            response.close()
            return None
        return self._index(response, "referrers")

    def _referrers_by_tag(self, repository: str, digest: str) -> Index:
        """The referrers of a manifest by the specification's fallback: an index under a tag, which clients maintain."""
        tag = digest.replace(":", "-")
        response = self._run(
            self._request("GET", f"{repository}/manifests/{tag}", headers={"Accept": INDEX_MEDIA_TYPE})
        )
        if response.status == _MISSING:
            response.close()
            return Index(2, INDEX_MEDIA_TYPE, [])
        return self._index(response, tag)

    def _add_referrer(self, repository: str, subject: str, entry: Descriptor) -> None:
        index = self._referrers_by_tag(repository, subject)
        if all(known.digest != entry.digest for known in index.manifests):
            bare = msgspec.structs.replace(entry, annotations={})
            data = msgspec.json.encode(index.replaced([*index.manifests, bare]))
            self._put_manifest(repository, subject.replace(":", "-"), data, INDEX_MEDIA_TYPE)

    def _index(self, response: aiohttp.ClientResponse, what: str) -> Index:
        try:
            return decode_index(self._body(response, MANIFEST_BYTES_MAX, what))
        except InvalidArtifactError as error:
            raise InvalidArtifactError(f"{self.where}: {what}: {error}") from None

    def _put_manifest(self, repository: str, tag: str, data: bytes, media_type: str) -> None:
        path = f"{repository}/manifests/{tag}"
        response = self._run(self._request("PUT", path, data=data, headers={"Content-Type": media_type}))
        response.close()
        self._check(response, 201, path)

    def _body(self, response: aiohttp.ClientResponse, bytes_max: int, what: str) -> bytes:
        """Reads the whole body of a small response."""
        try:
            self._check(response, _OK, what)
            data = bytearray()
            while chunk := self._run(self._read(response, CHUNK_BYTES)):
                data += chunk
                if len(data) > bytes_max:
                    raise InvalidArtifactError(f"{self.where}: {what}: expected at most {bytes_max} bytes, got more")
            return bytes(data)
        finally:
            response.close()

    def _check(self, response: aiohttp.ClientResponse, expected: int, what: str) -> None:
        if response.status != expected:
            raise RemoteError(f"{self.where}: {what}: the registry returned {response.status} {response.reason}")

    def _repository(self, policy: str) -> str:
        return f"{self._prefix}/{policy}" if self._prefix else policy

    def _run(self, work: Coroutine[Any, Any, Result]) -> Result:
        try:
            return self._loop.run_until_complete(work)
        except (aiohttp.ClientError, TimeoutError) as error:
            # aiohttp wraps the errors of the chunks that it sends
            if isinstance(error.__cause__, ArtifactError):
                raise error.__cause__ from None
            raise RemoteError(f"{self.where}: {error or type(error).__name__}") from None

    @staticmethod
    async def _open() -> aiohttp.ClientSession:
        timeout = aiohttp.ClientTimeout(total=None, connect=REMOTE_S_MAX, sock_read=REMOTE_S_MAX)
        # blobs are hashed as they are stored, so nothing may decompress them on the way
        return aiohttp.ClientSession(timeout=timeout, auto_decompress=False, headers={"Accept-Encoding": "identity"})

    @staticmethod
    async def _read(response: aiohttp.ClientResponse, size: int) -> bytes:
        return await response.content.read(size)

    async def _request(self, method: str, path: str, **arguments: Any) -> aiohttp.ClientResponse:
        """Sends a request, and repeats it with a token if the registry requires one."""
        url = urljoin(self._base, path)
        headers = arguments.pop("headers", {})
        response = await self._session.request(method, url, headers=headers | self._credentials(url), **arguments)
        challenge = response.headers.get("WWW-Authenticate", "")
        # a stream can be sent only once; the request that began its upload got the token already
        can_repeat = isinstance(arguments.get("data", b""), bytes)
        if response.status == _UNAUTHORISED and challenge.lower().startswith("bearer") and can_repeat:
            response.close()
            self._authorization = f"Bearer {await self._token(challenge)}"
            response = await self._session.request(method, url, headers=headers | self._credentials(url), **arguments)
        return response

    def _credentials(self, url: str) -> dict[str, str]:
        """The credentials, for the registry only and never for a host that it redirects to."""
        return (
            {"Authorization": self._authorization} if self._authorization and urlsplit(url).netloc == self._host else {}
        )

    async def _token(self, challenge: str) -> str:
        """Requests the token of a challenge (https://distribution.github.io/distribution/spec/auth/token/)."""
        asked = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
        realm = asked.get("realm", "")
        if not realm.startswith("https://") and not self._allows_plain_http:
            raise RemoteError(f"{self.where}: expected a token server with https, got {realm!r}")
        basic = _basic(self._host)
        headers = {"Authorization": basic} if basic else {}
        parameters = {key: asked[key] for key in ("service", "scope") if key in asked}
        async with self._session.get(realm, params=parameters, headers=headers) as response:
            if response.status != _OK:
                raise RemoteError(f"{realm}: the registry's token server returned {response.status} {response.reason}")
            body = _decoded(await response.content.read(MANIFEST_BYTES_MAX), self.where)
            token: str = body.get("token") or body.get("access_token") or ""
            return token


def _basic(host: str) -> str:
    """The `Authorization` header for a host from docker's settings, empty if they have none."""
    folder = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker")
    try:
        settings = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return ""
    known: dict[str, Any] = settings.get("auths", {}) if isinstance(settings, dict) else {}
    entry = known.get(host, {})
    if entry.get("auth"):
        return f"Basic {entry['auth']}"
    if entry.get("username"):
        pair = f"{entry['username']}:{entry.get('password', '')}"
        return f"Basic {base64.b64encode(pair.encode()).decode()}"
    return ""


def _decoded(data: bytes, where: str) -> dict[str, Any]:
    try:
        fields = msgspec.json.decode(data, type=dict[str, Any])
    except UNREADABLE as error:
        raise RemoteError(f"{where}: expected JSON: {error}") from None
    return fields


async def _as_async(chunks: Chunks) -> AsyncIterator[bytes]:
    for chunk in chunks:
        # the next chunk overwrites the buffer before aiohttp has sent it
        yield bytes(chunk)
