"""`genlab evaluate --quality`: one table of several runs, resumed, with the data gone, refused."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from trained_runs import train_in

from genlab import cli
from genlab.errors import DONE, REFUSED
from genlab.metrics import quality

SMALL = [
    *("logger=none", "callbacks=none", "forecast=false", "trainer=smoke", "data.train_images=500"),
    *("data.batch_size=32", "data.eval_batch_size=100", "trainer.limit_test_batches=1"),
]
VAE = ["model.net.encoder.hidden=[32]", "model.net.decoder.hidden=[32]"]
DDPM = [
    *("model=ddpm", "model.steps=10", "model.sampler.steps=4", "model.net.channels=8"),
    *("model.net.multipliers=[1,1]", "model.net.attention=[]", "model.test_draws=1"),
    "model.conditional=true",
]
DATA = "data=mnist_mini"
FAST = ["--features", "pixels", "--samples", "300"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return {
        "vae": train_in(folder, *SMALL, *VAE).path,
        "ddpm": train_in(folder, *SMALL, *DDPM).path,
    }


@pytest.fixture
def runs(trained: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    return {k: Path(shutil.copytree(path, tmp_path / k)) for k, path in trained.items()}


def evaluate(*arguments: object) -> int:
    return cli.main(["evaluate", *map(str, arguments), "--quality", "--device", "cpu"])


def records(run: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((run / "quality.json").read_text())["records"]
    return found


@pytest.mark.slow
def test_several_kinds_of_runs_stand_in_one_table(
    runs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(runs["vae"], runs["ddpm"], DATA, *FAST) == DONE
    out = capsys.readouterr().out
    assert "300 samples against the test images, in the features pixels_" in out
    assert [line.split()[0] for line in out.splitlines()][1:3] == ["1", "2"]
    (vae,), (ddpm,) = records(runs["vae"]), records(runs["ddpm"])
    assert "rfid" in vae["values"] and "rfid" not in ddpm["values"]
    assert vae["floor"] == ddpm["floor"]
    assert ddpm["settings"]["steps"] == 4
    assert 0 < vae["values"]["fid"]["value"] < 1e4
    # asked again: nothing is drawn, and the same is said
    before = (runs["vae"] / "quality.json").read_bytes()
    assert evaluate(runs["vae"], runs["ddpm"], DATA, *FAST) == DONE
    assert capsys.readouterr().out == out
    assert (runs["vae"] / "quality.json").read_bytes() == before
    # samplers and numbers of steps are rows
    run = runs["ddpm"]
    assert evaluate(run, DATA, *FAST, "--sampler", "ddim", "--steps", "2,3") == DONE
    assert [r["settings"]["steps"] for r in records(run)] == [4, 2, 3]


@pytest.mark.slow
def test_a_killed_measurement_goes_on_with_the_same_numbers(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Path(shutil.copytree(runs["vae"], tmp_path / "whole"))
    assert evaluate(whole, DATA, *FAST) == DONE
    write, done = quality.Chunks.fill, []

    def killed(self: quality.Chunks, rows: Any, advance: Any) -> None:
        def some(ranges: Any) -> Any:
            for matrix in rows(ranges):
                done.append(1)
                yield matrix
                if len(done) == 2:
                    raise KeyboardInterrupt

        write(self, some, advance)

    with monkeypatch.context() as patch:
        patch.setattr(quality.Chunks, "fill", killed)
        with pytest.raises(KeyboardInterrupt):
            evaluate(runs["vae"], DATA, *FAST)
    assert len(list((runs["vae"] / "quality").rglob("*.safetensors"))) == 2
    assert evaluate(runs["vae"], DATA, *FAST) == DONE
    (mine,), (other,) = records(runs["vae"]), records(whole)
    assert mine == other


@pytest.mark.slow
def test_two_devices_measure_the_same_bits_as_one(runs: dict[str, Path], tmp_path: Path) -> None:
    one = Path(shutil.copytree(runs["ddpm"], tmp_path / "one"))
    assert evaluate(one, DATA, *FAST) == DONE
    arguments = ["evaluate", str(runs["ddpm"]), DATA, "--quality", *FAST, "--device", "cpu,cpu"]
    assert cli.main(arguments) == DONE
    assert (runs["ddpm"] / "quality.json").read_bytes() == (one / "quality.json").read_bytes()


@pytest.mark.slow
def test_the_data_may_be_gone_if_the_cache_has_their_features(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "images"
    for i in range(240):
        folder = root / ("train" if i < 160 else "test") / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), i).save(folder / f"{i}.png")
    data = [
        *("data=folder", f"data.source.root={root}", "data.source.image_size=8"),
        *("data.source.channels=1", "data.val_images=20", "data.eval_batch_size=50"),
        f"data.source.cache_dir={tmp_path / 'decoded'}",
    ]
    settings = ["logger=none", "callbacks=none", "forecast=false", "trainer=smoke", *VAE]
    run = train_in(tmp_path, *settings, *data, "data.batch_size=20").path
    few = ["--features", "pixels", "--samples", "60"]
    assert evaluate(run, *few) == REFUSED
    assert "this needs images" in capsys.readouterr().err
    assert evaluate(run, *data, *few) == DONE
    assert "60 samples are too few for the 64 features" in capsys.readouterr().out
    root.rename(tmp_path / "away")
    shutil.rmtree(tmp_path / "decoded")
    assert evaluate(run, *data, *few, "--seed", "1") == DONE
    assert "the features in the cache are used instead" in capsys.readouterr().out
    assert evaluate(run, *few, "--seed", "1") == DONE
    first, second = records(run)
    assert first["train_test"] == second["train_test"]
    assert "rfid" not in second["values"]  # which takes the images themselves
    shutil.rmtree(cache)
    assert evaluate(run, *data, *few, "--seed", "2") == REFUSED
    assert str(root) in capsys.readouterr().err


REFUSALS = {
    "few": (["--samples", "10"], "--samples=10: give a whole number of at least 40"),
    "notation": (["--samples", "1e3"], "^error: --samples 1e3: give a whole number, in digits"),
    "features": (["--features", "pixel"], "--features pixel: there are no such features; did you"),
    "inception": (["--features", "inception"], "torch_fidelity is not installed: pip install"),
    "sampler": (["--sampler", "ddim"], "--sampler: .* is a VAE, which has no such choice"),
    "many": (["--samples", "99999999999"], "of at least 40 and at most 10000000"),
    "batches": (["--batches", "3"], "--batches 3: of samples there are --samples N"),
    "data": (["data=cifar10"], "data=cifar10: these images are 3 x 32 x 32"),
}


@pytest.mark.parametrize(("words", "complaint"), REFUSALS.values(), ids=REFUSALS)
def test_what_cannot_work_is_refused_before_anything_is_drawn(
    words: list[str],
    complaint: str,
    trained: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(quality, "measure", pytest.fail)
    data = [] if words[0].startswith("data") else [DATA]
    assert evaluate(trained["vae"], *data, *words) == REFUSED
    said = capsys.readouterr().err
    assert re.search(complaint, said), said
    assert not (trained["vae"] / "quality").exists()


def test_options_of_samples_need_quality(
    trained: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["evaluate", str(trained["vae"]), DATA, "--samples", "100"]) == REFUSED
    assert "--samples: this is about samples; add --quality" in capsys.readouterr().err


def test_real_numbers_are_no_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train_in(tmp_path, *SMALL, *VAE, "data=gaussian", "model/likelihood=gaussian").path
    assert evaluate(run, "data=gaussian", *FAST) == REFUSED
    assert "the pixels of these data are real numbers" in capsys.readouterr().err
