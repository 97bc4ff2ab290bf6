"""Several policies in the settings: what each takes over, which layer names them, and the errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pilliond.errors import SettingsError
from pilliond.limits import POLICIES_MAX
from pilliond.settings.schema import Settings, check_memory
from tests.daemon.settings.test_settings import load

TWO = '[[policies]]\npolicy = "left"\n[[policies]]\npolicy = "right@stable"\n'


def served(settings: Settings) -> list[str]:
    return [own.store.policy for own in settings.served()]


def test_without_entries_the_only_policy_has_the_settings_of_the_daemon(tmp_path: Path) -> None:
    settings = load(tmp_path, '[store]\npolicy = "walker"\n[limits]\nrows_max = 4\n')
    assert settings.served() == [settings]
    assert served(settings) == ["walker"]


def test_an_entry_takes_over_every_key_that_it_leaves_out(tmp_path: Path) -> None:
    text = (
        '[limits]\nrows_max = 8\nstates_mb_max = 3\nsessions_max = 5\n[engine]\nthreads = 2\n[store]\npath = "/s"\n'
        f'[staging]\ncertificate = "exact"\n{TWO}[policies.limits]\nrows_max = 16\n[policies.engine]\nstrict = true\n'
        "[policies.versions]\nold_max = 1\n[policies.shadow]\nring_mb = 2\n[policies.auto_rollback]\nwatch_s = 1\n"
    )
    left, right = load(tmp_path, text).served()
    assert [(own.store.path, own.store.policy) for own in (left, right)] == [("/s", "left"), ("/s", "right@stable")]
    assert [(own.limits.rows_max, own.limits.states_mb_max) for own in (left, right)] == [(8, 3), (16, 3)]
    assert [(own.engine.threads, own.engine.strict) for own in (left, right)] == [(2, False), (2, True)]
    assert [own.versions.old_max for own in (left, right)] == [2, 1]
    assert [own.shadow.ring_mb for own in (left, right)] == [32, 2]
    assert [own.auto_rollback.watch_s for own in (left, right)] == [300.0, 1.0]
    assert all(own.staging.certificate == "exact" and own.limits.sessions_max == 5 for own in (left, right))
    assert not left.policies


def test_the_highest_layer_that_names_policies_decides_all_of_them(tmp_path: Path) -> None:
    one = {"PILLION_STORE__POLICY": "one"}
    several: dict[str, Any] = {"policies": [{"policy": "a"}, {"policy": "b"}]}
    assert served(load(tmp_path, TWO)) == ["left", "right@stable"]
    assert served(load(tmp_path, TWO, one)) == ["one"]
    assert served(load(tmp_path, TWO, one, **several)) == ["a", "b"]
    assert served(load(tmp_path, '[store]\npolicy = "one"\n', **several)) == ["a", "b"]
    assert served(load(tmp_path, TWO, store={"policy": "flag"})) == ["flag"]
    assert served(load(tmp_path, TWO, store={"path": "/elsewhere"}, policies=[])) == ["left", "right@stable"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f'{TWO}[[policies]]\npolicy = "left@1.0.0"\n', r"^policies\[2\]\.policy: .*left here and in policies\[0\]$"),
        (f'[store]\npolicy = "one"\n{TWO}', r"^store\.policy: expected either this or \[\[policies\]\], got both$"),
        ('[[policies]]\npolicy = ""\n', r"^policies\[0\]\.policy: expected NAME"),
        ("[[policies]]\n", r"^policies\[0\]: .*`policy`"),
        ("policies = 3\n", r"^policies: expected entries \[\[policies\]\], got 3$"),
        ("policies = [3]\n", r"^policies\[0\]: "),
        ('[policies]\npolicy = "x"\n', r"^policies: expected entries \[\[policies\]\]"),
        (f"{TWO}nonsense = 1\n", r"^policies\[1\]: .*`nonsense`"),
        (f"{TWO}[policies.limits]\nsessions_max = 3\n", r"^policies\[1\]\.limits: .*`sessions_max`"),
        (f"{TWO}[policies.limits]\nrows_max = 0\n", r"^policies\[1\]\.limits: rows_max: expected 1 to 4096, got 0$"),
        (f"{TWO}[policies.engine]\nthreads = 0\n", r"^policies\[1\]\.engine: threads: expected 1 to 256, got 0$"),
        (f"[limits]\nrows_max = 0\n{TWO}", r"^limits: rows_max: expected 1 to 4096, got 0$"),
        ("[limits]\npolicies_mb_max = 0\n", "policies_mb_max: expected at least 1, got 0$"),
        (
            "".join(f'[[policies]]\npolicy = "p{number}"\n' for number in range(POLICIES_MAX + 1)),
            f"^policies: expected at most {POLICIES_MAX}, got {POLICIES_MAX + 1}$",
        ),
    ],
)
def test_an_error_names_the_entry(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        load(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_the_variable_of_an_entry_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"^policies: expected entries"):
        load(tmp_path, environment={"PILLION_POLICIES__POLICY": "left"})


def test_the_sum_of_what_the_policies_may_take_is_bounded(tmp_path: Path) -> None:
    bounds = (
        "[limits]\npolicies_mb_max = 100\nrows_max = 100\nqueue_rows_max = 900\nstates_mb_max = 10\nslots_mb_max = 5\n"
        "[versions]\nold_mb_max = 20\n[shadow]\nring_mb = 3\n"
    )
    settings = load(tmp_path, f"{bounds}{TWO}[policies.limits]\nstates_mb_max = 20\n")
    # Each: 1,000 rows, states, slots, old versions and the ring.
    check_memory(settings, [10_000, 4_000])
    two_batches = load(tmp_path, f"{bounds}[engine]\ndepth = 2\n{TWO}[policies.limits]\nstates_mb_max = 20\n")
    with pytest.raises(SettingsError, match=r"at least 102, .* \(left 49, right@stable 53\)"):
        check_memory(two_batches, [10_000, 4_000])
    two_devices = '[engine]\ndevice = ["cpu", "cpu"]\n'
    with pytest.raises(SettingsError, match=r"at least 102, "):
        check_memory(
            load(tmp_path, f"{bounds}{two_devices}{TWO}[policies.limits]\nstates_mb_max = 20\n"), [10_000, 4_000]
        )
    # A bound for a cache that there is not takes nothing.
    check_memory(
        load(tmp_path, f"{bounds}[engine]\ncache_mb_max = 7\n{TWO}[policies.limits]\nstates_mb_max = 20\n"),
        [10_000, 4_000],
    )
    cache = "[engine]\ncache_mb_max = 7\ncache_rows_max = 1\n"
    with_cache = load(tmp_path, f"{bounds}{cache}{TWO}[policies.limits]\nstates_mb_max = 20\n")
    with pytest.raises(SettingsError, match=r"at least 114, .* \(left 55, right@stable 59\)"):
        check_memory(with_cache, [10_000, 4_000])
    with pytest.raises(SettingsError) as caught:
        check_memory(settings, [10_000, 5_000])
    assert str(caught.value) == (
        "limits.policies_mb_max: expected at least 101, which the policies may take by their limits "
        "(left 48, right@stable 53), got 100"
    )


def test_a_policy_alone_is_not_bounded_by_the_sum(tmp_path: Path) -> None:
    check_memory(load(tmp_path, "[limits]\npolicies_mb_max = 1\n"), [1_000_000])
