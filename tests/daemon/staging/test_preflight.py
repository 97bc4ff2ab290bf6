"""What a card's engine would run is refused unless the settings allow it."""

from __future__ import annotations

import tomllib

import pytest

from pillion_artifacts.card.model_card import EngineCard
from pillion_artifacts.verify.trust_policy import TrustPolicy
from pilliond.staging.preflight import why_code_refused

PYTHON = EngineCard(kind="python", entry_point="my_policy:make", distribution="My.Policy")


@pytest.mark.parametrize("kind", ["onnx", "torch"])
def test_what_brings_no_code_needs_no_setting(kind: str) -> None:
    assert why_code_refused(EngineCard(kind=kind), TrustPolicy()) == ""  # type: ignore[arg-type] # one of its literals


def test_torchscript_needs_its_setting() -> None:
    engine = EngineCard(kind="torchscript")
    assert why_code_refused(engine, TrustPolicy()) == "it is a TorchScript program, and trust.torchscript is false"
    assert why_code_refused(engine, TrustPolicy(torchscript=True)) == ""


def test_a_python_policy_needs_its_package_in_trust_code() -> None:
    expected = "engine.distribution: expected a package that trust.code allows"
    cure = "if you trust it, set"
    none = why_code_refused(PYTHON, TrustPolicy())
    assert none == f"{expected} (none), got 'My.Policy': {cure} trust.code = [\"My.Policy\"]"
    two = why_code_refused(PYTHON, TrustPolicy(code=["a", "b"]))
    assert two == f'{expected} (a, b), got \'My.Policy\': {cure} trust.code = ["a", "b", "My.Policy"]'
    for why in (none, two):
        # the setting that the message names, as it stands
        code = tomllib.loads(why.partition(f"{cure} ")[2])["trust"]["code"]
        assert why_code_refused(PYTHON, TrustPolicy(code=code)) == ""


@pytest.mark.parametrize("name", ["My.Policy", "my-policy", "MY_POLICY", "my.-_policy"])
def test_packages_are_compared_as_pypi_compares_them(name: str) -> None:
    assert why_code_refused(PYTHON, TrustPolicy(code=["other", name])) == ""


@pytest.mark.parametrize("name", ["my", "policy", "my-policy-2", "", "*"])
def test_another_package_is_none_of_them(name: str) -> None:
    assert why_code_refused(PYTHON, TrustPolicy(code=[name])) != ""
