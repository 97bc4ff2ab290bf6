"""TLS of the admin port: a certificate and its key, reread when they change."""

from __future__ import annotations

import ssl
from typing import Any

from pilliond.errors import SettingsError
from pilliond.settings.secret_file import file_identity, read_secret


class TlsIdentity:
    """The certificate of the admin port; TLS 1.2 or newer. Raises `SettingsError` if the files are not usable."""

    def __init__(self, certificate_file: str, key_file: str, log: Any) -> None:
        self._files = certificate_file, key_file
        self._log = log
        self._seen = self._identify()
        self._context = _context(certificate_file, key_file)

    def context(self) -> ssl.SSLContext:
        """Returns the context of the next connection. While the new files do not match, the old pair stays in use."""
        seen = self._identify()
        if seen != self._seen:
            self._seen = seen
            try:
                self._context = _context(*self._files)
                self._log.info("certificate_read", file=self._files[0])
            except SettingsError as error:
                self._log.error("certificate_unreadable", error=str(error))
        return self._context

    def _identify(self) -> list[tuple[int, ...]]:
        return [file_identity(path) for path in self._files]


def _context(certificate_file: str, key_file: str) -> ssl.SSLContext:
    read_secret(key_file, "admin.key_file")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        # Without a callback OpenSSL would ask for a passphrase on the terminal.
        context.load_cert_chain(certificate_file, key_file, password=lambda: "")
    except ssl.SSLError as error:
        raise SettingsError(
            f"admin.certificate_file: {certificate_file}: expected a PEM certificate and its key without a passphrase "
            f"({error.reason or 'not readable'})"
        ) from None
    except OSError as error:
        raise SettingsError(f"admin.certificate_file: {certificate_file}: {error.strerror}") from None
    return context
