"""`genlab video`: films of several runs side by side, of one run, and what is refused."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from frames import psnr, unpadded
from trained_media import SMALL_DDPM, SMALL_VAE, train_videos
from trained_runs import load_with_data

from genlab import cli
from genlab.callbacks.base import first_images
from genlab.callbacks.videos import PriorWalkVideo
from genlab.errors import DONE, REFUSED
from genlab.media import videos
from genlab.report import collect
from genlab.report.videos import compared
from genlab.runs.run import find_runs

Pixels = npt.NDArray[np.uint8]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    paths = [
        train_videos(folder, *SMALL_VAE, "group=sweep", f"model.kl_weight={weight}")
        for weight in (0, 30)
    ]
    return paths[0].parent


@pytest.fixture(scope="module")
def ddpm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_videos(tmp_path_factory.mktemp("runs"), *SMALL_DDPM)


def film(*arguments: object) -> int:
    return cli.main(["video", *map(str, arguments)])


def paths(folder: Path) -> list[Path]:
    return [found.path for found in find_runs(folder)]


def test_the_command_films_runs_side_by_side(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--kind", "prior_walk,interpolation", "--seconds", 1, "--fps", 10, "--n", 2]
    assert film(sweep, "data=mnist_mini", *asked, "--out", tmp_path / "a") == DONE
    assert str(tmp_path / "a" / "prior_walk.mp4") in capsys.readouterr().out
    found = videos.probe(tmp_path / "a" / "prior_walk.mp4")
    assert (found.frames, found.fps) == (10, 10)
    assert found.title == "prior walk: kl_weight 0, kl_weight 30"
    both = videos.read_video(tmp_path / "a" / "prior_walk.mp4")
    for i, (_, record) in enumerate(compared(collect(sweep))):
        model, data = load_with_data(record.path)
        images = partial(first_images, data, "val")
        mine = PriorWalkVideo(tmp_path, images=2, seconds=1, fps=10).film(model, images)
        assert mine is not None
        whole = unpadded(both, np.empty((10, *videos.beside([mine] * 2, ["a"] * 2).shape[1:])))
        x = 6 + i * (mine.shape[2] + 12)
        assert psnr(whole[:, -6 - 84 : -6, x : x + mine.shape[2]], mine) > 33

    # two runs by name are laid side by side as they are, the default place being beside them
    assert film(*paths(sweep), "--kind", "training", "--seconds", 1) == DONE
    assert (sweep / "videos" / "training.mp4").is_file()
    shutil.rmtree(sweep / "videos")


def test_the_command_films_one_run_into_it(ddpm: Path) -> None:
    before = (ddpm / "videos" / "trajectory-final.mp4").read_bytes()
    assert film(ddpm, "--seconds", 1, "--n", 2) == DONE
    # what training films by itself, it gives again, but for the title
    after = (ddpm / "videos" / "trajectory-final.mp4").read_bytes()
    assert before != after
    mine, its = ddpm / "mine.mp4", ddpm / "its.mp4"
    mine.write_bytes(before)
    its.write_bytes(after)
    np.testing.assert_array_equal(videos.read_video(mine), videos.read_video(its))


def test_refusals(
    sweep: Path, ddpm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    vae, no_frames = paths(sweep)[0], tmp_path / "run"
    shutil.copytree(ddpm, no_frames)
    shutil.rmtree(no_frames / "videos")
    cases: list[tuple[list[object], list[str]]] = [
        ([ddpm, "--kind", "walk"], ["--kind walk", "prior_walk"]),
        ([ddpm, "--kind", "interpolation"], ["--kind interpolation", "DDPM", "leave"]),
        ([vae, "--kind", "trajectory"], ["--kind trajectory", "VAE", "leave"]),
        ([no_frames, "--kind", "training"], ["--kind training", "frames of two validations"]),
        ([ddpm, "--seconds", 0], ["--seconds=0", "above 0"]),
        ([ddpm, "--fps", 200], ["--fps=200", "at most 60"]),
        ([ddpm, "--n", 0], ["--n=0", "at least 1"]),
        ([ddpm, "--seed", -1], ["--seed=-1", "at least 0"]),
        ([tmp_path / "empty"], ["empty", "train some first"]),
        ([vae, "--kind", "interpolation"], ["vae", "give data=NAME, of array", "data.data_dir"]),
        ([vae, "data=cifar10"], ["data=cifar10", "3 x 32 x 32", "cat", "1 x 28 x 28", "vae"]),
        ([vae, "data=mnist_mini", "data.binarisation=static"], ["2 levels", "256 levels"]),
        (["data=mnist_mini"], ["data=mnist_mini", "give a run directory"]),
        ([vae, "data=nothing"], ["data=nothing", "mnist_mini"]),
        ([vae, "--fps", 10, "data=mnist_mini", "data.x=1"], ["data.x", "no such key"]),
        ([tmp_path / "none"], ["none", "is not a directory"]),
    ]
    for arguments, words in cases:
        assert film(*arguments, "--out", tmp_path / "out") == REFUSED
        (line,) = capsys.readouterr().err.splitlines()
        assert all(word in line for word in words), line
    assert not (tmp_path / "out").exists()


def test_without_data_what_needs_none_is_filmed(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vae = paths(sweep)[0]
    small = ["--seconds", 0.2, "--fps", 5, "--n", 1]
    assert film(vae, *small, "--out", tmp_path / "few") == DONE
    assert "left out: " in (out := capsys.readouterr().out) and "give data=NAME" in out
    made = {path.stem for path in (tmp_path / "few").iterdir()}
    assert made == {"prior_walk", "training"}
    # options may stand between the words
    assert film(vae, *small, "data=mnist_mini", "--out", tmp_path / "all") == DONE
    made = {path.stem for path in (tmp_path / "all").iterdir()}
    assert made == {"interpolation", "traversal", "prior_walk", "training"}
