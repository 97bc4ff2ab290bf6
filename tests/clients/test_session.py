"""The blocking client against a real daemon."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnxruntime
import pytest

import pillion
from pillion_artifacts import Artifact, Store
from pillion_protocol import TensorSpec, spec_hash
from pilliond.engine.sampling import next_seeds, sample_categorical, sample_diagonal_gaussian
from tests.clients.conftest import LOG_STD, WEIGHTS
from tests.harness import STORE, Daemon

OBSERVATION = np.array([0.1, 1.2, 0.0, -0.5, 0.05, 0.0, 0.0, 0.0], dtype=np.float32)


@pytest.fixture
def session(daemon: Daemon) -> Iterator[pillion.Session]:
    with pillion.connect(daemon.address) as session:
        yield session


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    return Store(STORE).load("lunar-lander")


@pytest.fixture(scope="module")
def model(artifact: Artifact) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(artifact.model, providers=["CPUExecutionProvider"])


def observations(rows: int, seed: int = 0) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return np.random.default_rng(seed).normal(size=(rows, 8)).astype(np.float32)


def test_a_session_has_the_properties_of_the_served_policy(session: pillion.Session, artifact: Artifact) -> None:
    assert session.policy == "lunar-lander"
    assert session.version == "1.0.0"
    assert session.digest == artifact.digest
    assert session.spec == artifact.card.spec()
    assert session.spec.observation[0] == TensorSpec(
        "observation", "float32", [8], "Box", artifact.card.observation[0].low, artifact.card.observation[0].high
    )
    assert (session.limits.rows_max, session.limits.episodes_max) == (256, 64)


def test_an_episode_acts_as_the_model_does(session: pillion.Session, model: onnxruntime.InferenceSession) -> None:
    with session.begin(seed=7) as episode:
        for observation in observations(20):
            action = episode.act(observation)
            (expected,) = model.run(["action"], {"observation": observation[None]})
            assert action.shape == ()
            assert action.dtype == np.int64
            assert action == expected[0]


def test_the_last_outcome_states_what_ran_and_when(session: pillion.Session, artifact: Artifact) -> None:
    episode = session.begin(seed=7)
    with pytest.raises(pillion.PillionError, match="no act has been answered yet"):
        _ = episode.last
    action = episode.act(OBSERVATION)
    outcome = episode.last
    assert (outcome.version, outcome.digest, outcome.fallback) == ("1.0.0", artifact.digest, "")
    assert outcome.outputs.keys() == {"action"}
    assert np.array_equal(outcome.outputs["action"], action)
    timings = outcome.timings
    assert 0 <= timings.queued_ns <= timings.dispatched_ns <= timings.ran_ns <= timings.round_trip_ns
    assert timings.engine_ns == timings.ran_ns - timings.dispatched_ns
    assert timings.added_ns == timings.round_trip_ns - timings.engine_ns
    assert timings.batch_rows == 1
    assert timings.batch_close in ("all_submitted", "engine_free")
    assert episode.version == "1.0.0"


def test_every_act_has_a_greater_sequence_number(session: pillion.Session) -> None:
    episode = session.begin()
    sequences = []
    for _ in range(3):
        episode.act(OBSERVATION)
        sequences.append(episode.last.sequence)
    assert sequences == sorted(set(sequences))


def test_an_ended_episode_cannot_act_and_may_be_ended_again(session: pillion.Session) -> None:
    episode = session.begin()
    episode.end()
    episode.end()
    with pytest.raises(pillion.PillionError, match="this episode has ended"):
        episode.act(OBSERVATION)


def test_an_ended_episode_makes_room_for_another(session: pillion.Session) -> None:
    for _ in range(session.limits.episodes_max + 5):
        session.begin().end()
    held = [session.begin() for _ in range(session.limits.episodes_max)]
    with pytest.raises(pillion.RefusedError) as refused:
        session.begin()
    assert refused.value.code == "overloaded"
    held[0].end()
    session.begin()


def test_a_closed_session_raises_an_error_that_says_so(daemon: Daemon) -> None:
    session = pillion.connect(daemon.address)
    episode = session.begin()
    session.close()
    session.close()
    with pytest.raises(pillion.EpisodeLostError, match="closed here"):
        episode.act(OBSERVATION)
    episode.end()
    with pytest.raises(pillion.PillionError, match="connect again"):
        session.begin()
    with pytest.raises(pillion.PillionError, match="connect again"):
        session.ping()


def test_ping_returns_seconds(session: pillion.Session) -> None:
    assert session.ping() > 0


# Groups


def test_a_group_returns_one_action_for_each_row(session: pillion.Session, model: onnxruntime.InferenceSession) -> None:
    group = session.begin_many(5, seeds=[1, 2, 3, 4, 5])
    rows = observations(5)
    actions = group.act(rows)
    assert actions.shape == (5,)
    assert group.rows == 5
    assert np.array_equal(actions, model.run(["action"], {"observation": rows})[0])
    assert group.last.outputs["action"].shape == (5,)
    assert group.last.timings.batch_rows == 5


def test_a_group_needs_as_many_seeds_as_rows(session: pillion.Session) -> None:
    with pytest.raises(pillion.InvalidObservationError, match="seeds: expected 3, got 2"):
        session.begin_many(3, seeds=[1, 2])


@pytest.mark.parametrize("count", [0, 257])
def test_a_group_with_no_row_or_more_than_rows_max_is_refused(session: pillion.Session, count: int) -> None:
    with pytest.raises(pillion.RefusedError) as refused:
        session.begin_many(count)
    assert refused.value.code == "rows_mismatch"
    assert refused.value.actual == str(count)


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_outside_63_bits_is_refused_before_it_is_sent(session: pillion.Session, seed: int) -> None:
    with pytest.raises(pillion.InvalidObservationError, match=r"2\^63 - 1"):
        session.begin(seed=seed)
    group = session.begin_many(1)
    with pytest.raises(pillion.InvalidObservationError, match=r"2\^63 - 1"):
        group.act(OBSERVATION[None], episode_start=[True], seeds=[seed])


def test_a_mask_of_the_wrong_length_is_refused_before_it_is_sent(session: pillion.Session) -> None:
    group = session.begin_many(2)
    with pytest.raises(pillion.InvalidObservationError, match="episode_start"):
        group.act(observations(2), episode_start=[True])


def test_there_must_be_one_seed_for_each_row_that_starts(session: pillion.Session) -> None:
    group = session.begin_many(2)
    for mask, seeds in (([True, True], [1]), ([True, False], [1, 2]), ([False, False], [1]), (None, [1])):
        with pytest.raises(pillion.InvalidObservationError, match="seeds: expected"):
            group.act(observations(2), episode_start=mask, seeds=seeds)


# Sampling


def drawn(group: pillion.EpisodeGroup, steps: int) -> list[list[int]]:
    same = np.repeat(OBSERVATION[None], group.rows, axis=0)
    return [group.act(same, deterministic=False).tolist() for _ in range(steps)]


def logits_of(model: onnxruntime.InferenceSession, observation: np.ndarray[tuple[int], np.dtype[np.float32]]) -> list[float]:  # fmt: skip
    (logits,) = model.run(["logits"], {"observation": observation[None]})
    row: list[float] = logits[0].tolist()
    return row


def uncertain_observation(model: onnxruntime.InferenceSession) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """Returns an observation for which no action is nearly certain, so that a wrong draw shows."""
    candidates = observations(500, seed=3)
    (logits,) = model.run(["logits"], {"observation": candidates})
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    chosen: np.ndarray[tuple[int], np.dtype[np.float32]] = candidates[np.argmin(probabilities.max(axis=1))]
    return chosen


def test_a_sampled_action_is_the_one_that_the_protocols_formula_draws(
    session: pillion.Session, model: onnxruntime.InferenceSession
) -> None:
    observation = uncertain_observation(model)
    logits = np.array([logits_of(model, observation)])
    episode = session.begin(seed=7)
    result = [int(episode.act(observation, deterministic=False)) for _ in range(40)]
    expected = [
        int(sample_categorical(logits, np.array([7], np.uint64), np.array([step], np.uint64))[0][0])
        for step in range(40)
    ]
    assert result == expected
    assert len(set(result)) > 1


def test_the_same_seed_draws_the_same_actions_whatever_else_is_in_the_batch(
    session: pillion.Session, model: onnxruntime.InferenceSession
) -> None:
    observation = uncertain_observation(model)
    episode = session.begin(seed=7)
    alone = [int(episode.act(observation, deterministic=False)) for _ in range(30)]
    group = session.begin_many(9, seeds=[100, 101, 102, 103, 7, 104, 105, 106, 107])
    crowd = observations(9)
    crowd[4] = observation
    in_a_crowd = [int(group.act(crowd, deterministic=False)[4]) for _ in range(30)]
    assert alone == in_a_crowd
    assert len(set(alone)) > 1


def test_different_seeds_draw_different_actions(session: pillion.Session, model: onnxruntime.InferenceSession) -> None:
    observation = uncertain_observation(model)
    group = session.begin_many(2, seeds=[7, 8])
    result = np.array([group.act(np.stack([observation] * 2), deterministic=False) for _ in range(40)])
    assert result[:, 0].tolist() != result[:, 1].tolist()


def test_a_row_that_starts_again_with_its_seed_draws_its_actions_again(
    session: pillion.Session, model: onnxruntime.InferenceSession
) -> None:
    observation = np.stack([uncertain_observation(model)] * 2)
    group = session.begin_many(2, seeds=[7, 8])
    first = [group.act(observation, deterministic=False).tolist() for _ in range(20)]
    again = [group.act(observation, episode_start=[True, False], seeds=[7], deterministic=False).tolist()]
    again += [group.act(observation, deterministic=False).tolist() for _ in range(19)]
    assert [row for row, _ in again] == [row for row, _ in first]
    other = session.begin_many(1, seeds=[8])
    whole = [int(other.act(observation[:1], deterministic=False)[0]) for _ in range(40)]
    assert [row for _, row in (*first, *again)] == whole


def test_a_row_that_starts_without_a_seed_gets_one_derived_from_its_last(
    session: pillion.Session, model: onnxruntime.InferenceSession
) -> None:
    observation = uncertain_observation(model)[None]
    group = session.begin_many(1, seeds=[7])
    group.act(observation, episode_start=[True], deterministic=False)
    derived = [int(group.act(observation, episode_start=[step == 0], deterministic=False)[0]) for step in range(30)]
    named = session.begin_many(1, seeds=next_seeds(np.array([7], np.uint64)).tolist())
    assert derived == [int(named.act(observation, deterministic=False)[0]) for _ in range(30)]


def test_a_start_before_the_first_act_keeps_the_seed_of_begin(
    session: pillion.Session, model: onnxruntime.InferenceSession
) -> None:
    observation = uncertain_observation(model)[None]
    first, second = session.begin_many(1, seeds=[7]), session.begin_many(1, seeds=[7])
    marked = [int(first.act(observation, episode_start=[step == 0], deterministic=False)[0]) for step in range(30)]
    assert marked == [int(second.act(observation, deterministic=False)[0]) for _ in range(30)]


def test_without_a_seed_two_episodes_differ(session: pillion.Session, model: onnxruntime.InferenceSession) -> None:
    observation = uncertain_observation(model)
    runs = [
        [int(episode.act(observation, deterministic=False)) for _ in range(60)]
        for episode in (session.begin(), session.begin())
    ]
    assert runs[0] != runs[1]


# Several observations and outputs


@pytest.fixture
def driver(driver_daemon: Daemon) -> Iterator[pillion.Session]:
    with pillion.connect(driver_daemon.address) as session:
        yield session


DRIVE: dict[str, Any] = {
    "camera": np.array([[10, 20], [30, 40]], np.uint8),
    "speed": np.array([0.5, -0.25], np.float32),
    "gear": np.int64(2),
}


def test_an_act_takes_named_observations_and_returns_named_outputs(driver: pillion.Session) -> None:
    episode = driver.begin(seed=1)
    action = episode.act(DRIVE)
    features = np.array([10, 20, 30, 40, 0.5, -0.25, 2], np.float32)
    np.testing.assert_allclose(action, features @ WEIGHTS, rtol=1e-6)
    outputs = episode.last.outputs
    assert list(outputs) == ["action", "value", "log_probability"]
    assert outputs["value"].shape == ()
    assert outputs["value"] == np.float32(0.5)


def test_every_output_that_the_artifact_declares_is_returned(highway_daemon: Daemon) -> None:
    with pillion.connect(highway_daemon.address) as session:
        episode = session.begin(seed=1)
        actions = {int(episode.act(np.zeros((5, 5), np.float32), deterministic=False)) for _ in range(5)}
        assert actions <= set(range(5))
        outputs = episode.last.outputs
        assert list(outputs) == [tensor.name for tensor in session.spec.outputs] == [
            "action", "value", "log_probability",
        ]  # fmt: skip
        assert outputs["log_probability"] <= 0


def test_the_order_of_a_mapping_does_not_matter(driver: pillion.Session) -> None:
    episode = driver.begin(seed=1)
    assert np.array_equal(episode.act(dict(reversed(DRIVE.items()))), episode.act(DRIVE))


def test_a_group_takes_named_observations_with_a_row_axis(driver: pillion.Session) -> None:
    group = driver.begin_many(3)
    batch = {name: np.stack([value] * 3) for name, value in DRIVE.items()}
    actions = group.act(batch)
    assert actions.shape == (3, 2)
    assert group.last.outputs["value"].tolist() == [0.5, 0.5, 0.5]


def test_a_sampled_real_action_is_the_formulas_draw_clipped_to_its_bounds(driver: pillion.Session) -> None:
    episode = driver.begin(seed=7)
    mean = np.array([[10, 20, 30, 40, 0.5, -0.25, 2]], np.float32) @ WEIGHTS
    clipped = 0
    for step in range(30):
        action = episode.act(DRIVE, deterministic=False)
        drawn, density = sample_diagonal_gaussian(
            mean, LOG_STD[None], np.array([7], np.uint64), np.array([step], np.uint64)
        )
        np.testing.assert_allclose(action, np.clip(drawn[0], -1.0, 1.0), rtol=1e-5)
        np.testing.assert_allclose(episode.last.outputs["log_probability"], density[0], rtol=1e-5)
        clipped += bool((np.abs(drawn) > 1.0).any())
    assert 0 < clipped < 30


BAD_OBSERVATIONS: list[tuple[Any, str]] = [
    ({"camera": DRIVE["camera"], "speed": DRIVE["speed"]}, "expected observations camera, speed, gear"),
    ({**DRIVE, "radar": np.zeros(3)}, "got .*radar"),
    ({**DRIVE, "speed": np.zeros(3, np.float32)}, r"expected shape \[2\], got \[3\]"),
    ({**DRIVE, "speed": np.zeros((1, 2), np.float32)}, r"expected shape \[2\], got \[1, 2\]"),
    ({**DRIVE, "camera": np.zeros((2, 2), np.float32)}, "expected uint8, got float32"),
    ({**DRIVE, "camera": np.array([[0, 1], [2, 256]], np.uint16)}, "values that uint8 can hold, got uint16 values"),
    ({**DRIVE, "gear": 1.5}, "expected int64, got float64"),
    ({**DRIVE, "speed": [0.0, "fast"]}, "cannot be converted"),
    ({**DRIVE, "speed": [[0.0], [0.0, 1.0]]}, "cannot be converted to an array"),
    (np.zeros(2, np.float32), "expected a mapping of camera, speed, gear"),
    ({}, "got none"),
]


@pytest.mark.parametrize(("observation", "error"), BAD_OBSERVATIONS)
def test_an_observation_that_does_not_fit_the_spec_is_refused_before_it_is_sent(
    driver: pillion.Session, driver_daemon: Daemon, observation: Any, error: str
) -> None:
    episode = driver.begin(seed=1)
    answered = driver_daemon.metric("pillion_requests_total")
    with pytest.raises(pillion.InvalidObservationError, match=error):
        episode.act(observation)
    assert driver_daemon.metric("pillion_requests_total") == answered
    episode.act(DRIVE)


def test_a_dtype_that_only_loses_precision_is_converted(session: pillion.Session) -> None:
    episode = session.begin()
    assert episode.act(OBSERVATION.astype(np.float64)) == episode.act(OBSERVATION)
    assert episode.act(OBSERVATION.tolist()) == episode.act(OBSERVATION)
    assert episode.act([0] * 8) == episode.act(np.zeros(8, np.float32))


def test_an_observation_that_is_not_contiguous_is_sent_in_c_order(session: pillion.Session) -> None:
    rows = np.asfortranarray(observations(6))
    group = session.begin_many(6)
    assert np.array_equal(group.act(rows), group.act(np.ascontiguousarray(rows)))
    assert np.array_equal(group.act(rows[::-1]), group.act(rows)[::-1])


def test_an_observation_that_is_not_finite_is_refused_and_the_episode_continues(session: pillion.Session) -> None:
    episode = session.begin()
    for poison in (np.nan, np.inf, -np.inf):
        with pytest.raises(pillion.RefusedError) as refused:
            episode.act(np.where(np.arange(8) == 3, poison, OBSERVATION).astype(np.float32))
        assert refused.value.code == "non_finite"
    assert episode.act(OBSERVATION).shape == ()


def test_an_act_with_a_traceparent_is_answered(session: pillion.Session) -> None:
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    assert session.begin().act(OBSERVATION, traceparent=trace).shape == ()


def test_an_answer_stays_the_same_when_the_next_one_arrives(session: pillion.Session) -> None:
    group = session.begin_many(20)
    rows = observations(20)
    first = group.act(rows)
    kept = first.copy()
    group.act(-rows)
    assert np.array_equal(first, kept)
    first[0] = 3


# Several at once


def test_several_episodes_of_one_session_do_not_disturb_each_other(
    session: pillion.Session, model: onnxruntime.InferenceSession
) -> None:
    episodes = [session.begin(seed=seed) for seed in range(5)]
    for observation in observations(10):
        (expected,) = model.run(["action"], {"observation": observation[None]})
        assert [int(episode.act(observation)) for episode in episodes] == [int(expected[0])] * 5


def test_two_threads_with_two_sessions_get_their_own_answers(
    daemon: Daemon, model: onnxruntime.InferenceSession
) -> None:
    wrong: list[object] = []

    def drive(seed: int) -> None:
        try:
            with pillion.connect(daemon.address) as session:
                episode = session.begin(seed=seed)
                for observation in observations(200, seed):
                    (expected,) = model.run(["action"], {"observation": observation[None]})
                    if episode.act(observation) != expected[0]:
                        wrong.append(observation)
        except Exception as error:  # noqa: BLE001 - reported to the test
            wrong.append(error)

    threads = [threading.Thread(target=drive, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_closing_one_session_leaves_the_others_open(daemon: Daemon) -> None:
    with pillion.connect(daemon.address) as staying:
        episode = staying.begin()
        with pillion.connect(daemon.address) as leaving:
            leaving.begin().act(OBSERVATION)
        assert episode.act(OBSERVATION).shape == ()


# The handshake


@pytest.mark.parametrize(
    ("wanted", "code", "expected", "actual"),
    [
        ({"policy": "mars-lander"}, "policy_not_found", "lunar-lander", "mars-lander"),
        ({"version": ">=2"}, "version_not_found", ">=2", "1.0.0"),
        ({"version": "newest"}, "version_not_found", "comparators joined by commas, such as >=1.2,<2", "newest"),
        ({"spec_hash": bytes(32)}, "spec_mismatch", None, bytes(32).hex()),
        ({"fallback": "safe"}, "no_safe_action", "fallback error, last or zeros", "safe"),
        ({"client_name": "x" * 257}, "malformed", "the fields of hello", None),
    ],
)
def test_what_the_daemon_does_not_serve_is_refused_at_the_handshake(
    daemon: Daemon, wanted: dict[str, str], code: str, expected: str | None, actual: str | None
) -> None:
    with pytest.raises(pillion.RefusedError) as refused:
        pillion.connect(daemon.address, **wanted)  # type: ignore[arg-type]
    assert refused.value.code == code
    assert str(refused.value).startswith(f"{code}: ")
    if expected is not None:
        assert refused.value.expected == expected
    if actual is not None:
        assert refused.value.actual == actual


def test_another_protocol_version_is_refused(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pillion.conversation.PROTOCOL_VERSION", 2)
    with pytest.raises(pillion.RefusedError) as refused:
        pillion.connect(daemon.address)
    assert (refused.value.code, refused.value.expected, refused.value.actual) == ("unsupported_protocol", "1", "2")


def test_a_client_may_name_the_policy_version_range_and_spec_hash_that_it_expects(daemon: Daemon) -> None:
    with pillion.connect(daemon.address) as first:
        wanted = first._conversation.welcome
    assert wanted.spec_hash == spec_hash(wanted.spec)
    with pillion.connect(
        daemon.address, policy="lunar-lander", version=">=1.0,<2", spec_hash=wanted.spec_hash, client_name="a test"
    ) as session:
        assert session.begin().act(OBSERVATION).shape == ()


def test_an_unknown_fallback_is_refused_before_anything_is_sent(daemon: Daemon) -> None:
    with pytest.raises(ValueError, match="expected error, last, zeros, safe, got 'guess'"):
        pillion.connect(daemon.address, fallback="guess")


@pytest.mark.parametrize("address", ["smoke:///signal", "tcp://no-port", "/run/pillion.sock", ""])
def test_an_impossible_address_is_unavailable(address: str) -> None:
    with pytest.raises(pillion.UnavailableError, match="cannot connect"):
        pillion.connect(address)
