"""Versions and their signatures travel through real servers unchanged."""

from __future__ import annotations

import base64
import http.client
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pillion_artifacts import InvalidArtifactError, PolicyNotFoundError, Store
from pillion_artifacts.errors import InvalidNameError, RemoteError, VersionExistsError
from pillion_artifacts.maintenance.inspection import inspect_store
from pillion_artifacts.oci.layouts import LayoutSource, blob_name
from pillion_artifacts.remotes.registry import Registry
from pillion_artifacts.remotes.s3 import BucketFiles, BucketTarget, open_bucket
from pillion_artifacts.remotes.transfer import Transfer, export_versions, import_versions
from pillion_artifacts.verify.keys import generate_keys, open_signer, public_path
from pillion_artifacts.verify.signing import sign
from pillion_artifacts.verify.trust_policy import examine_trust, trust_of_keys
from tests.artifacts.support.registry_tokens import token_server
from tests.artifacts.support.servers import ACCESS_KEY, SECRET_KEY, free_ports, password_settings, registry, s3_server
from tests.artifacts.support.stores import POLICY, example_card, example_model, flip
from tests.harness import START_S_MAX, blob_of, publish


@pytest.fixture(scope="module")
def registry_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A shared registry; each test has its own prefix."""
    with registry(tmp_path_factory.mktemp("registry")) as address:
        yield f"oci://{address}"


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A shared S3 server with the bucket `policies`."""
    with s3_server(tmp_path_factory.mktemp("s3")) as environment:
        yield environment


@pytest.fixture
def bucket_url(s3: dict[str, str], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A prefix of the shared bucket for one test."""
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    url = f"s3://policies/{request.node.name[:60].strip('[]')}"
    wait_for_bucket(url)
    return url


def wait_for_bucket(url: str) -> None:
    """The gateway listens before its backend is ready."""
    import obstore
    from obstore.exceptions import BaseError

    deadline_s = time.monotonic() + START_S_MAX
    while True:
        try:
            obstore.put(open_bucket(url), "ready", b"ready")
            return
        except BaseError:
            assert time.monotonic() < deadline_s
            time.sleep(0.2)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two versions, the newer one signed."""
    for version in ("1.0.0", "1.1.0"):
        publish(tmp_path / "store", POLICY, version, example_model(), example_card(version))
    generate_keys(tmp_path / "ann")
    store = Store(tmp_path / "store")
    sign(store, POLICY, open_signer(str(tmp_path / "ann"), None))
    return store


@pytest.fixture
def other(tmp_path: Path) -> Store:
    """A store that does not exist yet."""
    return Store(tmp_path / "other")


def push_to_registry(store: Store, url: str, *references: str) -> Transfer:
    with Registry(url, plain_http=True) as remote:
        return export_versions(store, remote, list(references))


def pull_from_registry(store: Store, url: str, *references: str) -> Transfer:
    with Registry(url, plain_http=True) as remote:
        return import_versions(store, remote, list(references), where=url)


def push_to_bucket(store: Store, url: str, *references: str) -> Transfer:
    return export_versions(store, BucketTarget(url), list(references))


def pull_from_bucket(store: Store, url: str, *references: str) -> Transfer:
    return import_versions(store, LayoutSource(BucketFiles(url)), list(references), where=url)


def check_that_all_came(store: Store, other: Store, tmp_path: Path) -> None:
    for version in ("1.0.0", "1.1.0"):
        assert other.load(f"{POLICY}@{version}") == store.load(f"{POLICY}@{version}")
    assert inspect_store(other) == []
    trust = trust_of_keys([public_path(tmp_path / "ann")], None)
    now = store.now()
    assert examine_trust(other, other.resolve(POLICY), trust, now).signed_by == [str(public_path(tmp_path / "ann"))]
    assert examine_trust(other, other.resolve(f"{POLICY}@1.0.0"), trust, now).refusal


def test_versions_and_their_signatures_travel_through_a_registry(
    registry_url: str, store: Store, other: Store, tmp_path: Path
) -> None:
    url = f"{registry_url}/all"
    push_to_registry(store, url, f"{POLICY}@1.0.0", f"{POLICY}@1.1.0")
    pull_from_registry(other, url, f"{POLICY}@1.0.0", POLICY)
    check_that_all_came(store, other, tmp_path)
    again = pull_from_registry(other, url, POLICY)
    assert (again.carried, again.attestations) == ([], 0)
    assert push_to_registry(store, url, POLICY).attestations == 1


def test_versions_and_their_signatures_travel_through_a_bucket(
    bucket_url: str, store: Store, other: Store, tmp_path: Path
) -> None:
    push_to_bucket(store, bucket_url, f"{POLICY}@1.0.0")
    push_to_bucket(store, bucket_url, f"{POLICY}@1.1.0")
    pull_from_bucket(other, bucket_url)
    check_that_all_came(store, other, tmp_path)
    again = pull_from_bucket(other, bucket_url)
    assert (again.carried, again.attestations) == ([], 0)


def test_a_manifest_has_the_same_digest_in_a_registry(registry_url: str, store: Store) -> None:
    push_to_registry(store, f"{registry_url}/digests", POLICY)
    connection = http.client.HTTPConnection(registry_url.removeprefix("oci://"), timeout=START_S_MAX)
    try:
        connection.request(
            "GET",
            f"/v2/digests/{POLICY}/manifests/v1.1.0",
            headers={"Accept": "application/vnd.oci.image.manifest.v1+json"},
        )
        response = connection.getresponse()
        body = response.read()
    finally:
        connection.close()
    assert response.headers["Docker-Content-Digest"] == store.resolve(POLICY).digest
    assert json.loads(body)["artifactType"] == "application/vnd.pillion.policy.v1"


@pytest.mark.parametrize("reference", [f"{POLICY}@1.0.0", f"{POLICY}@<1.1", "DIGEST"])
def test_a_version_a_range_or_a_digest_can_be_pulled(
    registry_url: str, store: Store, other: Store, reference: str
) -> None:
    url = f"{registry_url}/ranges"
    push_to_registry(store, url, f"{POLICY}@1.0.0", f"{POLICY}@1.1.0")
    digest = store.resolve(f"{POLICY}@1.0.0").digest
    pull_from_registry(other, url, reference.replace("DIGEST", f"{POLICY}@{digest}"))
    assert other.versions(POLICY) == ["1.0.0"]


@pytest.mark.parametrize("reference", ["nothing", f"{POLICY}@9", f"{POLICY}@stable", f"{POLICY}@sha256:{'0' * 64}"])
def test_a_reference_that_a_remote_does_not_have_is_named(
    registry_url: str, bucket_url: str, store: Store, other: Store, reference: str
) -> None:
    push_to_registry(store, f"{registry_url}/missing", POLICY)
    push_to_bucket(store, bucket_url, POLICY)
    with pytest.raises(PolicyNotFoundError, match="oci://"):
        pull_from_registry(other, f"{registry_url}/missing", reference)
    with pytest.raises(PolicyNotFoundError, match="s3://"):
        pull_from_bucket(other, bucket_url, reference)
    assert not (other.root / "index.json").exists()


def test_a_version_that_a_bucket_has_with_other_content_is_refused(
    bucket_url: str, store: Store, tmp_path: Path
) -> None:
    push_to_bucket(store, bucket_url, POLICY)
    publish(tmp_path / "else", POLICY, "1.1.0", example_model(), example_card("1.1.0") + "# else\n")
    with pytest.raises(VersionExistsError, match=r"lunar-lander@v1\.1\.0 exists already, as sha256:"):
        push_to_bucket(Store(tmp_path / "else"), bucket_url, POLICY)


def test_concurrent_pushes_to_a_bucket_lose_no_version(bucket_url: str, store: Store, other: Store) -> None:
    first, second = BucketTarget(bucket_url), BucketTarget(bucket_url)
    original = first._read_index

    def slow() -> Any:
        read = original()
        first._read_index = original  # type: ignore[method-assign]
        export_versions(store, second, [f"{POLICY}@1.0.0"])
        return read

    first._read_index = slow  # type: ignore[method-assign]
    export_versions(store, first, [f"{POLICY}@1.1.0"])
    pull_from_bucket(other, bucket_url)
    assert other.versions(POLICY) == ["1.0.0", "1.1.0"]


def test_a_version_damaged_in_a_bucket_is_refused(bucket_url: str, store: Store, other: Store) -> None:
    import obstore

    push_to_bucket(store, bucket_url, POLICY)
    model = store.manifest(store.resolve(POLICY)).layers[0]
    damaged = bytearray(example_model())
    damaged[1_000] ^= 1
    obstore.put(open_bucket(bucket_url), blob_name(model.digest), bytes(damaged))
    with pytest.raises(InvalidArtifactError, match=r"lunar-lander@v1\.1\.0: model\.onnx is not what was published"):
        pull_from_bucket(other, bucket_url)


def test_a_version_damaged_in_a_registry_is_refused(tmp_path: Path, store: Store, other: Store) -> None:
    with registry(tmp_path) as address:
        push_to_registry(store, f"oci://{address}", POLICY)
        digest = store.manifest(store.resolve(POLICY)).layers[0].digest.removeprefix("sha256:")
        (blob,) = (tmp_path / "registry").rglob(f"blobs/sha256/*/{digest}/data")
        flip(blob, 0.5)
        with pytest.raises(InvalidArtifactError, match=r"lunar-lander@v1\.1\.0: model\.onnx is not what was published"):
            pull_from_registry(other, f"oci://{address}", POLICY)
        shutil.rmtree(blob.parent)
        with pytest.raises(RemoteError, match=r"lunar-lander@v1\.1\.0: model\.onnx: the registry returned 404"):
            pull_from_registry(other, f"oci://{address}", POLICY)


def test_a_damaged_version_is_not_pushed(registry_url: str, bucket_url: str, store: Store, other: Store) -> None:
    flip(blob_of(store.root, POLICY, "model.onnx"), 0.5)
    with pytest.raises(InvalidArtifactError, match=r"model\.onnx is not what was published"):
        push_to_registry(store, f"{registry_url}/damaged", POLICY)
    with pytest.raises(InvalidArtifactError, match=r"model\.onnx is not what was published"):
        push_to_bucket(store, bucket_url, POLICY)
    with pytest.raises(RemoteError):
        pull_from_bucket(other, bucket_url)


def test_a_registry_gets_the_password_from_dockers_settings(
    tmp_path: Path, store: Store, other: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    with registry(tmp_path, auth=password_settings(tmp_path)) as address:
        url = f"oci://{address}"
        with pytest.raises(RemoteError, match="the registry returned 401"):
            push_to_registry(store, url, POLICY)
        auth = base64.b64encode(f"{ACCESS_KEY}:{SECRET_KEY}".encode()).decode()
        (tmp_path / "config.json").write_text(json.dumps({"auths": {address: {"auth": auth}}}))
        push_to_registry(store, url, POLICY)
        pull_from_registry(other, url, POLICY)
    assert other.load(POLICY) == store.load(POLICY)


def test_a_registry_gets_a_token_for_each_scope(
    tmp_path: Path, store: Store, other: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    auth = base64.b64encode(f"{ACCESS_KEY}:{SECRET_KEY}".encode()).decode()
    with token_server(f"Basic {auth}") as tokens, registry(tmp_path, auth=tokens.settings(tmp_path)) as address:
        url = f"oci://{address}/robots"
        with pytest.raises(RemoteError, match=r"/token: the registry's token server returned 401"):
            push_to_registry(store, url, POLICY)
        (tmp_path / "config.json").write_text(json.dumps({"auths": {address: {"auth": auth}}}))
        push_to_registry(store, url, POLICY)
        # now it has every blob: the first thing that needs a right to write is the manifest
        push_to_registry(store, url, POLICY)
        pull_from_registry(other, url, POLICY)
    assert other.load(POLICY) == store.load(POLICY)
    assert {scope.rpartition(":")[0] for scope in tokens.scopes} == {f"repository:robots/{POLICY}"}
    assert {frozenset(scope.rpartition(":")[2].split(",")) for scope in tokens.scopes} == {
        frozenset(["pull"]),
        frozenset(["pull", "push"]),
    }


def test_a_password_is_not_sent_in_clear_to_a_token_server(tmp_path: Path, store: Store) -> None:
    with token_server("") as tokens:
        certificate = tokens.write_tls(tmp_path)
        with registry(tmp_path, auth=tokens.settings(tmp_path), tls=certificate) as address:
            words = [sys.executable, "-m", "pillion", "artifact", "push", f"oci://{address}", POLICY]
            environment = {**os.environ, "SSL_CERT_FILE": str(certificate), "PILLION_STORE__PATH": str(store.root)}
            result = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=START_S_MAX)
    assert result.returncode == os.EX_UNAVAILABLE
    assert "expected a token server with https, got 'http://127.0.0.1" in result.stderr
    assert tokens.scopes == []


def test_an_unreachable_registry_is_one_line(store: Store) -> None:
    (port,) = free_ports(1)
    with pytest.raises(RemoteError, match=rf"^oci://127\.0\.0\.1:{port}: "):
        push_to_registry(store, f"oci://127.0.0.1:{port}", POLICY)


@pytest.mark.parametrize("url", ["http://x", "oci:", "oci:///x", "ftp://x/y", "x"])
def test_other_urls_than_remotes_are_refused(url: str) -> None:
    with pytest.raises(InvalidNameError):
        Registry(url)
    with pytest.raises(InvalidNameError):
        open_bucket(url)


def test_the_command_line_pushes_and_pulls(registry_url: str, bucket_url: str, store: Store, other: Store) -> None:
    for url in (f"{registry_url}/cli", bucket_url):
        for words in (
            ["push", url, POLICY, "--store", str(store.root)],
            ["pull", url, POLICY, "--store", str(other.root)],
        ):
            result = subprocess.run(
                [sys.executable, "-m", "pillion", "artifact", *words, *(["--plain-http"] if "oci" in url else [])],
                capture_output=True, text=True, timeout=START_S_MAX,
            )  # fmt: skip
            assert (result.returncode, result.stderr) == (0, "")
            assert "lunar-lander@v1.1.0" in result.stdout
    assert other.load(POLICY) == store.load(POLICY)
