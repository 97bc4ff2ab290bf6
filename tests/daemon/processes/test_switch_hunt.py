"""A daemon that is killed at any step of staging and switching then serves its route; `make hunt-switches` kills more."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from tests.daemon.tools.switch_hunt import (
    DELAY_S_MAX,
    MOMENTS,
    STAGE_STEPS,
    Scene,
    a_scene,
    kill_at,
    kill_at_any_moment,
)


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    """One daemon after another in one store: what a kill leaves behind is there at the next."""
    with a_scene() as scene:
        yield scene


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("victim", ["control", "serving"])
def test_after_a_kill_at_any_step_the_route_is_served_the_store_is_sound_and_nothing_is_left(
    scene: Scene, victim: str, moment: str
) -> None:
    kill_at(scene, moment, victim)


@pytest.mark.parametrize("step", STAGE_STEPS)
def test_a_staging_process_that_is_killed_at_any_step_fails_alone(scene: Scene, step: str) -> None:

    kill_at(scene, step, "staging")


@pytest.mark.parametrize("seed", range(2))
def test_the_same_holds_at_any_moment(scene: Scene, seed: int) -> None:
    draw = random.Random(seed)
    for victim, verb in (("control", "switch"), ("serving", draw.choice(["stage", "switch", "rollback", "route"]))):
        kill_at_any_moment(scene, draw.random() * DELAY_S_MAX, verb, victim)
