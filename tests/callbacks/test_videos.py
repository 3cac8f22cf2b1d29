"""Videos of a training: the frames are a function of the model, the images and the seed."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from frames import assert_same_film
from trained_media import (
    SMALL_DDPM,
    SMALL_VAE,
    TINY,
    VIDEOS,
    decoded,
    differ,
    loaded,
    train_videos,
    train_weights,
    validation_images,
)

from genlab.callbacks.base import Inputs
from genlab.callbacks.videos import (
    KINDS,
    InterpolationVideo,
    PriorWalkVideo,
    TrainingVideo,
    TrajectoryVideo,
    TraversalVideo,
)
from genlab.diffusion.model import DDPM
from genlab.errors import RunDirectoryError
from genlab.media import pictures, videos
from genlab.runs.run import Run, find_runs
from genlab.seeding import ImageNoise
from genlab.tracking.record import RecordLogger
from genlab.training.load import read_received
from genlab.vae.model import VAE

Pixels = npt.NDArray[np.uint8]

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_weights(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def vae(sweep: Path) -> Path:
    return next(path for path in runs(sweep) if read_received(path).model["kl_weight"] == 0)


@pytest.fixture(scope="module")
def ddpm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    chosen = ["model/sampler=ancestral", "callbacks.video_prior_walk.sampled_frames=4"]
    return train_videos(
        tmp_path_factory.mktemp("runs"), *SMALL_DDPM, "model.sampler.steps=5", *chosen
    )


def with_inputs(path: Path) -> tuple[Any, Inputs]:
    model, data = loaded(path, "best")
    return model, validation_images(data)


def panel(film: Pixels, i: int, columns: int) -> Pixels:
    """The i-th of the panels of 28 x 28 images at the bottom of frames, as they went in."""
    rows = film.shape[1] // 86 + 1
    y, x = film.shape[1] - (rows - i // columns) * 86 + 2, i % columns * 86
    return film[:, y : y + 84 : 3, x : x + 84 : 3]


def test_an_interpolation_rests_at_reconstructions_and_closes(vae: Path, tmp_path: Path) -> None:
    model, inputs = with_inputs(vae)
    made = InterpolationVideo(tmp_path, images=2, seconds=2, fps=12, stops=3)
    film = made.film(model, inputs)
    assert film is not None and film.shape == (24, 84, 170)
    expected = decoded(model, model.reconstruct(inputs(6)))
    for i in range(2):
        of_panel = panel(film, i, 2)
        for stop in range(3):
            for rest in range(2):
                assert differ(of_panel[8 * stop + rest], expected[3 * i + stop]) <= 1
        # the step from the last frame to the first is no larger than the others of its way
        steps = np.abs(np.diff(of_panel.astype(float), axis=0, append=of_panel[:1])).sum((1, 2))
        assert steps[-1] <= 2 * steps[17:23].max() + 28


def test_a_prior_walk_is_made_of_draws_and_closes(
    vae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inputs = with_inputs(vae)
    assert isinstance(model, VAE)
    latents: list[torch.Tensor] = []
    decode = model.decode
    monkeypatch.setattr(model, "decode", lambda z: latents.append(z) or decode(z))

    def walk(images: int, seed: int = 0) -> tuple[Pixels, torch.Tensor]:
        """The film, and the latents (20, images, d) that were decoded for it."""
        latents.clear()
        film = PriorWalkVideo(tmp_path, images=images, seconds=1, fps=20, seed=seed).film(
            model, inputs
        )
        assert film is not None
        return film, torch.cat(latents).unflatten(0, (20, images))

    _, z = walk(400)
    d = model.latent_dim
    # |z|^2 of a draw is chi-squared with d degrees of freedom, at every moment
    squares = z.square().sum(-1)
    assert (squares.mean(1) - d).abs().max() < 5 * math.sqrt(2 * d / 400)
    assert (squares.var(1) / (2 * d) - 1).abs().max() < 0.5
    steps = torch.cat([z, z[:1]]).diff(dim=0).norm(dim=-1).mean(1)
    assert steps.max() < 1.1 * steps.min()
    torch.testing.assert_close(z[10], -z[0], atol=1e-5, rtol=0)

    film, z = walk(2)
    assert differ(panel(film, 1, 2), decoded(model, decode(z[:, 1]).mean)) <= 1
    assert differ(film, walk(2, seed=1)[0]) > 1


def test_a_diffusion_model_walks_through_all_its_noise(ddpm: Path, tmp_path: Path) -> None:
    """The noise of a stochastic sampler is part of it: both ends of an arc are samples."""
    model, inputs = with_inputs(ddpm)
    assert isinstance(model, DDPM)
    film = PriorWalkVideo(tmp_path, images=2, seconds=1, fps=8, seed=3, sampled_frames=4).film(
        model, inputs
    )
    assert film is not None and film.shape == (8, 84, 170)
    np.testing.assert_array_equal(film[::2], film[1::2])
    for i in range(2):
        frames = panel(film, i, 2)[::2]
        assert differ(frames[0], decoded(model, model.sample(2, 3))[i]) <= 1
        assert differ(frames[1], decoded(model, model.sample(2, 4))[i]) <= 1
    assert PriorWalkVideo(tmp_path).film(model, inputs) is None


def test_a_trajectory_goes_from_noise_to_the_sample_and_stays(ddpm: Path, tmp_path: Path) -> None:
    model, inputs = with_inputs(ddpm)
    film = TrajectoryVideo(tmp_path, images=2, seconds=3, fps=10).film(model, inputs)
    assert film is not None and film.shape[0] == 30
    expected = decoded(model, model.sample(2, 0))
    noise = ImageNoise(0, "noise", indices=range(2)).normal(*model.spec.shape)
    first = decoded(model, (noise + 1) / 2)
    for i in range(2):
        for frame in (15, 22, 29):
            assert differ(film[frame, -84::3, 86 * i : 86 * i + 84 : 3], expected[i]) <= 1
        column = film[0, :, 86 * i : 86 * i + 84 : 3]
        places = range(film.shape[1] - 84)
        assert any(differ(column[y : y + 84 : 3], first[i]) <= 1 for y in places)


def test_a_traversal_moves_the_latents_of_the_highest_kl(vae: Path, tmp_path: Path) -> None:
    model, inputs = with_inputs(vae)
    film = TraversalVideo(tmp_path, images=1, seconds=1, fps=8, extent=2.0).film(model, inputs)
    assert film is not None
    with torch.no_grad():
        posterior = model.encode(inputs(1000))
    kl = (posterior.loc.square() + posterior.log_var.exp() - 1 - posterior.log_var).mean(0)
    values = [2 * math.sin(2 * math.pi * t / 8) for t in range(8)]
    expected = decoded(model, model.traverse(inputs(1), [int(kl.argmax())], values)[0])
    assert differ(film[:, -84::3, :84:3], expected) <= 1


def test_a_run_leaves_its_videos(sweep: Path, ddpm: Path) -> None:
    for path, kinds in (
        *((each, {"interpolation", "traversal", "prior_walk", "training"}) for each in runs(sweep)),
        (ddpm, {"prior_walk", "trajectory", "training"}),
    ):
        names = {file.name for file in (path / "videos").glob("*.*")}
        assert names == {f"{k}-final.{suffix}" for k in kinds for suffix in ("mp4", "webp")}
        for kind in kinds:
            found = videos.probe(path / "videos" / f"{kind}-final.mp4")
            assert found.fps == 20 and kind.replace("_", " ") in found.title
            if kind != "training":
                assert found.frames == 20
        frames = sorted((path / "videos" / "frames").iterdir())
        assert [int(frame.stem) for frame in frames] == [4, 8, 12]


def runs(folder: Path) -> list[Path]:
    return [found.path for found in find_runs(folder)]


def test_the_training_shows_samples_of_fixed_noise_at_every_validation(vae: Path) -> None:
    model, _ = loaded(vae)
    assert isinstance(model, VAE)
    last = pictures.read_png(vae / "videos" / "frames" / "000000012.png")
    expected = decoded(model, model.sample(2, 0))
    for i in range(2):
        assert differ(last[:84:3, 86 * i : 86 * i + 84 : 3, 0], expected[i]) <= 1


def test_of_a_long_training_some_validations_are_filmed(tmp_path: Path) -> None:
    for most, steps in ((2, [8, 12]), (3, [4, 8, 12])):
        few = [f"callbacks.video_training.most_frames={most}", "callbacks.video_traversal=null"]
        path = train_videos(tmp_path, *SMALL_VAE, *few)
        frames = sorted((path / "videos" / "frames").iterdir())
        assert [int(frame.stem) for frame in frames] == steps


def test_which_validations_are_filmed_depends_on_the_epoch_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["callbacks.video_training.most_frames=4", "trainer.max_epochs=10"]
    few += [f"callbacks.video_{kind}=null" for kind in KINDS if kind != "training"]

    def epochs(path: Path) -> list[int]:
        return sorted(int(frame.stem) // 4 for frame in (path / "videos" / "frames").iterdir())

    whole = train_videos(tmp_path / "whole", *SMALL_VAE, *few)
    filmed = epochs(whole)
    assert filmed == [3, 5, 8, 10]  # 2.5 epochs from one to the next, the last one among them

    loss = VAE.loss
    for last_epoch in (4, 6):

        def fail(
            self: VAE, x: Any, labels: Any, step: int, noise: Any, last: int = last_epoch
        ) -> Any:
            if step == 4 * last + 2:
                raise RuntimeError("the power went")
            return loss(self, x, labels, step, noise)

        monkeypatch.setattr(VAE, "loss", fail)
        with pytest.raises(RuntimeError, match="the power went"):
            train_videos(tmp_path / "broken", *SMALL_VAE, *few, "checkpoint_every_n_steps=3")
        monkeypatch.undo()
    broken = train_videos(tmp_path / "broken", *SMALL_VAE, *few, "checkpoint_every_n_steps=3")
    assert epochs(broken) == filmed
    assert capsys.readouterr().out.count("(going on)") == 2


def test_loggers_that_take_videos_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[str, Path, int]] = []
    monkeypatch.setattr(
        RecordLogger, "log_video", lambda self, *args: given.append(args), raising=False
    )
    path = train_videos(tmp_path, *SMALL_VAE, "trainer.max_epochs=2")
    assert {(key, file) for key, file, _ in given} == {
        (f"videos/{kind}", path / "videos" / f"{kind}-final.mp4")
        for kind in ("interpolation", "traversal", "prior_walk", "training")
    }
    assert {step for _, _, step in given} == {8}


@pytest.mark.parametrize(
    ("key", "value"),
    [("seconds", 0), ("fps", 0.5), ("seed", -1), ("images", 0), ("stops", 1), ("extent", 0)],
)
def test_what_a_callback_refuses(tmp_path: Path, key: str, value: float) -> None:
    kind = {"stops": InterpolationVideo, "extent": TraversalVideo}.get(key, PriorWalkVideo)
    with pytest.raises(ValueError, match=rf"^{key}={value}: "):
        kind(tmp_path, **{key: value})


@pytest.mark.slow
def test_an_interrupted_training_has_the_frames_of_an_undisturbed_one(tmp_path: Path) -> None:
    command = [sys.executable, "train.py", *TINY, *VIDEOS, *SMALL_VAE, "trainer.max_epochs=6"]
    command += ["ema_decay=0.9", "checkpoint_every_n_steps=3"]

    def start(folder: Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*command, f"runs_dir={folder}"],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    for wanted in (2, 4):
        process = start(tmp_path / "killed")
        while process.poll() is None:
            if len(list((tmp_path / "killed").glob("*/*/videos/frames/*.png"))) >= wanted:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.002)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    for folder in ("killed", "whole"):
        process = start(tmp_path / folder)
        output, _ = process.communicate()
        assert process.returncode == 0, output
    killed, whole = (find_runs(tmp_path / folder)[0] for folder in ("killed", "whole"))
    assert isinstance(killed, Run) and killed.name == whole.name
    files = sorted(path.relative_to(whole.path) for path in whole.videos.rglob("*.*"))
    assert len([file for file in files if file.parent.name == "frames"]) == 6
    assert files == sorted(path.relative_to(killed.path) for path in killed.videos.rglob("*.*"))
    for file in files:
        assert_same_film(killed.path / file, whole.path / file)


def frames_in(folder: Path, count: int, shape: tuple[int, ...] = (4, 6, 3)) -> Path:
    for step in range(1, count + 1):
        frame = np.full(shape, 2 * step, np.uint8)
        pictures.save_png(folder / "frames" / f"{step:09d}.png", frame)
    return folder


def training_film(folder: Path, **settings: Any) -> Pixels | None:
    return TrainingVideo(folder, seconds=1, **settings).film(None, lambda count: torch.empty(count))


def test_a_picture_whose_name_is_no_step_is_no_frame_of_the_training(tmp_path: Path) -> None:
    film = training_film(frames_in(tmp_path, 3))
    for name in ("x", "00000000x", "0000000040", "40", "\u0664" * 9, "000000004 "):
        pictures.save_png(tmp_path / "frames" / f"{name}.png", np.zeros((2, 2), np.uint8))
    assert film is not None
    np.testing.assert_array_equal(film, training_film(tmp_path))


def test_a_frame_that_does_not_fit_the_others_is_refused(tmp_path: Path) -> None:
    frames_in(tmp_path, 3)
    pictures.save_png(tmp_path / "frames" / "000000002.png", np.zeros((4, 7, 3), np.uint8))
    with pytest.raises(RunDirectoryError, match=r"000000002\.png has 7 x 4 pixels: remove it"):
        training_film(tmp_path)
    (tmp_path / "frames" / "000000002.png").write_text("no picture")
    with pytest.raises(RunDirectoryError, match=r"000000002\.png cannot be read as a picture"):
        training_film(tmp_path)


def test_frames_of_a_training_take_so_many_bytes_and_are_so_many_at_most(tmp_path: Path) -> None:
    film = training_film(frames_in(tmp_path / "many", 100), most_frames=7)
    assert film is not None
    assert sorted({int(frame[-1, 0, 0]) for frame in film}) == [2, 34, 68, 102, 134, 166, 200]
    frames_in(tmp_path / "large", 2, (5000, 5000, 3))
    with pytest.raises(RunDirectoryError, match="5000 x 5000 pixels"):
        training_film(tmp_path / "large")


@pytest.mark.slow
def test_a_training_ends_well_where_a_frame_is_of_another(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = train_videos(tmp_path, *SMALL_VAE)
    for name in ("status.json", "result.json", "videos/training-final.webp"):
        (path / name).unlink()
    pictures.save_png(path / "videos" / "frames" / "000000001.png", np.zeros((2, 2), np.uint8))
    assert train_videos(tmp_path, *SMALL_VAE) == path
    assert Run(path).is_completed
    assert not (path / "videos" / "training-final.webp").exists()
    assert any(text.startswith("no video_training at step") for text in caplog.messages)
