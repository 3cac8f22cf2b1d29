"""requirements.lock, as far as it can be judged offline; `make audit` asks for the rest."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
LINES = [
    line
    for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]
LOCKED = {canonicalize_name(name): version for name, version in (li.split("==") for li in LINES)}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

#: Versions that must never be installed, and where that is said.
BAD = {
    "lightning": (["2.6.2", "2.6.3"], "GHSA-w37p-236h-pfx3: they steal credentials"),
    "torch": (["2.5.1"], "GHSA-53q9-r3pm-6pq6: up to it, weights_only=True is no protection"),
}

#: Strong copyleft, and what forbids some uses. A library that GCC's runtime is linked into may be
#: used by anything, and says so by an exception.
_FORBIDDEN = re.compile(
    r"(?<!L)A?GPL|GNU (Affero )?General Public|SSPL|BUSL|Commons Clause|non-?commercial|\bNC\b"
    r"|proprietary|research (use )?only",
    re.IGNORECASE,
)
_EXCEPTED = re.compile(r"GPL-3\.0(-only|-or-later)?(-with-| WITH )GCC-exception[\d.-]*", re.I)


def direct() -> list[Requirement]:
    """What pyproject.toml asks for, with all that the lock is made of."""
    extras = PROJECT["optional-dependencies"]
    asked = [*PROJECT["dependencies"]]
    for text in extras["dev"]:
        requirement = Requirement(text)
        asked += [line for extra in requirement.extras for line in extras[extra]]
        asked += [] if requirement.name == PROJECT["name"] else [text]
    return [Requirement(text) for text in asked]


def test_every_line_is_one_exact_version() -> None:
    for line in LINES:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==\d[A-Za-z0-9.]*", line), line
    assert len(LOCKED) == len(LINES)


def test_what_the_project_asks_for_is_locked_at_a_version_that_fits() -> None:
    for requirement in direct():
        version = LOCKED[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} but {version}"


@pytest.mark.parametrize("name", BAD)
def test_no_bad_version_is_locked_or_admitted(name: str) -> None:
    versions, why = BAD[name]
    (asked,) = [requirement for requirement in direct() if requirement.name == name]
    for version in versions:
        assert LOCKED[name] != version, why
        assert not asked.specifier.contains(version, prereleases=True), f"{asked} admits it: {why}"


def licence(distribution: importlib.metadata.Distribution) -> str:
    """What a package says of itself: an expression, else its classifiers, else its first line."""
    said = distribution.metadata
    if "License-Expression" in said:
        return str(said["License-Expression"])
    classifiers = [c for c in said.get_all("Classifier") or [] if c.startswith("License ::")]
    return " ".join(classifiers) or str(said.get("License") or "").partition("\n")[0]


def test_no_licence_forbids_a_use_or_asks_for_the_source_of_what_is_built_on_it() -> None:
    found = {}
    for distribution in importlib.metadata.distributions():
        name = canonicalize_name(distribution.metadata["Name"] or "")
        if name in LOCKED:
            found[name] = licence(distribution)
    assert {canonicalize_name(r.name) for r in direct()} <= found.keys()
    for name, text in found.items():
        assert text, f"{name} does not say its licence"
        assert not _FORBIDDEN.search(_EXCEPTED.sub("", text)), f"{name}: {text}"


@pytest.mark.parametrize(
    ("text", "is_forbidden"),
    [
        ("License :: OSI Approved :: GNU General Public License v3 (GPLv3)", True),
        ("AGPL-3.0-only", True),
        ("CC-BY-NC-4.0", True),
        ("LGPL-2.1-or-later", False),
        ("MPL-2.0 AND MIT", False),
        ("BSD-3-Clause AND GPL-3.0-only WITH GCC-exception-3.1", False),
    ],
)
def test_the_sieve_catches_what_it_should(text: str, is_forbidden: bool) -> None:
    assert bool(_FORBIDDEN.search(_EXCEPTED.sub("", text))) is is_forbidden
