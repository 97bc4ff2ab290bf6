"""`pillion artifact`: the commands. What they need is imported when they run."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

if TYPE_CHECKING:
    from pillion_artifacts.store.store import Store

DEFAULT_STORE: Final = "/var/lib/pillion/store"

_NEEDS: Final = {
    "securesystemslib": "sign",
    "cryptography": "sign",
    "obstore": "s3",
    "aiohttp": "daemon",
    **dict.fromkeys(
        ["gymnasium", "onnx", "onnxscript", "sb3_contrib", "skl2onnx", "stable_baselines3", "torch"], "publish"
    ),
}
"""Which extra brings a package that not every command needs."""

Command = TypeVar("Command", bound=Callable[..., Any])


class ArtifactGroup(click.Group):
    """Turns what is known to go wrong into one line and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            failure = known_failure(error)
            if failure is None:
                raise
            raise failure from None


class Failure(click.ClickException):
    """What the `pillion` command prints as one line, and the code that it exits with."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # click declares it on the class and reads it from the instance


def known_failure(error: Exception) -> Failure | None:
    """The failure that `error` means; None where it is a bug."""
    if isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("pillion"):
        package = (error.name or "").partition(".")[0]
        extra = _NEEDS.get(package, "daemon")
        return Failure(f"{package} is not installed: pip install 'pillion[{extra}]'", os.EX_UNAVAILABLE)
    from pillion_artifacts.errors import ArtifactError

    return Failure(str(error), error.exit_code) if isinstance(error, ArtifactError) else None


def complete_reference(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """The references of the store that begin so, for the shell."""
    from pillion_artifacts.errors import ArtifactError

    try:
        store = open_store(Path(context.params.get("store") or DEFAULT_STORE))
        known = [f"{entry.title}@v{entry.version}" for entry in store.index().versions()]
        known += [f"{alias.policy}@{alias.alias}" for alias in store.aliases()]
    except ArtifactError:
        return []
    return sorted(name for name in [*known, *store.policies()] if name.startswith(incomplete))


def complete_policy(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """The policies of the store that begin so, for the shell."""
    return [name for name in complete_reference(context, parameter, incomplete) if "@" not in name]


def store_option(command: Command) -> Command:
    """The store that a command works on."""
    option = click.option(
        "--store",
        metavar="DIR",
        type=click.Path(path_type=Path),
        default=DEFAULT_STORE,
        envvar="PILLION_STORE__PATH",
        show_default=True,
        is_eager=True,
        help="The store.",
    )
    return option(command)


def change_options(command: Command) -> Command:
    """Who changes the store, and why: for the audit log."""
    by = click.option("--by", metavar="WHO", default="", help="For the audit log; else user and host.")
    reason = click.option("--reason", metavar="TEXT", default="", help="For the audit log.")
    return by(reason(command))


def reference_argument(name: str = "reference", **attributes: Any) -> Callable[[Command], Command]:
    """A reference, which the shell completes."""
    return click.argument(name, metavar="REF", shell_complete=complete_reference, **attributes)


_path = click.Path(path_type=Path)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def open_store(root: Path) -> Store:
    """The store at `root`, which need not be there yet."""
    from pillion_artifacts.store.store import Store

    return Store(root)


def show_json(value: Any) -> None:
    """Prints what msgspec can encode, as JSON for people and programs."""
    import msgspec

    print(json.dumps(msgspec.to_builtins(value), indent=2))


@click.group(cls=ArtifactGroup)
def artifact() -> None:
    """Publishes, verifies, signs, moves and collects policies in a store.

    REF is NAME (the newest release), NAME@v1.2.3, NAME@>=1.2,<2, NAME@1.2.x, NAME@ALIAS or NAME@sha256:DIGEST.
    """


@artifact.command(short_help="Publish a policy as a new version.")
@click.argument("source", metavar="SOURCE", type=click.Path(path_type=Path))
@click.argument("name", metavar="NAME@vX.Y.Z")
@click.option("--card", metavar="FILE", type=_path, help="What the inputs and outputs of an ONNX or torch file mean.")
@click.option(
    "--details", metavar="FILE", type=_path, help="More for the card of a zip: metrics, lineage, contributors."
)
@click.option("--vecnormalize", metavar="FILE", type=_path, help="The VecNormalize of a Stable-Baselines3 zip.")
@click.option("--preprocessor", metavar="FILE", type=_path, help="An ONNX graph to put in front.")
@click.option("--action", metavar="OUTPUT", default="", help="Which output is the action.")
@click.option("--env", "environment", metavar="ENV", default="", help="Compare on what is met in ID or MODULE:ID.")
@click.option("--observations", metavar="FILE", type=_path, help="Compare on the observations of a safetensors file.")
@click.option("--description", metavar="TEXT", default="", help="For the card.")
@click.option("--licence", metavar="SPDX", default="", help="For the card.")
@click.option("--tolerance", type=click.FloatRange(min=0), help="For the card: absolute and relative.")
@click.option("--allow-torchscript", "allows_torchscript", is_flag=True, help="TorchScript runs when it is read.")
@change_options
@store_option
@json_option
def publish(
    source: Path,
    name: str,
    by: str,
    reason: str,
    store: Path,
    as_json: bool,
    vecnormalize: Path | None,
    **options: Any,
) -> None:
    """Publishes SOURCE as NAME@vX.Y.Z, which then never changes.

    SOURCE is a folder that holds model.onnx and model_card.yaml, and may hold golden.safetensors, preprocessor.onnx,
    preprocessor.json and tuned.json. Or it is a file to make such a folder of: ONNX, a zip of Stable-Baselines3 or
    sb3-contrib, torch.export (.pt2) or TorchScript. Nothing in a file is executed; the model that is made of it has to
    act as it does.
    """
    from pillion_artifacts.cli.publish_command import publish_source

    given = {**options, "statistics": vecnormalize}
    published = publish_source(open_store(store), source, name, given, by, reason)
    if as_json:
        show_json(published)
    else:
        print(published)


@artifact.command(short_help="Write a card in the schema of today.")
@click.argument("card", metavar="CARD", type=_path)
@click.option("--out", metavar="FILE", type=_path, help="Else standard output.")
@json_option
def migrate(card: Path, out: Path | None, as_json: bool) -> None:
    """Writes CARD, a model card of any schema, in the schema of today. A version that is published keeps its own."""
    from pillion_artifacts.cli.publish_command import migrate_file

    migrated = migrate_file(card, out)
    if as_json:
        show_json(migrated)
    elif out is None:
        print(migrated.text, end="")
    else:
        print(f"{out}: schema {migrated.schema}")


@artifact.command("list", short_help="The versions of a store.")
@click.argument("policy", metavar="[POLICY]", default="", shell_complete=complete_policy)
@store_option
@json_option
def list_versions(policy: str, store: Path, as_json: bool) -> None:
    """The versions of POLICY, or of all policies, oldest first."""
    from pillion_artifacts.cli.listing import list_store, print_listing

    rows = list_store(open_store(store), policy)
    show_json(rows) if as_json else print_listing(rows)


@artifact.command(short_help="All that is known of a version.")
@reference_argument()
@store_option
@json_option
def show(reference: str, store: Path, as_json: bool) -> None:
    """All that is known of a version: its files, card, aliases, pins, signatures and history."""
    from pillion_artifacts.cli.listing import describe_version, print_description

    description = describe_version(open_store(store), reference)
    show_json(description) if as_json else print_description(description)


@artifact.command(short_help="What differs between two versions.")
@reference_argument("before")
@reference_argument("after")
@store_option
@json_option
def diff(before: str, after: str, store: Path, as_json: bool) -> None:
    """What differs between two versions: files, and the keys of their cards."""
    from pillion_artifacts.cli.diff import compare, print_differences

    differences = compare(open_store(store), before, after)
    show_json(differences) if as_json else print_differences(differences)


@artifact.command(short_help="The audit log.")
@click.argument("policy", metavar="[POLICY]", default="", shell_complete=complete_policy)
@store_option
@json_option
def history(policy: str, store: Path, as_json: bool) -> None:
    """Who changed what, when, why and from what: of POLICY, or of all."""
    from pillion_artifacts.cli.listing import print_history

    records = open_store(store).history(policy)
    show_json(records) if as_json else print_history(records)


@artifact.command(short_help="Point an alias at a version.")
@reference_argument("alias")
@click.argument("version", metavar="[VERSION]", default="")
@click.option(
    "--expect", metavar="VERSION", help="Where it must point now, 'none' for nowhere; else what it is found at."
)
@click.option("--remove", is_flag=True, help="Take the alias away.")
@change_options
@store_option
@json_option
def alias(
    alias: str,
    version: str,
    expect: str | None,
    remove: bool,
    by: str,
    reason: str,
    store: Path,
    as_json: bool,
) -> None:
    """Points NAME@ALIAS at VERSION (a version, a range, a digest or another alias); without VERSION says where it points.

    It moves only if it points where --expect says, or where it was found when the command began: of two who move it at
    once, one is told.
    """
    from pillion_artifacts.cli.listing import move_or_read_alias

    show_json_or_line(move_or_read_alias(open_store(store), alias, version, expect, remove, by, reason), as_json)


@artifact.command(short_help="Point an alias at what it pointed at before.")
@reference_argument("alias")
@change_options
@store_option
@json_option
def rollback(alias: str, by: str, reason: str, store: Path, as_json: bool) -> None:
    """Points NAME@ALIAS (NAME: its alias 'stable') at what it pointed at before; again: at what was before that."""
    from pillion_artifacts.store.aliases import roll_back_alias

    policy, _, name = alias.partition("@")
    show_json_or_line(roll_back_alias(open_store(store), policy, name or "stable", by=by, reason=reason), as_json)


@artifact.command(short_help="Keep a version from gc.")
@reference_argument()
@change_options
@store_option
@json_option
def pin(reference: str, by: str, reason: str, store: Path, as_json: bool) -> None:
    """Keeps a version from gc until it is unpinned."""
    from pillion_artifacts.store.pins import pin_version

    pinned = pin_version(open_store(store), reference, by=by, reason=reason)
    show_json(pinned) if as_json else print(f"{pinned.policy}@v{pinned.version} is pinned")


@artifact.command(short_help="Take a pin out.")
@reference_argument()
@change_options
@store_option
@json_option
def unpin(reference: str, by: str, reason: str, store: Path, as_json: bool) -> None:
    """Takes the pin of a version out."""
    from pillion_artifacts.store.pins import unpin_version

    unpinned = unpin_version(open_store(store), reference, by=by, reason=reason)
    show_json(unpinned) if as_json else print(f"{unpinned} is not pinned any more")


@artifact.command(short_help="Remove versions that nobody has a claim on.")
@click.option("--grace", metavar="DAYS", type=click.FloatRange(min=0), help="Keep what is younger; 30 where not given.")
@click.option(
    "--keep-newest",
    metavar="N",
    type=click.IntRange(min=0),
    default=1,
    show_default=True,
    help="Releases of each policy.",
)
@click.option("--dry-run", is_flag=True, help="Say what would go, and remove nothing.")
@change_options
@store_option
@json_option
def gc(grace: float | None, keep_newest: int, dry_run: bool, by: str, reason: str, store: Path, as_json: bool) -> None:
    """Removes the versions that are not aliased, were not before an alias moved, and are neither pinned, leased by a
    running daemon, young nor among the newest; and the blobs that nothing names any more.
    """
    from datetime import timedelta

    from pillion_artifacts.cli.listing import print_collection
    from pillion_artifacts.limits import GRACE_DAYS
    from pillion_artifacts.maintenance.garbage_collection import collect

    found = collect(
        open_store(store),
        grace=timedelta(days=GRACE_DAYS if grace is None else grace),
        keep_newest=keep_newest,
        dry_run=dry_run,
        by=by,
        reason=reason,
    )
    show_json({"dry_run": dry_run, **_fields(found)}) if as_json else print_collection(found, dry_run)


@artifact.command(short_help="Check every byte of versions.")
@reference_argument("references", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Every version, and the store as a whole.")
@click.option(
    "--key",
    "keys",
    metavar="FILE",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A public key that must have signed.",
)
@click.option("--threshold", metavar="N", type=click.IntRange(min=1), help="So many of the keys; all where not given.")
@click.option(
    "--trust",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The daemon's settings, for the rules in their [trust].",
)
@click.option("--html", metavar="FILE", type=click.Path(path_type=Path), help="Write the report as a web page too.")
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
    """Checks every byte of the versions that are named, or of all, and with --key or --trust who signed them. Exit code
    65 where one is not what was published, or not signed as asked.
    """
    from pillion_artifacts.cli.verification_report import verify_and_report
    from pillion_artifacts.verify.trust_policy import trust_of_keys, trust_of_settings

    if not references and not everything:
        raise click.UsageError("expected a REF, or --all")
    if keys and trust:
        raise click.UsageError("expected --key or --trust, got both")
    asked = trust_of_settings(trust) if trust else trust_of_keys(list(keys), threshold) if keys else None
    report = verify_and_report(open_store(store), references, everything, asked)
    finish_report(report, html, as_json)


@artifact.command(short_help="Make a pair of keys.")
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@json_option
def keygen(file: Path, as_json: bool) -> None:
    """Makes an Ed25519 pair: the private key in FILE, for you alone, the public one in FILE.pub.

    With PILLION_KEY_PASSPHRASE in the environment the private key is encrypted with it.
    """
    from pillion_artifacts.verify.keys import PASSPHRASE_VARIABLE, generate_keys, public_path

    identity = generate_keys(file, os.environ.get(PASSPHRASE_VARIABLE, ""))
    made = {"private": str(file), "public": str(public_path(file)), "key": identity}
    show_json(made) if as_json else print(f"{made['public']} {identity}")


@artifact.command(short_help="Sign a version.")
@reference_argument()
@click.option(
    "--key", metavar="FILE", required=True, help="The private key: a file, or a URI that securesystemslib knows."
)
@click.option("--public", metavar="FILE", type=click.Path(path_type=Path), help="The public key, where --key is a URI.")
@click.option(
    "--expires", metavar="DAYS", type=click.FloatRange(min=0, min_open=True), help="The signature counts so long."
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
    """Signs a version, after looking at every byte of it. The passphrase of the key is taken from PILLION_KEY_PASSPHRASE."""
    from datetime import timedelta

    from pillion_artifacts.verify import signing
    from pillion_artifacts.verify.keys import PASSPHRASE_VARIABLE, open_signer

    opened = open_store(store)
    signer = open_signer(key, public, os.environ.get(PASSPHRASE_VARIABLE, ""))
    expires_at = None if expires is None else opened.now() + timedelta(days=expires)
    signed = signing.sign(opened, reference, signer, expires_at=expires_at, by=by, reason=reason)
    show_json(signed) if as_json else print(f"{signed.policy}@v{signed.version} is signed by {signed.key}")


@artifact.command(short_help="Find, and mend, what is wrong with the store.")
@click.option("--repair", is_flag=True, help="Mend what the store holds twice, and clear leftovers away.")
@click.option("--quarantine", is_flag=True, help="With --repair: take damaged versions out of the index.")
@click.option("--html", metavar="FILE", type=click.Path(path_type=Path), help="Write the report as a web page too.")
@change_options
@store_option
@json_option
def fsck(repair: bool, quarantine: bool, html: Path | None, by: str, reason: str, store: Path, as_json: bool) -> None:
    """Looks at every byte of the store, and at what its files say of each other. Exit code 65 where harm remains."""
    from pillion_artifacts.cli.verification_report import repair_and_report, verify_and_report

    if quarantine and not repair:
        raise click.UsageError("--quarantine: expected --repair with it")
    if repair:
        report = repair_and_report(open_store(store), quarantine, by, reason)
    else:
        report = verify_and_report(open_store(store), (), everything=True)
    finish_report(report, html, as_json)


@artifact.command("export", short_help="Write versions into one file.")
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@reference_argument("references", nargs=-1, required=True)
@store_option
@json_option
def export_file(file: Path, references: tuple[str, ...], store: Path, as_json: bool) -> None:
    """Writes versions, and what was signed about them, into FILE: a tar that holds an OCI layout, for a machine without
    a network. Aliases and pins stay behind.
    """
    from pillion_artifacts.remotes.archive import ArchiveTarget

    with ArchiveTarget(file) as target:
        give_and_show(store, target, references, str(file), as_json)


@artifact.command("import", short_help="Take versions out of one file.")
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@reference_argument("references", nargs=-1)
@change_options
@store_option
@json_option
def import_file(file: Path, references: tuple[str, ...], by: str, reason: str, store: Path, as_json: bool) -> None:
    """Takes the versions that FILE holds (an OCI layout in a tar or in a folder), or those that REF... mean there.

    Each is looked at as if it were published here. All of them are taken, or none.
    """
    from pillion_artifacts.oci.layouts import FolderFiles, LayoutSource
    from pillion_artifacts.remotes.archive import ArchiveFiles

    if file.is_dir():
        take_and_show(store, LayoutSource(FolderFiles(file)), references, str(file), by, reason, as_json)
        return
    with ArchiveFiles(file) as files:
        take_and_show(store, LayoutSource(files), references, str(file), by, reason, as_json)


plain_http_option = click.option("--plain-http", is_flag=True, help="Speak to a registry without TLS.")


@artifact.command(short_help="Give versions to a registry or a bucket.")
@click.argument("url", metavar="URL")
@reference_argument("references", nargs=-1, required=True)
@plain_http_option
@store_option
@json_option
def push(url: str, references: tuple[str, ...], plain_http: bool, store: Path, as_json: bool) -> None:
    """Gives versions, and what was signed about them, to oci://HOST/PREFIX or s3://BUCKET/PREFIX.

    A policy is the repository PREFIX/NAME of a registry, a version its tag vX.Y.Z.
    """
    from pillion_artifacts.remotes.s3 import BucketTarget, is_bucket

    if is_bucket(url):
        give_and_show(store, BucketTarget(url), references, url, as_json)
        return
    from pillion_artifacts.remotes.registry import Registry

    with Registry(url, plain_http=plain_http) as registry:
        give_and_show(store, registry, references, url, as_json)


@artifact.command(short_help="Take versions from a registry or a bucket.")
@click.argument("url", metavar="URL")
@reference_argument("references", nargs=-1)
@plain_http_option
@change_options
@store_option
@json_option
def pull(
    url: str, references: tuple[str, ...], plain_http: bool, by: str, reason: str, store: Path, as_json: bool
) -> None:
    """Takes the versions that REF... mean at oci://HOST/PREFIX or s3://BUCKET/PREFIX; of a bucket, all where none is given.

    Each is looked at as if it were published here. All of them are taken, or none.
    """
    from pillion_artifacts.oci.layouts import LayoutSource
    from pillion_artifacts.remotes.s3 import BucketFiles, is_bucket

    if is_bucket(url):
        take_and_show(store, LayoutSource(BucketFiles(url)), references, url, by, reason, as_json)
        return
    from pillion_artifacts.remotes.registry import Registry

    with Registry(url, plain_http=plain_http) as registry:
        take_and_show(store, registry, references, url, by, reason, as_json)


def give_and_show(store: Path, target: Any, references: tuple[str, ...], where: str, as_json: bool) -> None:
    """Gives versions to a target, with a bar, and says what was given."""
    from pillion_artifacts.cli.listing import print_transfer
    from pillion_artifacts.cli.progress import bytes_bar
    from pillion_artifacts.remotes.transfer import export_size, export_versions

    opened = open_store(store)
    with bytes_bar(f"to {where}", export_size(opened, list(references))) as progress:
        transfer = export_versions(opened, target, list(references), progress)
    show_json(transfer) if as_json else print_transfer(transfer, f"to {where}")


def take_and_show(
    store: Path, source: Any, references: tuple[str, ...], where: str, by: str, reason: str, as_json: bool
) -> None:
    """Takes versions from a source, with a bar, and says what was taken."""
    from pillion_artifacts.cli.listing import print_transfer
    from pillion_artifacts.cli.progress import bytes_bar
    from pillion_artifacts.remotes.transfer import import_versions

    with bytes_bar(f"from {where}", None) as progress:
        transfer = import_versions(
            open_store(store), source, list(references), where=where, by=by, reason=reason, progress=progress
        )
    show_json(transfer) if as_json else print_transfer(transfer, f"from {where}")


def finish_report(report: Any, html: Path | None, as_json: bool) -> None:
    """Prints a report, and ends with 65 where something is wrong."""
    from pillion_artifacts.cli.verification_report import print_report, report_as_json, write_html

    if html is not None:
        write_html(report, html)
    if as_json:
        print(json.dumps(report_as_json(report), indent=2))
    else:
        print_report(report)
    if not report.intact:
        raise click.exceptions.Exit(os.EX_DATAERR)


def show_json_or_line(value: Any, as_json: bool) -> None:
    """Prints an alias."""
    if as_json:
        show_json(value)
    else:
        print(f"{value.policy}@{value.alias} -> {value.version or 'nothing'} {value.digest}".rstrip())


def _fields(value: Any) -> dict[str, Any]:
    import msgspec

    fields = msgspec.to_builtins(value)
    assert isinstance(fields, dict)
    return fields
