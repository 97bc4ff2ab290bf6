"""From a file or folder to a published version, and from a card of any schema to the current one."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from pillion.cli_support import spinner
from pillion_artifacts.card.layers import MODEL_NAMES
from pillion_artifacts.card.model_card import SCHEMA, schema_of
from pillion_artifacts.card.yaml_card import migrate_card
from pillion_artifacts.cli.progress import bytes_bar
from pillion_artifacts.errors import ArtifactError, InvalidSourceError
from pillion_artifacts.formats.torch_program import inspect_torch_program
from pillion_artifacts.limits import CARD_BYTES_MAX, DAEMON_ROWS_MAX
from pillion_artifacts.names import parse_name, version_name
from pillion_artifacts.oci.blobs import map_file
from pillion_artifacts.publishing.common.files import read_file
from pillion_artifacts.publishing.sources import Options, import_source

if TYPE_CHECKING:
    from pillion_artifacts.publishing.common.folder import PublishReport
    from pillion_artifacts.store.store import Store


class Published(msgspec.Struct, frozen=True, omit_defaults=True):
    """A published version, and for a converted file how well the model agrees with it."""

    policy: str
    version: str
    digest: str
    parity: dict[str, Any] = {}
    unproven: str = ""
    """Why a converted file has no golden pairs; empty: it has."""
    rows_max: int = 0
    """The most rows that a torch program takes at once, if a daemon without settings asks for more; else 0."""

    def __str__(self) -> str:
        line = f"{self.policy}@v{self.version} {self.digest}"
        if self.rows_max:
            line += (
                f"\nit takes at most {self.rows_max} rows at once, and a daemon asks for {DAEMON_ROWS_MAX} where "
                "limits.rows_max is not set: lower that, or export it for more rows"
            )
        if self.unproven:
            return f"{line}\npublished without golden pairs, so nothing proves how it acts: {self.unproven}"
        if not self.parity:
            return line
        worst = ", ".join(f"{name} {value:.1e}" for name, value in self.parity["differences"].items())
        rows, origin = self.parity["rows"], self.parity["observations"]
        return f"{line}\nacts as its source on {rows} observations ({origin}); greatest differences: {worst}"


class Migrated(msgspec.Struct, frozen=True):
    """A card in the current schema."""

    was: int | None
    schema: int
    text: str


def publish_source(store: Store, source: Path, name: str, options: dict[str, Any], by: str, reason: str) -> Published:
    """Publishes a folder, or a file after converting it; `options` are those of `publishing.sources.Options`.

    Raises `ArtifactError`.
    """
    policy, version = parse_name(name)
    if source.is_dir():
        return _publish_folder(store, source, policy, version, by, reason)
    with tempfile.TemporaryDirectory(prefix="pillion-") as folder, spinner(f"importing {source.name}"):
        report = _import(source, Path(folder), policy, version, options)
        published = _publish_folder(store, Path(folder), policy, version, by, reason)
    if report.unproven:
        return msgspec.structs.replace(published, unproven=report.unproven)
    return msgspec.structs.replace(published, parity=_parity(report))


def _import(source: Path, folder: Path, policy: str, version: str, options: dict[str, Any]) -> PublishReport:
    try:
        if not source.exists():
            raise InvalidSourceError(
                f"{source}: no such file: expected a folder with a model, or a file that can be imported"
            )
        return import_source(source, folder, policy, version, Options(**options))
    except ArtifactError as error:
        error.args = (f"{version_name(policy, version)}: {error}",)
        raise


def migrate_file(card: Path, out: Path | None) -> Migrated:
    """Converts a card of any schema to the current one, and writes it to `out` if given. Raises `ArtifactError`."""
    data = read_file(card, CARD_BYTES_MAX)
    text = migrate_card(data)
    if out is not None:
        out.write_bytes(text)
    return Migrated(schema_of(data), SCHEMA, text.decode())


def _publish_folder(store: Store, folder: Path, policy: str, version: str, by: str, reason: str) -> Published:
    total = sum(entry.stat().st_size for entry in folder.iterdir())
    with bytes_bar(f"publishing {policy}@v{version}", total) as progress:
        made = store.publish(policy, version, folder, created_by=by, reason=reason, progress=progress)
    return Published(made.policy, made.version, made.digest, rows_max=_few_rows(folder))


def _few_rows(folder: Path) -> int:
    """The most rows that a published torch program takes at once, if these are fewer than a daemon asks for; else 0."""
    model = folder / MODEL_NAMES["torch"]
    if not model.exists():
        return 0
    most = inspect_torch_program(map_file(model), model.name).rows_max
    return most if most is not None and most < DAEMON_ROWS_MAX else 0


def _parity(report: PublishReport) -> dict[str, Any]:
    return {
        "observations": report.observations,
        "rows": report.rows,
        "ties": report.ties,
        "golden_rows": report.golden_rows,
        "differences": report.differences,
    }
