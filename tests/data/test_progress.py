"""Progress of long work is seen where there is no terminal."""

from __future__ import annotations

import pytest

from genlab.data import progress as progress_module
from genlab.data.progress import progress


@pytest.mark.parametrize(("total", "last"), [(4, "100 %"), (None, "4")])
def test_without_a_terminal_lines_are_printed_although_nothing_listens_to_the_log(
    capsys, monkeypatch, total, last
):
    monkeypatch.setattr(progress_module, "_SECONDS_BETWEEN_LINES", -1.0)
    with progress("decoding images", total) as advance:
        for _ in range(4):
            advance(1)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4 and lines[-1] == f"decoding images: {last}"


def test_a_line_says_the_time_to_go(capsys, monkeypatch):
    clock = iter([100.0, 120.0, 160.0])  # 20 s for the first quarter, 60 s for two
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: next(clock))
    with progress("filming", 6, start=2) as advance:
        advance(1)
        advance(1)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["filming: 50 %, 60 s to go", "filming: 67 %, 60 s to go"]


def test_short_work_is_silent(capsys):
    with progress("decoding images", 4) as advance:
        advance(4)
    assert capsys.readouterr().err == ""
