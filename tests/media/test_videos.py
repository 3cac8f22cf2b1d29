"""Videos: what a player finds in the files, and what the frames are a function of."""

from __future__ import annotations

import math
import os
import shutil
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
from PIL import Image

from genlab import cli
from genlab.callbacks.pictures import encoded
from genlab.callbacks.videos import (
    KINDS,
    InterpolationVideo,
    PriorWalkVideo,
    TrajectoryVideo,
    TraversalVideo,
)
from genlab.config import configs
from genlab.diffusion.samplers import ImageNoise
from genlab.errors import DONE, REFUSED, ConfigError, RunDirectoryError
from genlab.media import pictures, videos
from genlab.modules.ddpm import DDPM
from genlab.modules.vae import VAE
from genlab.report import collect
from genlab.report.videos import MOST, compared, write_videos
from genlab.runs.directory import Run, find_runs
from genlab.tracking.record import RecordLogger
from genlab.training import run
from genlab.training import weights as checkpoints

Pixels = npt.NDArray[np.uint8]

ROOT = Path(__file__).parents[2]
SHORT = [
    *(f"callbacks.video_{kind}.{key}" for kind in KINDS for key in ("seconds=1", "images=2")),
    "callbacks.video_interpolation.stops=2",
]
TINY = [
    "trainer=smoke",
    "trainer.max_epochs=3",
    "logger=none",
    "forecast=false",
    "callbacks=videos",
    "data.eval_batch_size=20",
    *SHORT,
]
SMALL_VAE = ["model.net.encoder.hidden=[32]", "model.net.decoder.hidden=[32]"]
SMALL_DDPM = ["model=ddpm", "model.steps=20", "model.sampler.steps=5", "model.net.channels=8"]


def moving(frames: int, height: int, width: int, channels: int) -> Pixels:
    """A bright spot on its way around; colour from three spots."""
    y, x = np.mgrid[:height, :width]
    film = []
    for t in 2 * math.pi * np.arange(frames) / frames:
        spots = []
        for phase in range(channels):
            at = t + phase
            dy, dx = y - height * (0.5 + 0.3 * np.cos(at)), x - width * (0.5 + 0.3 * np.sin(at))
            spots.append(255 * np.exp(-(dy**2 + dx**2) / (height * width / 20)))
        film.append(np.stack(spots, -1))
    made = np.stack(film).round().astype(np.uint8)
    return made[..., 0] if channels == 1 else made


def psnr(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    error = np.square(np.asarray(a, float) - np.asarray(b, float)).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def unpadded(frames: Pixels, like: Pixels) -> Pixels:
    """The middle of frames that were filled up to whole blocks."""
    y, x = ((frames.shape[i] - like.shape[i]) // 2 for i in (1, 2))
    return frames[:, y : y + like.shape[1], x : x + like.shape[2]]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("size", "fps"), [((96, 128), 20.0), ((57, 91), 12.5), ((48, 47), 30.0)])
def test_mp4_gives_back_what_went_in(
    tmp_path: Path, size: tuple[int, int], fps: float, channels: int
) -> None:
    film = moving(31, *size, channels)
    path, _ = videos.save(tmp_path / "new" / "film", film, fps, "kl_weight 30, σ")
    assert sorted(p.name for p in path.parent.iterdir()) == ["film.mp4", "film.webp"]
    found = videos.probe(path)
    assert (found.codec, found.pixel_format) == ("h264", "yuv420p")
    assert (found.frames, found.fps, found.title) == (31, fps, "kl_weight 30, σ")
    assert found.width % 2 == found.height % 2 == 0
    assert 0 <= found.height - size[0] < 16 and 0 <= found.width - size[1] < 16
    read = videos.read_video(path)
    assert read.shape == (31, found.height, found.width, *([3] if channels == 3 else []))
    assert psnr(unpadded(read, film), film) > (36 if channels == 1 else 30)


def test_a_colour_keeps_its_hue(tmp_path: Path) -> None:
    film = np.zeros((4, 48, 96, 3), np.uint8)
    colours = [(200, 30, 30), (30, 200, 30), (30, 30, 200)]
    for i, colour in enumerate(colours):
        film[:, :, 32 * i : 32 * (i + 1)] = colour
    for path in videos.save(tmp_path / "film", film, 10, ""):
        read = videos.read_video(path)
        for i, colour in enumerate(colours):
            inside = read[-1, 8:40, 32 * i + 8 : 32 * i + 24].reshape(-1, 3).mean(0)
            assert np.abs(inside - colour).max() < 6, (path, inside, colour)


def assert_same_film(path: Path, other: Path) -> None:
    """Byte for byte, but for what x264 once in a hundred times decides otherwise."""
    if path.suffix == ".mp4":
        ours, theirs = (videos.read_video(file).astype(int) for file in (path, other))
        assert ours.shape == theirs.shape, path
        assert np.abs(ours - theirs).mean() < 0.5, path
    else:
        assert path.read_bytes() == other.read_bytes(), path


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_written_is_a_function_of_the_frames(tmp_path: Path, channels: int) -> None:
    film = moving(20, 258, 70, channels)
    first = videos.save(tmp_path / "a", film, 20, "a")
    for i in range(4):
        again = videos.save(tmp_path / f"b{i}", film, 20, "a")
        for mine, path in zip(first, again, strict=True):
            assert_same_film(path, mine)
    for mine, path in zip(first, videos.save(tmp_path / "c", film[::-1], 20, "a"), strict=True):
        assert path.read_bytes() != mine.read_bytes()


def test_a_player_can_begin_before_the_end_has_come(tmp_path: Path) -> None:
    path, _ = videos.save(tmp_path / "film", moving(40, 64, 64, 1), 20, "")
    content = path.read_bytes()
    boxes, place = [], 0
    while place < len(content):
        boxes.append(content[place + 4 : place + 8])
        place += int.from_bytes(content[place : place + 4], "big")
    assert place == len(content)
    assert boxes.index(b"moov") < boxes.index(b"mdat")


@pytest.mark.parametrize(("fps", "stride"), [(10.0, 1), (20.0, 2), (24.0, 2), (7.0, 1)])
def test_webp_plays_as_long_as_the_mp4(tmp_path: Path, fps: float, stride: int) -> None:
    film = moving(24, 60, 50, 1)
    _, path = videos.save(tmp_path / "film", film, fps, "")
    with Image.open(path) as picture:
        assert picture.format == "WEBP" and picture.info["loop"] == 0
        assert picture.n_frames == 24 // stride
        shown, durations = [], []
        for i in range(picture.n_frames):
            picture.seek(i)
            picture.load()
            shown.append(np.asarray(picture.convert("L")))
            durations.append(picture.info["duration"])
    assert sum(durations) == round(24 * 1000 / fps)
    assert max(durations) - min(durations) <= 1
    assert psnr(np.stack(shown), film[::stride]) > 33


def test_webp_keeps_a_resting_frame_once(tmp_path: Path) -> None:
    film = moving(6, 40, 40, 1)[[0, 1, 2, 2, 2, 2, 3, 4, 5, 5]]
    _, path = videos.save(tmp_path / "film", film, 10, "")
    with Image.open(path) as picture:
        assert picture.n_frames == 6
    read = videos.read_video(path, fps=10)
    assert read.shape == film.shape and psnr(read, film) > 33


def test_films_are_tiled_and_the_short_ones_wait() -> None:
    long, short = moving(9, 24, 40, 1), moving(4, 24, 40, 3)
    made = videos.tile([long, short], ["kl_weight 0", "kl_weight 30"], columns=2, gap=5)
    assert made.shape[0] == 9 and made.shape[2:] == (85, 3)
    top = made.shape[1] - 24
    for channel in range(3):
        np.testing.assert_array_equal(made[:, top:, :40, channel], long)
    held = short[[0, 1, 2, 3, 3, 3, 3, 3, 3]]
    np.testing.assert_array_equal(made[:, top:, 45:], held)
    assert (made[:, top:, 40:45] == 255).all()
    assert (made[:, :top, :40] < 128).any() and (made[:, :top, 45:] < 128).any()
    assert (made[:, :top] == made[:1, :top]).all()


def test_a_caption_changes_with_the_frame_and_leaves_the_film_alone() -> None:
    film = moving(3, 30, 200, 1)
    made = videos.captioned(film, ["step 1", "step 1", "step 22"])
    np.testing.assert_array_equal(made[:, -30:], film)
    strips = made[:, :-30]
    assert np.array_equal(strips[0], strips[1]) and not np.array_equal(strips[1], strips[2])


def test_panels_are_enlarged_images() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 1, 28, 28), np.uint8)
    made = videos.panels(images)
    assert made.shape == (3, 2 * 84 + 2, 2 * 84 + 2)
    np.testing.assert_array_equal(made[2, 86::3, 1:84:3], images[2, 2, 0])


@pytest.mark.parametrize("wrong", [np.zeros((0, 4, 4), np.uint8), np.zeros((2, 4, 4), np.float32)])
def test_what_are_no_frames_is_refused(tmp_path: Path, wrong: npt.ArrayLike) -> None:
    with pytest.raises(ValueError, match=r"frames of (uint8|float32)"):
        videos.save(tmp_path / "film", wrong, 20, "")
    with pytest.raises(ValueError, match="2 captions for 3 frames"):
        videos.captioned(moving(3, 30, 30, 1), ["a", "b"])
    with pytest.raises(ValueError, match="1 films, 2 labels"):
        videos.tile([moving(3, 30, 30, 1)], ["a", "b"])
    with pytest.raises(ValueError, match=r"images of uint8 \(3, 30, 30\)"):
        videos.panels(moving(3, 30, 30, 1))
    assert not list(tmp_path.iterdir())


def test_a_torn_file_is_named(tmp_path: Path) -> None:
    for path in videos.save(tmp_path / "film", moving(5, 32, 32, 1), 20, ""):
        path.write_bytes(path.read_bytes()[:200])
        with pytest.raises(RunDirectoryError, match=rf"{path.name} cannot be read as a video"):
            videos.read_video(path)


def test_without_pyav_webp_is_made_and_it_is_said_once(tmp_path: Path) -> None:
    mp4, _ = videos.save(tmp_path / "made", moving(20, 40, 40, 1), 20, "")
    script = f"""
import sys
sys.modules["av"] = None
import numpy as np
from genlab.media import videos
from genlab.errors import ConfigError
film = np.arange(20 * 40 * 40, dtype=np.uint8).reshape(20, 40, 40)
for name in "ab":
    print(*[p.name for p in videos.save(f"{tmp_path}/{{name}}", film, 20, "")])
a, b = (f"{tmp_path}/{{name}}.webp" for name in "ab")
print(*[p.name for p in videos.side_by_side([a, b], ["a", "b"], "{tmp_path}/both", "")])
try:
    videos.read_video("{mp4}")
except ConfigError as error:
    print(error)
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[:3] == ["a.webp", "b.webp", "both.webp"]
    assert "genlab[video]" in ended.stdout.splitlines()[3]
    (line,) = ended.stderr.splitlines()
    assert "WebP alone" in line and "pip install genlab[video]" in line


def train(folder: Path, *overrides: str) -> Path:
    outcome = run.run(configs.compose([*TINY, f"runs_dir={folder}", *overrides]))
    assert outcome.path is not None
    return outcome.path


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three VAEs that differ in their KL weight and seed."""
    folder = tmp_path_factory.mktemp("runs")
    for weight, seed in ((0, 0), (30, 0), (30, 1)):
        knobs = [f"model.kl_weight={weight}", f"seed={seed}", "group=weights"]
        train(folder, *SMALL_VAE, *knobs)
    return folder / "weights"


@pytest.fixture(scope="module")
def vae(sweep: Path) -> Path:
    return next(r.path for r in collect(sweep) if r.flat["model.kl_weight"] == 0)


@pytest.fixture(scope="module")
def ddpm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    chosen = ["model/sampler=ancestral", "callbacks.video_prior_walk.sampled_frames=4"]
    return train(tmp_path_factory.mktemp("runs"), *SMALL_DDPM, *chosen)


def loaded(path: Path) -> tuple[Any, Any]:
    module, data = checkpoints.load(path)
    data.prepare_data()
    data.setup("fit")
    return module, lambda count: encoded(module, data.pixels("val")[:count])


def panel(film: Pixels, i: int, columns: int) -> Pixels:
    """The i-th of the panels of 28 x 28 images at the bottom of frames, as they went in."""
    rows = film.shape[1] // 86 + 1
    y, x = film.shape[1] - (rows - i // columns) * 86 + 2, i % columns * 86
    return film[:, y : y + 84 : 3, x : x + 84 : 3]


def decoded(module: Any, x: torch.Tensor) -> Pixels:
    return np.asarray(module.codec.decode(x.detach()).numpy())[:, 0]


def differ(a: Pixels, b: Pixels) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def test_an_interpolation_rests_at_reconstructions_and_closes(vae: Path, tmp_path: Path) -> None:
    module, inputs = loaded(vae)
    made = InterpolationVideo(tmp_path, images=2, seconds=2, fps=12, stops=3)
    film = made.film(module, inputs)
    assert film is not None and film.shape == (24, 84, 170)
    expected = decoded(module, module.reconstruct(inputs(6)))
    for i in range(2):
        of_panel = panel(film, i, 2)
        for stop in range(3):
            for rest in range(2):
                assert differ(of_panel[8 * stop + rest], expected[3 * i + stop]) <= 1
        # the step from the last frame to the first is no larger than the others of its way
        steps = np.abs(np.diff(of_panel.astype(float), axis=0, append=of_panel[:1])).sum((1, 2))
        assert steps[-1] <= 2 * steps[17:23].max() + 28


def test_a_prior_walk_is_made_of_draws_and_closes(vae: Path, tmp_path: Path) -> None:
    walk = PriorWalkVideo(tmp_path, images=400, seconds=1, fps=20)
    d = 20
    z = walk.latents(20, d)
    # |z|^2 of a draw is chi-squared with d degrees of freedom, at every moment
    squares = z.square().sum(-1)
    assert (squares.mean(1) - d).abs().max() < 5 * math.sqrt(2 * d / 400)
    assert (squares.var(1) / (2 * d) - 1).abs().max() < 0.5
    steps = torch.cat([z, z[:1]]).diff(dim=0).norm(dim=-1).mean(1)
    assert steps.max() < 1.1 * steps.min()
    torch.testing.assert_close(z[10], -z[0], atol=1e-5, rtol=0)

    module, inputs = loaded(vae)
    assert isinstance(module, VAE)
    small = PriorWalkVideo(tmp_path, images=2, seconds=1, fps=20)
    film = small.film(module, inputs)
    assert film is not None
    expected = decoded(module, module.decode(small.latents(20, module.latent_dim)[:, 1]).mean)
    assert differ(panel(film, 1, 2), expected) <= 1
    other = PriorWalkVideo(tmp_path, images=2, seconds=1, fps=20, seed=1).film(module, inputs)
    assert other is not None and differ(film, other) > 1


def test_a_diffusion_model_walks_through_all_its_noise(ddpm: Path, tmp_path: Path) -> None:
    """Also that which a stochastic sampler adds, so that both ends of an arc are its samples."""
    module, inputs = loaded(ddpm)
    assert isinstance(module, DDPM)
    film = PriorWalkVideo(tmp_path, images=2, seconds=1, fps=8, seed=3, sampled_frames=4).film(
        module, inputs
    )
    assert film is not None and film.shape == (8, 84, 170)
    np.testing.assert_array_equal(film[::2], film[1::2])
    for i in range(2):
        frames = panel(film, i, 2)[::2]
        assert differ(frames[0], decoded(module, module.sample(2, 3))[i]) <= 1
        assert differ(frames[1], decoded(module, module.sample(2, 4))[i]) <= 1
    assert PriorWalkVideo(tmp_path).film(module, inputs) is None


def test_a_trajectory_goes_from_noise_to_the_sample_and_stays(ddpm: Path, tmp_path: Path) -> None:
    module, inputs = loaded(ddpm)
    film = TrajectoryVideo(tmp_path, images=2, seconds=3, fps=10).film(module, inputs)
    assert film is not None and film.shape[0] == 30
    expected = decoded(module, module.sample(2, 0))
    noise = decoded(module, (ImageNoise(0, range(2), module.spec.shape)() + 1) / 2)
    for i in range(2):
        for frame in (15, 22, 29):
            assert differ(film[frame, -84::3, 86 * i : 86 * i + 84 : 3], expected[i]) <= 1
        column = film[0, :, 86 * i : 86 * i + 84 : 3]
        places = range(film.shape[1] - 84)
        assert any(differ(column[y : y + 84 : 3], noise[i]) <= 1 for y in places)


def test_a_traversal_moves_the_latents_of_the_highest_kl(vae: Path, tmp_path: Path) -> None:
    module, inputs = loaded(vae)
    film = TraversalVideo(tmp_path, images=1, seconds=1, fps=8, extent=2.0).film(module, inputs)
    assert film is not None
    with torch.no_grad():
        posterior = module.encode(inputs(1000))
    kl = (posterior.loc.square() + posterior.log_var.exp() - 1 - posterior.log_var).mean(0)
    values = [2 * math.sin(2 * math.pi * t / 8) for t in range(8)]
    expected = decoded(module, module.traverse(inputs(1), [int(kl.argmax())], values)[0])
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
    module, _ = checkpoints.load(vae, "last")
    assert isinstance(module, VAE)
    last = pictures.read_png(vae / "videos" / "frames" / "000000012.png")
    expected = decoded(module, module.sample(2, 0))
    for i in range(2):
        assert differ(last[:84:3, 86 * i : 86 * i + 84 : 3, 0], expected[i]) <= 1


def test_of_a_long_training_some_validations_are_filmed(tmp_path: Path) -> None:
    for most, steps in ((2, [8, 12]), (3, [4, 8, 12])):
        few = [f"callbacks.video_training.most_frames={most}", "callbacks.video_traversal=null"]
        path = train(tmp_path, *SMALL_VAE, *few)
        frames = sorted((path / "videos" / "frames").iterdir())
        assert [int(frame.stem) for frame in frames] == steps


def test_which_validations_are_filmed_depends_on_the_epoch_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["callbacks.video_training.most_frames=4", "trainer.max_epochs=10"]
    few += [f"callbacks.video_{kind}=null" for kind in KINDS if kind != "training"]

    def epochs(path: Path) -> list[int]:
        return sorted(int(frame.stem) // 4 for frame in (path / "videos" / "frames").iterdir())

    whole = train(tmp_path / "whole", *SMALL_VAE, *few)
    filmed = epochs(whole)
    assert filmed == [3, 5, 8, 10]  # 2.5 epochs from one to the next, the last one among them

    objective = VAE.objective
    for last_epoch in (4, 6):

        def fail(self: VAE, x: Any, labels: Any, step: int, last: int = last_epoch) -> Any:
            if step == 4 * last + 2:
                raise RuntimeError("the power went")
            return objective(self, x, labels, step)

        monkeypatch.setattr(VAE, "objective", fail)
        with pytest.raises(RuntimeError, match="the power went"):
            train(tmp_path / "broken", *SMALL_VAE, *few, "checkpoint_every_n_steps=3")
        monkeypatch.undo()
    broken = train(tmp_path / "broken", *SMALL_VAE, *few, "checkpoint_every_n_steps=3")
    assert epochs(broken) == filmed
    assert capsys.readouterr().out.count("(going on)") == 2


def test_loggers_that_take_videos_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[str, Path, int]] = []
    monkeypatch.setattr(
        RecordLogger, "log_video", lambda self, *args: given.append(args), raising=False
    )
    path = train(tmp_path, *SMALL_VAE, "trainer.max_epochs=2")
    assert {(key, file) for key, file, _ in given} == {
        (f"videos/{kind}", path / "videos" / f"{kind}-final.mp4")
        for kind in ("interpolation", "traversal", "prior_walk", "training")
    }
    assert {step for _, _, step in given} == {8}


def test_runs_go_side_by_side_below_their_knob(sweep: Path, tmp_path: Path) -> None:
    records = collect(sweep)
    labels = [label for label, _ in compared(records)]
    assert labels == ["kl_weight 0", "kl_weight 30"]  # of two seeds the first
    written = write_videos(records, tmp_path)
    assert {path.name for path in written} == {
        f"{kind}.{suffix}"
        for kind in ("interpolation", "traversal", "prior_walk", "training")
        for suffix in ("mp4", "webp")
    }
    path = tmp_path / "videos" / "prior_walk.mp4"
    assert videos.probe(path).title == "prior walk: kl_weight 0, kl_weight 30"
    both = videos.read_video(path)
    own = [
        videos.read_video(record.path / "videos" / "prior_walk-final.mp4")
        for _, record in compared(records)
    ]
    tiled = videos.beside(own, labels)
    assert psnr(unpadded(both, tiled), tiled) > 33

    times = {path: path.stat().st_mtime_ns for path in written}
    assert write_videos(records, tmp_path) == written
    assert {path: path.stat().st_mtime_ns for path in written} == times
    (record,) = (r for r in records if r.flat["model.kl_weight"] == 0)
    shutil.copy(
        record.path / "videos" / "traversal-final.mp4",
        record.path / "videos" / "prior_walk-final.mp4",
    )
    write_videos(records, tmp_path)
    changed = {path.name for path in written if path.stat().st_mtime_ns != times[path]}
    assert changed == {"prior_walk.mp4", "prior_walk.webp"}


def test_of_many_runs_the_ends_stay(sweep: Path) -> None:
    (record, *_) = (r for r in collect(sweep) if r.flat["model.kl_weight"] == 0)
    many = []
    for weight in range(40):
        config = {**record.config, "model": {**record.config["model"], "kl_weight": float(weight)}}
        many.append(type(record)(**{**record.__dict__, "config": config, "run_id": f"r{weight}"}))
    shown = [label for label, _ in compared(many)]
    assert len(shown) == MOST and shown[0] == "kl_weight 0" and shown[-1] == "kl_weight 39"


def film(*arguments: object) -> int:
    return cli.main(["video", *map(str, arguments)])


def test_the_command_films_runs_side_by_side(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--kind", "prior_walk,interpolation", "--seconds", 1, "--fps", 10, "--n", 2]
    assert film(sweep, *asked, "--out", tmp_path / "a") == DONE
    assert str(tmp_path / "a" / "prior_walk.mp4") in capsys.readouterr().out
    found = videos.probe(tmp_path / "a" / "prior_walk.mp4")
    assert (found.frames, found.fps) == (10, 10)
    assert found.title == "prior walk: kl_weight 0, kl_weight 30"
    both = videos.read_video(tmp_path / "a" / "prior_walk.mp4")
    for i, (_, record) in enumerate(compared(collect(sweep))):
        module, inputs = loaded(record.path)
        mine = PriorWalkVideo(tmp_path, images=2, seconds=1, fps=10).film(module, inputs)
        assert mine is not None
        whole = unpadded(both, np.empty((10, *videos.beside([mine] * 2, ["a"] * 2).shape[1:])))
        x = 6 + i * (mine.shape[2] + 12)
        assert psnr(whole[:, -6 - 84 : -6, x : x + mine.shape[2]], mine) > 33

    # two runs by name are laid side by side as they are, the default place being beside them
    assert film(*runs(sweep)[:2], "--kind", "training", "--seconds", 1) == DONE
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
    no_frames = tmp_path / "run"
    shutil.copytree(ddpm, no_frames)
    shutil.rmtree(no_frames / "videos")
    for arguments, words in [
        ([ddpm, "--kind", "walk"], ["--kind walk", "prior_walk"]),
        ([ddpm, "--kind", "interpolation"], ["--kind interpolation", "DDPM", "leave"]),
        ([*runs(sweep)[:1], "--kind", "trajectory"], ["--kind trajectory", "VAE", "leave"]),
        ([no_frames, "--kind", "training"], ["--kind training", "frames of two validations"]),
        ([ddpm, "--seconds", 0], ["--seconds=0", "above 0"]),
        ([ddpm, "--fps", 200], ["--fps=200", "at most 60"]),
        ([ddpm, "--n", 0], ["--n=0", "at least 1"]),
        ([ddpm, "--seed", -1], ["--seed=-1", "at least 0"]),
        ([tmp_path / "empty"], ["empty", "train some first"]),
        ([tmp_path / "none"], ["none", "is not a directory"]),
    ]:
        assert film(*arguments, "--out", tmp_path / "out") == REFUSED
        (line,) = capsys.readouterr().err.splitlines()
        assert all(word in line for word in words), line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [("seconds", 0), ("fps", 0.5), ("seed", -1), ("images", 0), ("stops", 1), ("extent", 0)],
)
def test_what_a_callback_refuses(tmp_path: Path, key: str, value: float) -> None:
    kind = {"stops": InterpolationVideo, "extent": TraversalVideo}.get(key, PriorWalkVideo)
    with pytest.raises(ConfigError, match=rf"callbacks.{kind.name}.*{key}={value}"):
        kind(tmp_path, **{key: value})


@pytest.mark.slow
def test_an_interrupted_training_has_the_frames_of_an_undisturbed_one(tmp_path: Path) -> None:
    command = [sys.executable, "train.py", *TINY, *SMALL_VAE, "trainer.max_epochs=6"]
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
