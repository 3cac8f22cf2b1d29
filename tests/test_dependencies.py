"""The locks, as far as they can be judged offline; `make audit` asks for the rest."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import locked

ROOT = Path(__file__).parent.parent
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
TORCH_LOCK = (ROOT / "requirements-torch.lock").read_text(encoding="utf-8")
_FIRST_LINE = re.compile(r"^([a-z0-9][a-z0-9-]*)==(\d[a-z0-9.]*) \\$", re.MULTILINE)
_HASH_LINE = re.compile(r"    --hash=sha256:[0-9a-f]{64}( \\)?")
HASHED = dict(_FIRST_LINE.findall(LOCK))
TORCH = re.findall(r"^torch==(\d[\d.]*)$", TORCH_LOCK, re.MULTILINE)
LOCKED = HASHED | {"torch": TORCH[0]}
#: What torch alone brings, by platform.
_PLATFORM = re.compile(r"(nvidia|cuda)-.*|triton")
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
    """Return the requirements of pyproject.toml, with all extras in the lock."""
    extras = PROJECT["optional-dependencies"]
    asked = [*PROJECT["dependencies"]]
    for text in extras["dev"]:
        requirement = Requirement(text)
        asked += [line for extra in requirement.extras for line in extras[extra]]
        asked += [] if requirement.name == PROJECT["name"] else [text]
    return [Requirement(text) for text in asked]


def is_installed(name: str, version: str) -> bool:
    try:
        return importlib.metadata.version(name) == version
    except importlib.metadata.PackageNotFoundError:
        return False


#: What packages say of themselves tells something of the lock only where they come from it.
of_the_lock = pytest.mark.skipif(
    not all(is_installed(name, version) for name, version in HASHED.items()),
    reason="other versions than those of requirements.lock are installed: make env",
)


def needed(*texts: str) -> dict[str, Requirement]:
    """Return all direct and indirect requirements, from the metadata of installed packages."""
    found: dict[str, Requirement] = {}
    done: set[str] = set()
    open_ = [Requirement(text) for text in texts]
    while open_:
        requirement = open_.pop()
        name = canonicalize_name(requirement.name)
        if str(requirement) in done:
            continue
        done.add(str(requirement))
        if _PLATFORM.fullmatch(name):
            continue
        if name != PROJECT["name"]:
            found[name] = requirement
        for line in importlib.metadata.requires(name) or []:
            child = Requirement(line)
            if child.marker is None or any(
                child.marker.evaluate({"extra": extra}) for extra in {"", *requirement.extras}
            ):
                open_.append(child)
    return found


def test_every_package_has_one_exact_version_and_the_hashes_of_its_files() -> None:
    entries = re.findall(r"^[^\s#-].*\n(?:[^\S\n].*\n)*", LOCK, re.MULTILINE)
    for entry in entries:
        first, *rest = entry.splitlines()
        assert _FIRST_LINE.fullmatch(first), first
        hashes = [line for line in rest if not line.startswith("    #")]
        assert hashes and all(_HASH_LINE.fullmatch(line) for line in hashes), first
        assert all(line.endswith("\\") for line in hashes[:-1]), first
        assert len(set(hashes)) == len(hashes)
    assert len(entries) == len(HASHED)
    assert "".join(entries) == "".join(re.findall(r"^[^#-].*\n", LOCK, re.MULTILINE))


def test_only_one_package_is_built_to_be_installed() -> None:
    options = ["--only-binary=:all:", "--no-binary=antlr4-python3-runtime"]
    for text in (LOCK, locked.part(LOCK, {"setuptools"})):
        assert re.findall(r"^-.*$", text, re.MULTILINE) == options


def test_torch_alone_is_locked_without_hashes_and_in_one_place() -> None:
    lines = [line for line in TORCH_LOCK.splitlines() if not line.startswith("#")]
    assert lines == [f"torch=={TORCH[0]}"]
    assert not [name for name in HASHED if name == "torch" or _PLATFORM.fullmatch(name)]
    for name in ("Makefile", "Dockerfile", "pyproject.toml", ".ci/run"):
        if (ROOT / name).exists():  # a source distribution has not all
            assert TORCH[0] not in (ROOT / name).read_text(encoding="utf-8"), name


@of_the_lock
def test_all_that_is_needed_directly_or_not_is_locked_at_a_version_that_fits() -> None:
    for name, requirement in needed("genlab[dev]").items():
        assert name in LOCKED, f"{requirement} is not locked"
        assert requirement.specifier.contains(LOCKED[name], prereleases=True), requirement


def test_nothing_is_locked_that_nothing_needs() -> None:
    assert (
        locked.entries(locked.part(LOCK, locked.asked("genlab[dev]", PROJECT))).keys()
        == HASHED.keys()
    )


@of_the_lock
def test_the_image_gets_what_it_needs_and_no_tools() -> None:
    names = locked.asked("genlab[video, search]", PROJECT)
    part = locked.entries(locked.part(LOCK, names))
    assert needed("genlab[video,search]").keys() - {"torch"} <= part.keys()
    assert all(LOCK.count(entry) == 1 for entry in part.values())
    tools = {
        "diffusers",
        "hatchling",
        "hypothesis",
        "mypy",
        "playwright",
        "pytest",
        "ruff",
        "scipy",
    }
    assert not tools & part.keys()


@pytest.mark.parametrize(
    ("requirement", "sentence"),
    [
        ("genlab[ray]", "not in requirements.lock: hydra-ray-launcher, ray"),
        ("genlab[gpu]", "no extra 'gpu'; there are: video, "),
        ("nowhere", "not in requirements.lock: nowhere"),
    ],
)
def test_what_is_not_locked_is_refused(requirement: str, sentence: str) -> None:
    with pytest.raises(SystemExit, match=re.escape(sentence)):
        locked.main([requirement])


@pytest.mark.parametrize("file", ["Makefile", "Dockerfile"])
def test_every_install_asks_for_hashes_but_those_of_torch_and_genlab(file: str) -> None:
    if not (ROOT / file).exists():
        pytest.skip("a source distribution has no Dockerfile")
    if file == "Makefile":
        if shutil.which("make") is None:
            pytest.skip("there is no make")
        command = ["make", "--dry-run", "--no-print-directory", "env", "VENV=/nowhere"]
        said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    else:
        said = (ROOT / file).read_text(encoding="utf-8").replace("\\\n", " ")
    installs = re.findall(r"pip install ([^&|\n]*)", said)
    assert len(installs) >= 4
    for arguments in installs:
        hashed = "--require-hashes --no-deps " in arguments
        torch = "--requirement requirements-torch.lock" in arguments
        itself = re.search(
            r"--no-deps --no-build-isolation (--editable|--prefix /project) \.", arguments
        )
        assert hashed or torch or itself, arguments


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
    """Return a package's license: its expression, else its classifiers, else its first line."""
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
