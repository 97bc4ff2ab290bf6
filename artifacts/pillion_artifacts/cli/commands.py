"""The group `pillion artifact`. Its commands import the store, and whatever else they need, when they run."""

from __future__ import annotations

from typing import Final

import click

from pillion.cli_support import Failure, PillionGroup, missing_package
from pillion_artifacts.cli.aliases import alias, pin, rollback, unpin
from pillion_artifacts.cli.maintenance import fsck, gc
from pillion_artifacts.cli.publish import migrate, publish
from pillion_artifacts.cli.remotes import export_file, import_file, pull, push
from pillion_artifacts.cli.trust import keygen, sign, verify
from pillion_artifacts.cli.versions import diff, history, list_versions, show

_EXTRA_OF: Final = {
    "securesystemslib": "sign",
    "cryptography": "sign",
    "obstore": "s3",
    **dict.fromkeys(
        ["gymnasium", "onnx", "onnxscript", "sb3_contrib", "skl2onnx", "stable_baselines3", "torch"], "publish"
    ),
}
"""The extra that installs a package which not every command needs."""


def explain(error: Exception) -> Failure | None:
    """Returns the failure that `error` means; None if it is a bug."""
    if missing := missing_package(error, _EXTRA_OF, "daemon"):
        return missing
    from pillion_artifacts.errors import ArtifactError

    return Failure(str(error), error.exit_code) if isinstance(error, ArtifactError) else None


@click.group(cls=PillionGroup, explain=explain)
def artifact() -> None:
    """Publish, verify, sign and move policies in a store.

    \b
    REF is one of
      NAME                the newest release
      NAME@v1.2.3         that version
      NAME@>=1.2,<2       the newest version of a range, also as NAME@1.2.x
      NAME@ALIAS          the version that an alias points at
      NAME@sha256:DIGEST  the version with that digest
    """


for command in (
    publish, migrate, list_versions, show, diff, history, alias, rollback, pin, unpin, gc, fsck, verify, keygen, sign,
    export_file, import_file, push, pull,
):  # fmt: skip
    artifact.add_command(command)
