"""Docstrings, names, pages and comments are written in plain words, and links lead somewhere."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).resolve().parents[1]
CODE = sorted(
    path
    for folder in ("genlab", "hydra_plugins", "benchmarks", "docs", "tests")
    for path in (ROOT / folder).rglob("*.py")
)
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]

#: First words that make a docstring a fragment, which only the name beside it completes.
FRAGMENT = re.compile(
    r"(What|Whether|Of|That of|As|Where|Whose|Which|Also|Neither|Else|Those|How|However|And)\b"
)

#: Names that are not of the field, and what stands for them.
NAMES = {
    **{"is_spread": "is_sharded", "of_all": "all_gather_rows", "meaning()": "describe()"},
    **{"Alive": "Heartbeat", "Silent": "NullProfiler", "KLDialect": "KLConvention"},
    "said": "prediction, message, ...",
}
#: Names that have one meaning in the package.
UNIQUE = ("Run", "whole", "swept_keys", "ResidualBlock")

#: Words and phrases of the pages that a reader had to guess.
RIDDLES = (
    *("knob", "dialect", "verdict", "at the price of", "come at the versions"),
    *("are what they say", "nothing holds down", "without a word", "Proven how"),
)


@cache
def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def documented(path: Path) -> Iterator[tuple[str, str]]:
    for node in nodes(path):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring:
                yield getattr(node, "name", "module"), docstring


def names(path: Path) -> Iterator[str]:
    for node in nodes(path):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                yield node.name
                yield f"{node.name}()"
            case ast.ClassDef():
                yield node.name
            case ast.arg():
                yield node.arg
            case ast.Name():
                yield node.id
            case ast.Attribute():
                yield node.attr


def prose(page: Path) -> str:
    """The text of a page without code, in which a key may be named whatever it is."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    text = re.sub(r"(?m)^ {4,}.*$", "", text)
    return re.sub(r"`[^`]*`", "", text)


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"(?m)^#+ (.*)$", page.read_text(encoding="utf-8"))
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.strip().replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("docstring", ["What it is.", "Of a run.", "That of all.", "As before."])
def test_a_fragment_is_recognised(docstring: str) -> None:
    assert FRAGMENT.match(docstring)
    assert not FRAGMENT.match(f"Return {docstring.lower()}")
    assert not FRAGMENT.match("Assert it.")


def test_no_docstring_begins_as_a_fragment() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {name}: {docstring.splitlines()[0]}"
        for path in CODE
        for name, docstring in documented(path)
        if FRAGMENT.match(docstring)
    ]
    assert found == []


def test_no_comment_of_a_setting_begins_as_a_fragment() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in sorted((ROOT / "conf").rglob("*.yaml"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(rf"^[^#]+:[^#]*# {FRAGMENT.pattern}", line, re.IGNORECASE)
    ]
    assert found == []


def test_names_are_nouns_and_verbs_of_the_field() -> None:
    own = [path for path in CODE if path.is_relative_to(ROOT / "genlab")]
    used = {(path.relative_to(ROOT), name) for path in own for name in names(path)}
    assert [f"{path}: {name}: {NAMES[name]}" for path, name in used if name in NAMES] == []


def test_one_name_has_one_meaning() -> None:
    defined = [
        node.name
        for path in CODE
        if path.is_relative_to(ROOT / "genlab")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef | ast.FunctionDef)
    ]
    assert {name: defined.count(name) for name in UNIQUE} == dict.fromkeys(UNIQUE, 1)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_has_no_riddles_and_its_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert [word for word in RIDDLES if re.search(rf"(?i)\b{word}", prose(page))] == []
    for link in re.findall(r"(?:\]\(|src=\")([^)\s\"]+)[)\"]", text):
        if re.match(r"https?://", link):
            continue
        target, _, anchor = unquote(link).partition("#")
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), link
        if anchor:
            assert anchor in anchors(path), link


def test_every_page_of_docs_begins_with_its_question_and_is_in_the_index() -> None:
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    for page in sorted((ROOT / "docs").glob("*.md")):
        first = page.read_text(encoding="utf-8").splitlines()[0]
        assert first.startswith("# "), page.name
        assert first.endswith("?"), page.name
        assert page.name == "README.md" or f"]({page.name}" in index, page.name


def test_the_readme_comes_to_its_pointers_within_two_screens() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert readme.index("## Read on") <= 100
