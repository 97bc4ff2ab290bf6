"""A Python policy of an environment of its own reads prompts: it gets the bytes, and decodes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import pillion
from tests.conftest import StartDaemon
from tests.daemon.support.policies.other_engines import publish_weights
from tests.harness import Daemon
from tests.worker.support.installed import PROMPTED, make_environment

SCALE = np.array([1.0, 10.0], np.float32)
PROMPTS = ["pick up the cup", "größer", "箱 を 開けて", "x"]
CARD = f"""
schema: 3
name: follower
version: 1.0.0
description: Counts characters and words.
licence: Apache-2.0
observation:
- {{name: prompt, dtype: uint8, shape: [32], space: Text, low: [1]}}
outputs:
- {{name: action, dtype: float32, shape: [2]}}
engine: {{kind: python, entry_point: "{PROMPTED.replace("-", "_")}:follow", distribution: {PROMPTED}}}
"""


def action_of(prompt: str) -> list[float]:
    return [float(len(prompt)), 10.0 * len(prompt.split())]


@pytest.fixture
def daemon(tmp_path: Path, start_daemon: StartDaemon) -> Daemon:
    """Serves the policy. It was certified with drawn texts: it would fail to decode anything else."""
    publish_weights(tmp_path / "store", "follower", "1.0.0", {"scale": SCALE}, CARD)
    python = make_environment(tmp_path / "environment", PROMPTED)
    settings = {"trust__code": PROMPTED, "engine__python": python}
    return start_daemon(policy="follower", store=tmp_path / "store", settings=settings)


def test_a_python_policy_reads_prompts_and_never_sees_what_is_no_text(daemon: Daemon) -> None:
    with pillion.connect(daemon.address) as session:
        group = session.begin_many(len(PROMPTS))
        assert group.act(PROMPTS).tolist() == [action_of(prompt) for prompt in PROMPTS]
        with session.begin() as episode:
            for prompt in PROMPTS:
                assert episode.act(prompt).tolist() == action_of(prompt)
            with pytest.raises(pillion.RefusedError, match="bad_text"):
                episode.act(np.full(32, 0xC3, np.uint8))
        assert group.act(PROMPTS[::-1]).tolist() == [action_of(prompt) for prompt in PROMPTS[::-1]]
    assert daemon.health()["policies"][0]["versions"][0]["worker"]["restarts"] == 0


def test_predict_takes_a_policy_of_one_text(daemon: Daemon) -> None:
    with pillion.Policy(daemon.address) as policy:
        assert policy.predict("left", deterministic=True)[0].tolist() == action_of("left")
        assert policy.predict(["a b", "c"], deterministic=True)[0].tolist() == [action_of("a b"), action_of("c")]
