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


def test_short_work_is_silent(capsys):
    with progress("decoding images", 4) as advance:
        advance(4)
    assert capsys.readouterr().err == ""
