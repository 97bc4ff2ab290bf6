"""A token server for a registry, by Docker's specification: requests with the password get tokens for their scopes."""

from __future__ import annotations

import base64
import datetime
import http.server
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import NameOID

ISSUER, SERVICE = "the tests", "a registry"
_LIFE_S = 300


class TokenServer(http.server.ThreadingHTTPServer):
    """Signs with its own key. `scopes` lists the requested scopes in order."""

    daemon_threads = True

    def __init__(self, authorization: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.authorization = authorization
        self.scopes: list[str] = []
        self._key = rsa.generate_private_key(65_537, 2_048)
        self._certificate = _self_signed(self._key)

    @property
    def realm(self) -> str:
        """The URL of the token server."""
        return f"http://127.0.0.1:{self.server_port}/token"

    def settings(self, folder: Path) -> str:
        """The registry's `auth` section for it. Writes the certificate for the registry to `folder`."""
        bundle = folder / "bundle.pem"
        bundle.write_bytes(self._certificate.public_bytes(serialization.Encoding.PEM))
        return f"{{token: {{realm: '{self.realm}', service: {SERVICE}, issuer: {ISSUER}, rootcertbundle: {bundle}}}}}"

    def write_tls(self, folder: Path) -> Path:
        """A certificate for this host's loopback, and its key with the suffix `.key`."""
        path = folder / "tls.pem"
        path.write_bytes(self._certificate.public_bytes(serialization.Encoding.PEM))
        plain = serialization.NoEncryption()
        path.with_suffix(".key").write_bytes(
            self._key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
        )
        return path

    def token(self, scope: str) -> str:
        """A JSON Web Token that grants `scope`, `repository:NAME:ACTION,ACTION`."""
        kind, name, actions = scope.split(":")
        now_s = int(time.time())
        certificate = base64.b64encode(self._certificate.public_bytes(serialization.Encoding.DER)).decode()
        claims: dict[str, Any] = {
            "iss": ISSUER, "sub": "a test", "aud": SERVICE, "jti": "1",
            "iat": now_s, "nbf": now_s - 60, "exp": now_s + _LIFE_S,
            "access": [{"type": kind, "name": name, "actions": actions.split(",")}],
        }  # fmt: skip
        header = {"typ": "JWT", "alg": "RS256", "x5c": [certificate]}
        signed = f"{_base64(json.dumps(header).encode())}.{_base64(json.dumps(claims).encode())}"
        return f"{signed}.{_base64(self._key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256()))}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: TokenServer

    def do_GET(self) -> None:
        (scope,) = parse_qs(urlsplit(self.path).query)["scope"]
        self.server.scopes.append(scope)
        is_known = self.headers.get("Authorization") == self.server.authorization
        body = json.dumps({"token": self.server.token(scope)} if is_known else {"details": "who are you?"}).encode()
        self.send_response(200 if is_known else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def token_server(authorization: str) -> Iterator[TokenServer]:
    """Runs a server during the block."""
    with TokenServer(authorization) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def _self_signed(key: rsa.RSAPrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, ISSUER)])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(
        now + datetime.timedelta(days=1)
    )
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), False)
    return builder.sign(key, hashes.SHA256())


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
