"""`genlab forecast`: the table that it prints, in the convention of the weight."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from genlab import cli
from genlab.errors import DONE

GAUSSIAN = ["data=gaussian", "model/likelihood=gaussian", "model.likelihood.scale=0.5"]
# 8 pixels; the latents are fewer
GAUSSIAN += ["model.latent_dim=4"]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def forecast(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, str]]:
    """The rows of the table."""
    assert cli.main(["forecast", *arguments]) == DONE
    lines = [
        re.split(r" {2,}", line.strip()) for line in capsys.readouterr().out.splitlines() if line
    ]
    start = next(i for i, cells in enumerate(lines) if cells[0] == "kl_weight")
    head = lines[start]
    return [
        dict(zip(head, cells, strict=True))
        for cells in lines[start + 1 :]
        if len(cells) == len(head)
    ]


@pytest.mark.parametrize(
    ("overrides", "convention", "factor"),
    [
        # b / 2 a sigma^2 of a * error + weight * b * KL
        (GAUSSIAN, "{error: squared, reconstruction: sum, kl: sum}", 1 / (2 * 0.25)),
        (GAUSSIAN, "{error: squared, reconstruction: half_sum, kl: sum}", 1 / 0.25),
        (GAUSSIAN, "{error: squared, reconstruction: mean, kl: mean}", (8 / 4) / (2 * 0.25)),
        ([], "{error: cross_entropy, reconstruction: mean, kl: sum}", 784),
    ],
    ids=["sum", "half sum", "means", "cross entropy"],
)
def test_a_quoted_weight_has_the_forecast_of_its_canonical_weight(
    capsys: pytest.CaptureFixture[str], overrides: list[str], convention: str, factor: float
) -> None:
    canonical = [0.5, 4.0] if overrides else [0.5, 28.0]
    expected = forecast(capsys, *overrides, f"model.kl_weight={canonical[0]},{canonical[1]}")
    quoted = [f"{beta / factor:.17g}" for beta in canonical]
    weights = f"model.kl_weight={','.join(quoted)}"
    found = forecast(capsys, *overrides, f"model.kl_convention={convention}", weights)
    assert len(found) == len(expected) == 2
    for row, same, beta in zip(found, expected, canonical, strict=True):
        assert float(row.pop("kl_weight")) == pytest.approx(beta / factor, rel=1e-5)
        assert float(same.pop("kl_weight")) == float(row["beta"]) == beta
        assert row == same
    # the two weights are told apart by more than their names
    assert found[0]["rate"] != found[1]["rate"]
