"""Imports a zip of Stable-Baselines3 or sb3-contrib, with the statistics of its VecNormalize if there are any."""

from __future__ import annotations

from typing import Any

import msgspec

from pillion_artifacts.card.model_card import SCHEMA, Lineage, ModelCard, check_card
from pillion_artifacts.oci.manifest import digest_of
from pillion_artifacts.publishing.common.draft import Details, Draft, tool_versions
from pillion_artifacts.publishing.common.onnx_model import serialize
from pillion_artifacts.publishing.sb3.archive import Sb3Archive, read_archive
from pillion_artifacts.publishing.sb3.policies import Sb3Graph, build_graph, family_of
from pillion_artifacts.publishing.sb3.reference import Sb3Reference
from pillion_artifacts.publishing.sb3.vec_normalize import Normaliser, read_normaliser


def import_sb3(data: bytes, what: str, details: Details, statistics: bytes | None = None) -> Draft:
    """Imports the policy of the zip `data`; `statistics` is the pickle of its VecNormalize. Errors start with `what`.

    No code of the zip or the pickle runs. Raises `InvalidSourceError`.
    """
    archive = read_archive(data, what)
    normaliser = None if statistics is None else read_normaliser(statistics, archive.observation, "VecNormalize")
    graph = build_graph(archive, normaliser)
    lineage = _lineage(archive, details.lineage, digest_of(data), normaliser)
    return Draft(
        model=serialize(graph.model),
        card=_card(graph, msgspec.structs.replace(details, lineage=lineage)),
        source=Sb3Reference(archive, graph, normaliser),
        centres={} if normaliser is None else {name: mean for name, (mean, _) in normaliser.statistics.items()},
        spreads={} if normaliser is None else {name: spread for name, (_, spread) in normaliser.statistics.items()},
    )


def _card(graph: Sb3Graph, details: Details) -> ModelCard:
    card = ModelCard(
        schema=SCHEMA,
        name=details.name,
        version=details.version,
        description=details.description or f"A policy trained with {details.lineage.algorithm}.",
        licence=details.licence,
        observation=graph.observation,
        outputs=[graph.action],
        distribution=graph.distribution,
        state=graph.state,
        preprocessing=graph.preprocessing,
        safe_action=details.safe_action,
        tolerance=details.tolerance,
        environment=details.environment,
        metrics=details.metrics,
        lineage=details.lineage,
        contributors=details.contributors,
    )
    check_card(card)
    return card


def _lineage(archive: Sb3Archive, given: Lineage, source: str, normaliser: Normaliser | None) -> Lineage:
    versions = tool_versions("torch")
    if archive.version:
        versions["stable-baselines3"] = archive.version
    return msgspec.structs.replace(
        given,
        algorithm=given.algorithm or _algorithm(archive),
        timesteps=given.timesteps or _whole(archive.data.get("num_timesteps")),
        seed=given.seed or _whole(archive.data.get("seed")),
        source=source,
        normaliser="" if normaliser is None else normaliser.digest,
        tool_versions=versions,
    )


def _algorithm(archive: Sb3Archive) -> str:
    """The algorithm, by fields that only it saves: algorithms of a family may share the class of policies."""
    if archive.policy_class.startswith("stable_baselines3.common.policies"):
        if "cg_max_steps" in archive.data:
            return "TRPO"
        return "PPO" if "clip_range_vf" in archive.data or "n_epochs" in archive.data else "A2C"
    return family_of(archive).algorithms.partition(",")[0]


def _whole(value: Any) -> int:
    return value if isinstance(value, int) else 0
