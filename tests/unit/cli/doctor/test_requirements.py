"""Version ranges mean what pip means by them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from agentflow.cli.doctor.requirements import Requirement, is_within, requirements_of

numbers = st.lists(st.integers(0, 3), min_size=1, max_size=4).map(lambda parts: ".".join(map(str, parts)))
suffixes = st.sampled_from(["", "", "", "a1", "b2", "rc1", ".post1", ".dev1"])
versions = st.builds(lambda release, suffix: release + suffix, numbers, suffixes)
clauses = st.one_of(
    st.builds(lambda operator, version: operator + version, st.sampled_from(["==", "!=", "<=", ">="]), versions),
    st.builds(lambda operator, version: operator + version, st.sampled_from(["<", ">"]), numbers),
    st.builds(lambda operator, version: f"{operator}{version}.*", st.sampled_from(["==", "!="]), numbers),
)


@given(version=versions, clause=st.lists(clauses, min_size=1, max_size=2).map(",".join))
def test_a_range_holds_what_pip_says_it_holds(version, clause):
    # A post-release of a bound is not above it for pip; no range of ours has such a bound.
    if ">" in clause.replace(">=", "") and "post" in version:
        return
    assert is_within(version, clause) == SpecifierSet(clause).contains(Version(version), prereleases=True)


@pytest.mark.parametrize(
    ("version", "range_", "is_held"),
    [
        ("0.3.29", "==0.3.29", True),
        ("0.3.30", "==0.3.29", False),
        ("0.66b2", "<1,>=0.64b0", True),
        ("0.63b1", "<1,>=0.64b0", False),
        ("2.0rc1", "<2", False),
        ("1.4.5", "~=1.4.2", True),
        ("1.5", "~=1.4.2", False),
        ("1.9", "~=1.4", True),
        ("strange", ">=1", True),
        ("1.0", "", True),
    ],
)
def test_ranges_of_this_project_and_others(version, range_, is_held):
    assert is_within(version, range_) is is_held


def test_what_this_project_needs_is_read_with_its_extras():
    found = {(one.package, one.extra): one for one in requirements_of("agentflow")}
    assert found["rocksdict", ""].range.startswith("==")
    assert found["aiokafka", "kafka"].problem == ""
    assert found["PyYAML", ""].module == "yaml"
    assert found["opentelemetry-sdk", "kafka"].module == "opentelemetry.sdk"
    assert [one.problem for one in found.values() if not one.extra] == [""] * 9


def test_what_is_not_installed_or_too_old_is_a_problem():
    assert Requirement("no-such-package", ">=1", "").problem == "no-such-package is not installed"
    assert Requirement("msgspec", ">=99", "").problem.startswith("msgspec is 0.")
    assert requirements_of("no-such-package") == []
