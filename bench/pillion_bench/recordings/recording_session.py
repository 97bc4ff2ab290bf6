"""The recording session of `pillion bench record`: a daemon, an environment, a progress bar, a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

import pillion
from pillion import cli_support
from pillion_artifacts import Artifact, ArtifactError, Store
from pillion_artifacts.card.model_card import Tolerance
from pillion_bench.limits import RECORD_ANSWER_S_MAX
from pillion_bench.process.placement import parse_placement
from pillion_bench.process.target import open_target
from pillion_bench.recordings.record import RecordOptions, environment_for, find_policy, record
from pillion_bench.recordings.recording import Recording


def record_to_file(
    environment_id: str, out: Path | None, address: str, store: Path, policy: str, options: RecordOptions
) -> dict[str, Any]:
    """Records and saves episodes; returns the report of `pillion bench record`."""
    reference = policy or ("" if address else find_policy(store, environment_id))
    with open_target(address, store, reference, parse_placement("none")) as target:
        name, version = target.policy, target.version_range
        with pillion.connect(
            target.address, policy=name, version=version, client_name="pillion-bench", timeout_s=RECORD_ANSWER_S_MAX
        ) as session:
            artifact = served_artifact(store, session)
            environment = environment_for(artifact, environment_id)
            tolerance = artifact.card.tolerance if artifact else Tolerance()
            with progress_bar(options.episodes) as progress:
                recording = record(session, environment, tolerance, options, progress)
    path = out or Path(f"{recording.policy}-seed-{options.seed}.safetensors")
    recording.save(path)
    return summary(path, recording)


def served_artifact(store: Path, session: pillion.Session) -> Artifact | None:
    """Returns the served artifact, whose card has the environment, if the local store has it too; else None."""
    try:
        artifact = Store(store).load(f"{session.policy}@{session.version}")
    except ArtifactError:
        return None
    return artifact if artifact.digest == session.digest else None


def summary(path: Path, recording: Recording) -> dict[str, Any]:
    """Returns the report of a recording."""
    returns = recording.returns()
    return {
        "file": str(path),
        "bytes": path.stat().st_size,
        "policy": recording.policy,
        "version": recording.version,
        "digest": recording.digest,
        "environment": recording.environment.id,
        "seeds": recording.seed.tolist(),
        "episodes": recording.episodes,
        "steps": recording.steps,
        "seconds": round(recording.duration_s, 3),
        "return_mean": round(fmean(returns), 3),
        "returns": [round(value, 3) for value in returns],
    }


@contextmanager
def progress_bar(episodes: int) -> Iterator[Callable[[int, int], None]]:
    """Shows a bar if standard error is a terminal; yields a function of the episode's number and its steps so far."""
    from rich.progress import Progress, TextColumn

    columns = (*Progress.get_default_columns(), TextColumn("{task.fields[steps]} steps"))
    with cli_support.progress(*columns) as bar:
        task = bar.add_task("recording", total=episodes, steps=0)
        yield lambda episode, steps: bar.update(task, completed=episode, steps=steps)
