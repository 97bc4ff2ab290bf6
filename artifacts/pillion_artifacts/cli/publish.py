"""`pillion artifact publish` and `migrate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pillion.cli_support import examples, json_option, print_json
from pillion_artifacts.cli.options import PATH, change_options, open_store, store_option


@click.command(
    epilog=examples(
        "pillion artifact publish ./lander lunar-lander@v1.0.0",
        "pillion artifact publish model.zip walker@v0.3.0 --env Walker2d-v5 --licence MIT",
        "pillion artifact publish model.pt2 grasp@v1.0.0 --engine torch --card card.yaml",
    )
)
@click.argument("source", metavar="SOURCE", type=PATH)
@click.argument("name", metavar="NAME@vX.Y.Z")
@click.option(
    "--engine",
    type=click.Choice(["onnx", "torch"]),
    help="What will run a torch file: torch as it is, onnx after a conversion. Default: as the card says, else onnx.",
)
@click.option(
    "--card", metavar="FILE", type=PATH, help="Model card of an ONNX, torch or weights file: inputs and outputs."
)
@click.option(
    "--details", metavar="FILE", type=PATH, help="More fields for the card of a zip: metrics, lineage, contributors."
)
@click.option("--vecnormalize", metavar="FILE", type=PATH, help="VecNormalize statistics of a Stable-Baselines3 zip.")
@click.option("--preprocessor", metavar="FILE", type=PATH, help="ONNX graph to run before the model.")
@click.option("--action", metavar="OUTPUT", default="", help="Name of the output that is the action.")
@click.option(
    "--env",
    "environment",
    metavar="ENV",
    default="",
    help="Compare with the source on observations of ID or MODULE:ID.",
)
@click.option(
    "--observations",
    metavar="FILE",
    type=PATH,
    help="Compare with the source on the observations in a safetensors file.",
)
@click.option("--description", metavar="TEXT", default="", help="Description for the card.")
@click.option("--licence", metavar="SPDX", default="", help="Licence for the card, an SPDX identifier.")
@click.option(
    "--tolerance",
    metavar="NUMBER",
    type=click.FloatRange(min=0),
    help="Absolute and relative tolerance for the card.",
)
@click.option(
    "--allow-torchscript",
    "allows_torchscript",
    is_flag=True,
    help="Accept TorchScript, which may run code when it is read.",
)
@click.option(
    "--allow-code",
    "allowed_code",
    metavar="PACKAGE",
    multiple=True,
    help="Run a Python policy of this installed package here, for its golden pairs; repeatable.",
)
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
    engine: str | None,
    allowed_code: tuple[str, ...],
    **options: Any,
) -> None:
    """Publish a policy as a new version.

    SOURCE is a folder or a file. A folder holds model_card.yaml and the model of its engine (model.onnx, model.pt2,
    model.torchscript or model.safetensors), and may hold golden.safetensors, preprocessor.onnx, preprocessor.json and
    tuned.json. A file is made into such a folder: ONNX, a zip of Stable-Baselines3 or sb3-contrib, torch.export (.pt2),
    TorchScript, or the weights (.safetensors) of a Python policy that --card describes. Reading a file runs no code in
    it, unless --allow-torchscript or --allow-code is given. The published model must act as its source does.

    A published version never changes.
    """
    from pillion_artifacts.cli.publication import publish_source

    chosen = {**options, "statistics": vecnormalize, "engine": engine or "", "allowed_code": list(allowed_code)}
    published = publish_source(open_store(store), source, name, chosen, by, reason)
    if as_json:
        print_json(published)
    else:
        print(published)


@click.command()
@click.argument("card", metavar="CARD", type=PATH)
@click.option("--out", metavar="FILE", type=PATH, help="Output file; default: standard output.")
@json_option
def migrate(card: Path, out: Path | None, as_json: bool) -> None:
    """Convert a model card to the current schema.

    CARD is a model card of any schema. Published versions keep the card that they were published with.
    """
    from pillion_artifacts.cli.publication import migrate_file

    migrated = migrate_file(card, out)
    if as_json:
        print_json(migrated)
    elif out is None:
        print(migrated.text, end="")
    else:
        print(f"{out}: schema {migrated.schema}")
