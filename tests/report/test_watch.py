"""A page that is renewed while a sweep runs, and sections from outside of genlab."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from genlab.cli import main
from genlab.errors import DONE, REFUSED
from genlab.report import collect
from genlab.report import watch as watching
from genlab.report.watch import watch
from genlab.runs.directory import RunDirectory
from genlab.runs.manifest import Job, Manifest

OWN = """
from genlab.report.sections import Section


def count(part):
    return {"count": len(part.runs)} if part.runs else None


COUNT = Section("count", "How many", count, "<p>There are {{ count }} runs {{ '<&' }}.</p>")
"""


def write(path: Path, weight: float) -> None:
    with RunDirectory(path) as run:
        run.write_config(yaml.safe_dump({"seed": 0, "model": {"kl_weight": weight}}))
        run.write_result({"metrics": {"test/kl": 1.0, "test/reconstruction": weight}})
        run.write_status("completed")


def test_a_page_is_renewed_until_the_last_job_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = tuple(Job(f"w{w}", (), {"model.kl_weight": w}, 0) for w in (1, 2, 3))
    Manifest("s", ("model.kl_weight",), jobs).write(tmp_path)
    write(tmp_path / "w1", 1.0)
    told: list[str] = []
    pages: list[str] = []

    def work(seconds: float) -> None:
        assert seconds == 7
        pages.append((tmp_path / "report.html").read_text())
        write(tmp_path / f"w{len(pages) + 1}", float(len(pages) + 1))

    monkeypatch.setattr(watching.time, "sleep", work)
    records = watch(lambda: collect(tmp_path), tmp_path, 7, tell=told.append)
    assert [record.state for record in records] == ["completed"] * 3
    assert told == ["1 completed, 2 missing", "2 completed, 1 missing", "3 completed"]
    assert all('http-equiv="refresh" content="7"' in page for page in pages) and len(pages) == 2
    assert "refresh" not in (tmp_path / "report.html").read_text().partition("<body>")[0]


def test_a_section_of_a_package_in_the_working_directory_is_on_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine_of_a_test.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "s" / "a", 1.0)
    write(tmp_path / "s" / "b", 2.0)
    assert main(["report", "s", "--watch", "--section", "mine_of_a_test:COUNT"]) == DONE
    page = (tmp_path / "s" / "report.html").read_text()
    assert '<section id="count"' in page and "<p>There are 2 runs &lt;&amp;.</p>" in page
    for wrong, why in (
        ("mine_of_a_test:count", "give a genlab.report.sections.Section"),
        ("mine_of_a_test:NONE", "cannot be imported"),
        ("no_module:X", "cannot be imported"),
    ):
        assert main(["report", "s", "--section", wrong]) == REFUSED
        assert f"--section {wrong}: {why}" in capsys.readouterr().err
    assert main(["report", "s", "--watch", "0"]) == REFUSED
    assert "--watch 0: give a number of seconds above 0" in capsys.readouterr().err
    assert main(["report", "s", "--output", "mine_of_a_test.py"]) == REFUSED
    said = capsys.readouterr()
    assert "--output mine_of_a_test.py: this is a file; give a folder" in said.err and not said.out
