"""`pillion artifact export`, `import`, `push` and `pull`: copy versions between a store and a file, registry or bucket."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pillion.cli_support import examples, json_option, print_json
from pillion_artifacts.cli.options import (
    PATH,
    change_options,
    open_store,
    plain_http_option,
    reference_argument,
    store_option,
)

_any_references = reference_argument("references", metavar="[REF]...", nargs=-1)
_references = reference_argument("references", metavar="REF...", nargs=-1, required=True)


@click.command("export")
@click.argument("file", metavar="FILE", type=PATH)
@_references
@store_option
@json_option
def export_file(file: Path, references: tuple[str, ...], store: Path, as_json: bool) -> None:
    """Write versions to one file.

    FILE becomes a tar archive with an OCI layout, for machines without a network. It holds the versions and their
    signatures, but neither aliases nor pins.
    """
    from pillion_artifacts.remotes.archive import ArchiveTarget

    with ArchiveTarget(file) as target:
        _upload(store, target, references, str(file), as_json)


@click.command("import")
@click.argument("file", metavar="FILE", type=PATH)
@_any_references
@change_options
@store_option
@json_option
def import_file(file: Path, references: tuple[str, ...], by: str, reason: str, store: Path, as_json: bool) -> None:
    """Read versions from one file.

    FILE is an OCI layout, in a tar archive or a folder. Without REF it imports all versions. Each version is checked as
    if it were published here. Either all of them are imported, or none.
    """
    from pillion_artifacts.oci.layouts import FolderFiles, LayoutSource
    from pillion_artifacts.remotes.archive import ArchiveFiles

    if file.is_dir():
        _download(store, LayoutSource(FolderFiles(file)), references, str(file), by, reason, as_json)
        return
    with ArchiveFiles(file) as files:
        _download(store, LayoutSource(files), references, str(file), by, reason, as_json)


@click.command(
    epilog=examples(
        "pillion artifact push oci://ghcr.io/acme/policies walker@stable",
        "pillion artifact push s3://policies/robots walker lunar-lander@v1.1.0",
    )
)
@click.argument("url", metavar="URL")
@_references
@plain_http_option
@store_option
@json_option
def push(url: str, references: tuple[str, ...], plain_http: bool, store: Path, as_json: bool) -> None:
    """Copy versions to a registry or bucket.

    URL is oci://HOST/PREFIX or s3://BUCKET/PREFIX. Signatures are copied too. In a registry, a policy is the repository
    PREFIX/NAME and a version its tag vX.Y.Z.
    """
    from pillion_artifacts.remotes.s3 import BucketTarget, is_bucket

    if is_bucket(url):
        _upload(store, BucketTarget(url), references, url, as_json)
        return
    from pillion_artifacts.remotes.registry import Registry

    with Registry(url, plain_http=plain_http) as registry:
        _upload(store, registry, references, url, as_json)


@click.command()
@click.argument("url", metavar="URL")
@_any_references
@plain_http_option
@change_options
@store_option
@json_option
def pull(
    url: str, references: tuple[str, ...], plain_http: bool, by: str, reason: str, store: Path, as_json: bool
) -> None:
    """Copy versions from a registry or bucket.

    URL is oci://HOST/PREFIX or s3://BUCKET/PREFIX. Only a bucket can be pulled without REF: then all versions are
    copied. Each version is checked as if it were published here. Either all of them are copied, or none.
    """
    from pillion_artifacts.oci.layouts import LayoutSource
    from pillion_artifacts.remotes.s3 import BucketFiles, is_bucket

    if is_bucket(url):
        _download(store, LayoutSource(BucketFiles(url)), references, url, by, reason, as_json)
        return
    from pillion_artifacts.remotes.registry import Registry

    with Registry(url, plain_http=plain_http) as registry:
        _download(store, registry, references, url, by, reason, as_json)


def _upload(store: Path, target: Any, references: tuple[str, ...], where: str, as_json: bool) -> None:
    """Copies versions to a target under a progress bar, and prints the result."""
    from pillion_artifacts.cli.listing import print_transfer
    from pillion_artifacts.cli.progress import bytes_bar
    from pillion_artifacts.remotes.transfer import export_size, export_versions

    opened = open_store(store)
    with bytes_bar(f"to {where}", export_size(opened, list(references))) as progress:
        transfer = export_versions(opened, target, list(references), progress)
    print_json(transfer) if as_json else print_transfer(transfer, f"to {where}")


def _download(
    store: Path, source: Any, references: tuple[str, ...], where: str, by: str, reason: str, as_json: bool
) -> None:
    """Copies versions from a source under a progress bar, and prints the result."""
    from pillion_artifacts.cli.listing import print_transfer
    from pillion_artifacts.cli.progress import bytes_bar
    from pillion_artifacts.remotes.transfer import import_versions

    with bytes_bar(f"from {where}", None) as progress:
        transfer = import_versions(
            open_store(store), source, list(references), where=where, by=by, reason=reason, progress=progress
        )
    print_json(transfer) if as_json else print_transfer(transfer, f"from {where}")
