"""`pillion artifact verify`, `keygen` and `sign`."""

from __future__ import annotations

import os
from pathlib import Path

import click

from pillion.cli_support import examples, json_option, print_json
from pillion_artifacts.cli.options import (
    PATH,
    change_options,
    html_option,
    open_store,
    reference_argument,
    store_option,
)


@click.command(
    epilog=examples(
        "pillion artifact verify lunar-lander",
        "pillion artifact verify --all --trust /etc/pillion/pillion.toml",
        "pillion artifact verify walker --key ann.pub --key ben.pub --threshold 1",
    )
)
@reference_argument("references", metavar="[REF]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Check every version, and the store itself.")
@click.option(
    "--key", "keys", metavar="FILE", multiple=True, type=PATH, help="Public key that must have signed. May be repeated."
)
@click.option(
    "--threshold", metavar="N", type=click.IntRange(min=1), help="Number of keys that must have signed; default: all."
)
@click.option("--trust", metavar="FILE", type=PATH, help="Settings file of the daemon, for its [trust] rules.")
@html_option
@store_option
@json_option
def verify(
    references: tuple[str, ...],
    everything: bool,
    keys: tuple[Path, ...],
    threshold: int | None,
    trust: Path | None,
    html: Path | None,
    store: Path,
    as_json: bool,
) -> None:
    """Check every byte of versions, and their signatures.

    It checks signatures only with --key or --trust. The exit code is 65 if a version is damaged or not signed as
    required.
    """
    from pillion_artifacts.cli.verification_report import finish_report, verify_and_report
    from pillion_artifacts.verify.trust_policy import trust_of_keys, trust_of_settings

    if not references and not everything:
        raise click.UsageError("expected a REF, or --all")
    if keys and trust:
        raise click.UsageError("expected --key or --trust, got both")
    required = trust_of_settings(trust) if trust else trust_of_keys(list(keys), threshold) if keys else None
    report = verify_and_report(open_store(store), references, everything, required)
    finish_report(report, html, as_json)


@click.command()
@click.argument("file", metavar="FILE", type=PATH)
@json_option
def keygen(file: Path, as_json: bool) -> None:
    """Create an Ed25519 key pair.

    The private key goes to FILE, which only you can read, and the public key to FILE.pub. If PILLION_KEY_PASSPHRASE is
    set, it encrypts the private key.
    """
    from pillion_artifacts.verify.keys import PASSPHRASE_VARIABLE, generate_keys, public_path

    identity = generate_keys(file, os.environ.get(PASSPHRASE_VARIABLE, ""))
    made = {"private": str(file), "public": str(public_path(file)), "key": identity}
    print_json(made) if as_json else print(f"{made['public']} {identity}")


@click.command()
@reference_argument()
@click.option(
    "--key", metavar="KEY", required=True, help="Private key: a file, or a URI that securesystemslib supports."
)
@click.option("--public", metavar="FILE", type=PATH, help="Public key file; needed if --key is a URI.")
@click.option(
    "--expires",
    metavar="DAYS",
    type=click.FloatRange(min=0, min_open=True),
    help="Days until the signature expires; default: never.",
)
@change_options
@store_option
@json_option
def sign(
    reference: str,
    key: str,
    public: Path | None,
    expires: float | None,
    by: str,
    reason: str,
    store: Path,
    as_json: bool,
) -> None:
    """Sign a version, after checking every byte of it.

    The passphrase of the private key comes from PILLION_KEY_PASSPHRASE.
    """
    from datetime import timedelta

    from pillion_artifacts.verify import signing
    from pillion_artifacts.verify.keys import PASSPHRASE_VARIABLE, open_signer

    opened = open_store(store)
    signer = open_signer(key, public, os.environ.get(PASSPHRASE_VARIABLE, ""))
    expires_at = None if expires is None else opened.now() + timedelta(days=expires)
    signed = signing.sign(opened, reference, signer, expires_at=expires_at, by=by, reason=reason)
    print_json(signed) if as_json else print(f"{signed.policy}@v{signed.version} is signed by {signed.key}")
