"""The shapes of runs in the rate-distortion plane can be seen, and told apart."""

from __future__ import annotations

from genlab.report.figures.plane import _SHAPES


def test_shapes_of_runs_differ_and_none_is_thin() -> None:
    shapes = [shape for kind in _SHAPES.values() for shape in kind]
    assert len(set(shapes)) == len(shapes)
    assert not {"wedge", "arrow", "stroke", "triangle"} & {*shapes}
