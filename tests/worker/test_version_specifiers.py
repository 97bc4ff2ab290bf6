"""Version specifiers mean what PEP 440 says."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from packaging.specifiers import SpecifierSet

from pillion_worker.errors import EngineError
from pillion_worker.python_policy.version_specifiers import fits

RELEASES = st.lists(st.integers(0, 3), min_size=1, max_size=3).map(lambda numbers: ".".join(map(str, numbers)))
PARTS = st.tuples(
    st.sampled_from(["", "1!"]),
    RELEASES,
    st.sampled_from(["", "a1", "b2", "rc1", "-alpha.1", "c"]),
    st.sampled_from(["", ".post1", "-2", "rev3"]),
    st.sampled_from(["", ".dev0", ".dev3", "dev"]),
).map("".join)
VERSIONS = st.tuples(PARTS, st.sampled_from(["", "+cpu", "+cu121.1"])).map("".join)
SPECIFIERS = st.one_of(
    st.tuples(st.sampled_from(["==", "!=", "<=", ">=", "<", ">", "== ", ">= "]), PARTS),
    st.tuples(st.sampled_from(["==", "!="]), RELEASES.map(lambda release: f"{release}.*")),
    st.tuples(st.just("~="), RELEASES.filter(lambda release: "." in release)),
).map("".join)


@example("1!0.post1", [">1!0.dev0"])
@example("1.post1.dev0", ["<1.0.post1"])
@example("1.dev0", ["<1.post1"])
@example("1a1", ["<1"])
@given(VERSIONS, st.lists(SPECIFIERS, max_size=3))
def test_they_agree_with_the_packaging_library(version: str, specifiers: list[str]) -> None:
    text = ", ".join(specifiers)
    assert fits(version, text) == SpecifierSet(text).contains(version, prereleases=True)


@pytest.mark.parametrize("specifiers", ["", " ", ">=1.2,<2", "~=1.4", "==1.*", "!=1.5", ">1.4,", "==1.4.2"])
def test_what_cards_say_is_understood(specifiers: str) -> None:
    assert fits("1.4.2", specifiers)


@pytest.mark.parametrize("specifiers", ["1.2", "=1.2", "===1.2", ">=", ">=one", "~=1", ">=1.*", "==1.2+cpu", ">=1 <2"])
def test_what_is_no_specifier_is_refused(specifiers: str) -> None:
    with pytest.raises(EngineError, match="expected"):
        fits("1.4.2", specifiers)


def test_a_package_whose_version_cannot_be_read_fits_no_requirement() -> None:
    assert fits("of today", "")
    with pytest.raises(EngineError, match="expected a version of PEP 440, got 'of today'"):
        fits("of today", ">=1")
