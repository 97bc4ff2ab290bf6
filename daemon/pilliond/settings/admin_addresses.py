"""Listen addresses of the admin port: beyond this host only with TLS and tokens."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

import msgspec

from pillion_protocol.default_addresses import own_admin_address
from pilliond.errors import SettingsError
from pilliond.settings.addresses import check_socket_path

EXPECTED = "expected unix://, unix:///PATH, http://127.0.0.1:PORT or https://ADDRESS:PORT"


class AdminAddress(msgspec.Struct, frozen=True):
    """A listen address: the `path` of a Unix socket, or `host` and `port`."""

    text: str
    path: str = ""
    host: str = ""
    port: int = 0
    is_tls: bool = False
    is_own: bool = False
    """Whether it is the default socket in the runtime folder, which a user may lack."""

    @property
    def is_loopback(self) -> bool:
        """Whether only this host can reach it."""
        return bool(self.path) or ipaddress.ip_address(self.host).is_loopback

    def taken(self, port: int) -> str:
        """Returns the address with the port that the listener got."""
        if self.path:
            return f"unix://{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.is_tls else 'http'}://{host}:{port}"


def parse_admin_address(text: str) -> AdminAddress:
    """Parses an address; raises `SettingsError`."""
    is_own = text == "unix://"
    if is_own:
        text = own_admin_address()
    parts = urlsplit(text)
    if parts.scheme == "unix":
        path = text.removeprefix("unix://")
        check_socket_path(path, text)
        return AdminAddress(text, path, is_own=is_own)
    host = "127.0.0.1" if parts.hostname == "localhost" else parts.hostname or ""
    try:
        ipaddress.ip_address(host)
        port = parts.port
    except ValueError:
        port = None
    if parts.scheme not in ("http", "https") or port is None or parts.path not in ("", "/"):
        raise SettingsError(f"admin.listen: {EXPECTED}, got {text!r}")
    return AdminAddress(text, "", host, port, parts.scheme == "https")


def check_admin_address(address: AdminAddress, has_tokens: bool, has_certificate: bool) -> None:
    """Raises `SettingsError`, with a remedy, if the address is not allowed."""
    if address.is_tls and not has_certificate:
        raise SettingsError(
            f"admin.listen: {address.text} needs admin.certificate_file and admin.key_file "
            "(or the credentials certificate and key of systemd)"
        )
    if address.is_loopback:
        return
    if not address.is_tls:
        raise SettingsError(
            f"admin.listen: {address.text} would send answers unencrypted to other hosts: expected https:// off loopback"
        )
    if not has_tokens:
        raise SettingsError(
            f"admin.listen: {address.text} would be open to other hosts: "
            "expected an admin.tokens_file (make it with: pillion token new NAME --scope view --file FILE)"
        )
