"""Keys that sign policies: Ed25519 in PEM files. A passphrase encrypts the private key.

A private key may also be in a hardware module or a cloud's key service, by any URI that securesystemslib supports.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

from pillion_artifacts.errors import ArtifactError, InvalidNameError
from pillion_artifacts.limits import KEY_BYTES_MAX
from pillion_artifacts.oci.blobs import read_small
from pillion_artifacts.store.transaction import refusals

PASSPHRASE_VARIABLE: Final = "PILLION_KEY_PASSPHRASE"  # noqa: S105 - the name of a variable


def generate_keys(path: Path, passphrase: str = "") -> str:
    """Makes a key pair and returns its id: the private key at `path`, for this user only, the public key at `path.pub`.

    Raises `StoreError` if a file of that name exists.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    private = Ed25519PrivateKey.generate()
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase:
        encryption = serialization.BestAvailableEncryption(passphrase.encode())
    pem = private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    public = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    _write_new(path, pem, 0o600)
    _write_new(public_path(path), public, 0o644)
    return key_id(public_path(path))


def public_path(path: Path) -> Path:
    """The path of the public key for the private key at `path`."""
    return path.with_name(f"{path.name}.pub")


def key_id(path: Path) -> str:
    """The id of the public key at `path`. Raises `ArtifactError`."""
    identity: str = read_public_key(path).keyid
    return identity


def read_public_key(path: Path) -> Any:
    """Reads a PEM file as a securesystemslib key. Raises `ArtifactError` if it is no public Ed25519 key."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key
    from securesystemslib.signer import SSlibKey

    data = read_small(path, KEY_BYTES_MAX, str(path))
    try:
        key = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        raise ArtifactError(f"{path}: expected a public key in PEM, got something else") from None
    if not isinstance(key, Ed25519PublicKey):
        raise ArtifactError(f"{path}: expected an Ed25519 key, got {type(key).__name__}")
    return SSlibKey.from_crypto(key)


def open_signer(private: str, public: Path | None, passphrase: str = "") -> Any:
    """Opens a private key as a securesystemslib signer: a PEM file, or a URI and its public key.

    Raises `ArtifactError` if the key cannot be opened.
    """
    from securesystemslib.signer import SIGNER_FOR_URI_SCHEME, Signer

    scheme = private.partition(":")[0]
    if scheme not in SIGNER_FOR_URI_SCHEME:
        return _signer_of_file(Path(private), passphrase)
    if public is None:
        raise InvalidNameError(f"{private}: expected its public key with --public, got none")
    try:
        return Signer.from_priv_key_uri(private, read_public_key(public), lambda _: passphrase)
    except Exception as error:  # noqa: BLE001 - drivers and cloud clients raise errors of their own
        raise ArtifactError(f"{private}: {type(error).__name__}: {error}") from None


def _signer_of_file(path: Path, passphrase: str) -> Any:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from securesystemslib.signer import CryptoSigner

    data = read_small(path, KEY_BYTES_MAX, str(path))
    try:
        key = load_pem_private_key(data, passphrase.encode() or None)
    except TypeError:
        needed = "a passphrase" if not passphrase else "no passphrase"
        raise ArtifactError(f"{path}: expected {needed} in {PASSPHRASE_VARIABLE}") from None
    except (ValueError, UnsupportedAlgorithm):
        raise ArtifactError(f"{path}: expected a private key in PEM, or another passphrase") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ArtifactError(f"{path}: expected an Ed25519 key, got {type(key).__name__}")
    return CryptoSigner(key)


def _write_new(path: Path, data: bytes, mode: int) -> None:
    with refusals(str(path)):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
