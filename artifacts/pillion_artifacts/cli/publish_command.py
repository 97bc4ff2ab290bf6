"""`pillion artifact publish` and `migrate`: from a file or folder to a version, with what was done told in between."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from pillion_artifacts.card.layers import MODEL_NAME
from pillion_artifacts.card.model_card import SCHEMA, schema_of
from pillion_artifacts.card.yaml_card import migrate_card
from pillion_artifacts.cli.progress import bytes_bar
from pillion_artifacts.errors import ArtifactError, InvalidSourceError
from pillion_artifacts.limits import CARD_BYTES_MAX
from pillion_artifacts.names import parse_name, version_name
from pillion_artifacts.publishing.common.files import read_file
from pillion_artifacts.publishing.sources import Options, import_source

if TYPE_CHECKING:
    from pillion_artifacts.publishing.common.folder import PublishReport
    from pillion_artifacts.store.store import Store


class Published(msgspec.Struct, frozen=True, omit_defaults=True):
    """A version that was published, and how well it agrees with the source that it was made of, where there is one."""

    policy: str
    version: str
    digest: str
    parity: dict[str, Any] = {}

    def __str__(self) -> str:
        line = f"{self.policy}@v{self.version} {self.digest}"
        if not self.parity:
            return line
        worst = ", ".join(f"{name} {value:.1e}" for name, value in self.parity["differences"].items())
        rows, origin = self.parity["rows"], self.parity["observations"]
        return f"{line}\nacts as its source on {rows} observations ({origin}); greatest differences: {worst}"


class Migrated(msgspec.Struct, frozen=True):
    """A card in the schema of today."""

    was: int | None
    schema: int
    text: str


def publish_source(store: Store, source: Path, name: str, options: dict[str, Any], by: str, reason: str) -> Published:
    """Publishes a folder, or what an importer makes of a file; `options` are those of `publishing.sources.Options`.

    Raises `ArtifactError`.
    """
    policy, version = parse_name(name)
    if source.is_dir():
        return _publish_folder(store, source, policy, version, by, reason)
    with tempfile.TemporaryDirectory(prefix="pillion-") as folder, _waiting(f"importing {source.name}"):
        report = _import(source, Path(folder), policy, version, options)
        published = _publish_folder(store, Path(folder), policy, version, by, reason)
    return msgspec.structs.replace(published, parity=_parity(report))


def _import(source: Path, folder: Path, policy: str, version: str, options: dict[str, Any]) -> PublishReport:
    try:
        if not source.exists():
            raise InvalidSourceError(
                f"{source}: expected a folder with {MODEL_NAME}, or a file that can be imported, got nothing"
            )
        return import_source(source, folder, policy, version, Options(**options))
    except ArtifactError as error:
        error.args = (f"{version_name(policy, version)}: {error}",)
        raise


def migrate_file(card: Path, out: Path | None) -> Migrated:
    """Reads a card of any schema and writes it in that of today, to `out` where it is given; raises `ArtifactError`."""
    data = read_file(card, CARD_BYTES_MAX)
    text = migrate_card(data)
    if out is not None:
        out.write_bytes(text)
    return Migrated(schema_of(data), SCHEMA, text.decode())


def _publish_folder(store: Store, folder: Path, policy: str, version: str, by: str, reason: str) -> Published:
    total = sum(entry.stat().st_size for entry in folder.iterdir())
    with bytes_bar(f"publishing {policy}@v{version}", total) as progress:
        made = store.publish(policy, version, folder, created_by=by, reason=reason, progress=progress)
    return Published(made.policy, made.version, made.digest)


def _parity(report: PublishReport) -> dict[str, Any]:
    return {
        "observations": report.observations,
        "rows": report.rows,
        "ties": report.ties,
        "golden_rows": report.golden_rows,
        "differences": report.differences,
    }


@contextmanager
def _waiting(what: str) -> Iterator[None]:
    """Shows on a terminal that something is going on: torch alone takes seconds to be imported."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status(what):
        yield
