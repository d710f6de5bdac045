"""What agentflow was installed to need, and what is installed: read from the metadata of packages, nothing is imported.

Version ranges are judged here and not by the package `packaging`, which a runtime need not have.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import sys

import msgspec

_REQUIREMENT = re.compile(r"\s*([A-Za-z0-9._-]+)\s*(?:\[[^]]*\])?\s*\(?([^;()]*)\)?\s*(?:;(.*))?")
_EXTRA = re.compile(r"""extra\s*==\s*['"]([^'"]+)['"]""")
_PLATFORM = re.compile(r"""sys_platform\s*(==|!=)\s*['"]([^'"]+)['"]""")
_CLAUSE = re.compile(r"\s*(===|==|!=|<=|>=|~=|<|>)\s*([^\s,]+)\s*")
_VERSION = re.compile(
    r"v?(\d+(?:\.\d+)*)(?:[-_.]?(a|b|c|rc|alpha|beta|pre|preview)[-_.]?(\d*))?(\.?post\d+)?(\.?dev\d+)?.*"
)
_MODULES = {"PyYAML": "yaml", "common-expression-language": "cel"}
_PARTS_MAX = 6


class Requirement(msgspec.Struct, frozen=True):
    """One package that agentflow names.

    Attributes:
        package: Its name.
        range: Of its versions; empty: any.
        extra: The extra that brings it; empty: always there.
    """

    package: str
    range: str
    extra: str

    @property
    def module(self) -> str:
        """The module that it brings."""
        named = _MODULES.get(self.package)
        is_of_many = self.package.startswith("opentelemetry-")  # one namespace, many packages
        return named or self.package.replace("-", "." if is_of_many else "_")

    @property
    def installed(self) -> str | None:
        """The version that can be imported; None: there is none."""
        try:
            version = importlib.metadata.version(self.package)
            found = importlib.util.find_spec(self.module)
        except (importlib.metadata.PackageNotFoundError, ImportError, ValueError):
            return None
        return None if found is None else version

    @property
    def problem(self) -> str:
        """What is wrong with what is installed; empty: nothing."""
        installed = self.installed
        if installed is None:
            return f"{self.package} is not installed"
        return "" if is_within(installed, self.range) else f"{self.package} is {installed}"


def requirements_of(package: str) -> list[Requirement]:
    """Return what a package needs on this platform; empty where it is not installed as a package."""
    try:
        lines = importlib.metadata.requires(package) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    found = []
    for line in lines:
        match = _REQUIREMENT.fullmatch(line)
        if match is None:
            continue
        marker = match[3] or ""
        extra, platform = _EXTRA.search(marker), _PLATFORM.search(marker)
        if platform is not None and (sys.platform == platform[2]) is not (platform[1] == "=="):
            continue
        found.append(Requirement(match[1], match[2].strip(), extra[1] if extra is not None else ""))
    return found


def is_within(version: str, range_: str) -> bool:
    """Whether a version is in a range such as ``>=0.19,<1``; what cannot be judged is."""
    own = _parts(version)
    if own is None:
        return True
    return all(_fits(own, version, operator, bound) for operator, bound in _CLAUSE.findall(range_))


def _fits(own: tuple[int, ...], version: str, operator: str, bound: str) -> bool:
    if operator == "===":
        return version == bound
    is_prefix = bound.endswith(".*")
    other = _parts(bound.removesuffix(".*"))
    if other is None:
        return True
    if operator == "~=":
        release = bound.count(".")
        return own >= other and list(own[:release]) == list(other[:release])
    if is_prefix:
        digits = bound.removesuffix(".*").count(".") + 1
        return (list(own[:digits]) == list(other[:digits])) is (operator == "==")
    return {
        "==": own == other,
        "!=": own != other,
        "<=": own <= other,
        ">=": own >= other,
        # PEP 440: a pre-release of the bound itself is not below it.
        "<": own < other and not (own[-2] < 0 and own[:_PARTS_MAX] == other[:_PARTS_MAX]),
        ">": own > other,
    }[operator]


def _parts(version: str) -> tuple[int, ...] | None:
    """Return a version as numbers that compare as versions do: the release, then (kind, number) of a pre-release."""
    match = _VERSION.fullmatch(version.strip())
    if match is None:
        return None
    release = [int(part) for part in match[1].split(".")][:_PARTS_MAX]
    release += [0] * (_PARTS_MAX - len(release))
    if match[2]:
        kind = {"a": -3, "alpha": -3, "b": -2, "beta": -2}.get(match[2], -1)
        return (*release, kind, int(match[3] or 0))
    return (*release, -4 if match[5] else 1 if match[4] else 0, 0)
