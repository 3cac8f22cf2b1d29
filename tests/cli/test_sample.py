"""`genlab sample`: images as a function of seed, index and class; their folders; refusals."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from trained_runs import train_in

from genlab import cli
from genlab.cli.drawing import class_number
from genlab.diffusion.inpainting import inpaint
from genlab.diffusion.model import DDPM
from genlab.errors import DONE, REFUSED, ConfigError
from genlab.runs.run import Run
from genlab.seeding import ImageNoise
from genlab.tensors import to_pixels
from genlab.training.load import load

Pixels = npt.NDArray[np.uint8]

ROOT = Path(__file__).parents[2]
N = 5
TINY = [
    "trainer=smoke",
    "callbacks=none",
    "logger=none",
    "forecast=false",
    "data.eval_batch_size=20",
]
SMALL = ["model=ddpm", "model.steps=20", "model.sampler.steps=5", "model.net.channels=8"]
# large enough that a few steps already tell the classes apart
CONDITIONAL = ["model.conditional=true", "model.optimizer.lr=0.01"]


def train(folder: Path, *overrides: str) -> Path:
    return train_in(folder, *TINY, *overrides).path


@pytest.fixture(scope="module")
def conditional(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    return train(folder, *SMALL, *CONDITIONAL, "trainer.limit_train_batches=12")


@pytest.fixture(scope="module")
def unconditional(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("runs"), *SMALL)


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("runs"))


def sample(out: Path, *arguments: object) -> Pixels:
    """The images that a command leaves in `out`."""
    said = ["sample", *map(str, arguments), "--out", str(out)]
    if "--n" not in said:
        said += ["--n", str(N)]
    assert cli.main(said) == DONE
    with np.load(out / "samples.npz") as content:
        return np.asarray(content["images"])


def difference(a: Pixels, b: Pixels) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())


@pytest.mark.parametrize("model", ["conditional", "vae"])
def test_an_image_does_not_depend_on_the_batch_that_it_is_drawn_in(
    model: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """To one level: other shapes take other kernels, which round otherwise."""
    path = request.getfixturevalue(model)
    noisy = ["--sampler", "ancestral", "--guidance", 3] if model == "conditional" else []
    drawn = {
        size: sample(tmp_path / str(size), path, *noisy, "--batch-size", size)
        for size in (1, 3, 64)
    }
    assert drawn[1].shape == (N, 28, 28, 1) and drawn[1].dtype == np.uint8
    assert difference(drawn[1], drawn[3]) <= 1 and difference(drawn[1], drawn[64]) <= 1
    fewer = sample(tmp_path / "fewer", path, *noisy, "--n", 2)
    assert difference(fewer, drawn[64][:2]) <= 1
    assert difference(drawn[64][0], drawn[64][1]) > 1


@pytest.mark.parametrize("model", ["conditional", "vae"])
@pytest.mark.slow
def test_several_devices_draw_what_one_draws(
    model: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    path = request.getfixturevalue(model)
    alone, shared = (
        sample(tmp_path / device, path, "--batch-size", 2, "--device", device)
        for device in ("cpu", "cpu,cpu")
    )
    assert np.array_equal(alone, shared)
    assert difference(alone[0], alone[-1]) > 1


#: Python runs this at its start: Ctrl-C reaches a process that draws before it has begun.
INTERRUPTED = """
import os, signal, sys
if any("spawn_main" in word for word in sys.orig_argv):
    os.kill(os.getpid(), signal.SIGINT)
"""


@pytest.mark.slow
def test_processes_that_draw_leave_ctrl_c_to_the_command(vae: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTED)
    arguments = ["sample", vae, "--n", "4", "--device", "cpu,cpu", "--out", tmp_path / "out"]
    done = subprocess.run(
        [sys.executable, "-m", "genlab", *arguments],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    progress = re.compile(r"VAE: \d+ %.*")  # of a slow machine
    said = [line for line in done.stderr.splitlines() if not progress.fullmatch(line)]
    assert (done.returncode, said) == (DONE, [])


@pytest.mark.parametrize("model", ["conditional", "vae"])
def test_seed_0_is_what_training_pictures(
    model: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    path = request.getfixturevalue(model)
    expected = to_pixels(load(path).sample(N, seed=0)).permute(0, 2, 3, 1).numpy()  # type: ignore[operator]
    assert difference(sample(tmp_path / "a", path), expected) <= 1


def test_what_changes_the_images(conditional: Path, tmp_path: Path) -> None:
    plain = sample(tmp_path / "plain", conditional, "--class", 3)
    for i, changed in enumerate(
        [
            ["--class", 3, "--seed", 1],
            ["--class", 4],
            ["--class", 3, "--guidance", 5],
            ["--class", 3, "--steps", 20],
            ["--class", 3, "--grid", "quadratic"],
            ["--class", 3, "--eta", 1],
            ["--class", 3, "--sampler", "heun", "--steps", 5],
        ]
    ):
        assert difference(plain, sample(tmp_path / str(i), conditional, *changed)) > 1, changed
    strong = ["--class", 3, "--guidance", 5]
    nowhere = sample(tmp_path / "no", conditional, *strong, "--guidance-interval=90,91")
    assert difference(plain, nowhere) <= 1
    everywhere = sample(tmp_path / "yes", conditional, *strong, "--guidance-interval=-90,90")
    assert difference(everywhere, sample(tmp_path / "all", conditional, *strong)) <= 1
    both = sample(tmp_path / "both", conditional, "--class", "3,4")
    assert difference(both[0], plain[0]) <= 1
    other = sample(tmp_path / "other", conditional, "--class", 4)
    assert difference(both[1], other[1]) <= 1


def test_the_files_hold_the_same_images_and_what_made_them(
    conditional: Path, tmp_path: Path
) -> None:
    images = sample(tmp_path, conditional, "--n", 12, "--seed", 7, "--trajectory")
    files = sorted((tmp_path / "images").iterdir())
    assert [file.name for file in files] == [f"{i:02}.png" for i in range(12)]
    for file, image in zip(files, images, strict=True):
        with Image.open(file) as picture:
            assert picture.mode == "L" and np.array_equal(np.asarray(picture), image[:, :, 0])
    with np.load(tmp_path / "samples.npz") as content:
        facts = {key: content[key].tolist() for key in content.files if key != "images"}
    assert facts["labels"] == [*range(10), 0, 1]
    known = {"seed": 7, "n": 12, "sampler": "DDIM", "steps": 5, "grid": "log_snr", "eta": 0}
    known |= {"guidance": 1, "run": conditional.name, "model": "DDPM", "checkpoint": "best"}
    assert {key: facts[key] for key in known} == known
    with Image.open(tmp_path / "grid.png") as grid:
        # a column for each class, two pixels between them, and a margin
        assert grid.width == 10 * 58 - 2 + 12
    sample(tmp_path / "two", conditional, "--class", "3,7", "--n", 16)
    with Image.open(tmp_path / "two" / "grid.png") as grid:
        assert grid.height > 4 * 58 > grid.height - 58
    with Image.open(tmp_path / "trajectory.png") as trajectory:
        assert trajectory.height > 8 * 58 and trajectory.width > 5 * 58


def test_each_call_writes_a_folder_of_its_own(
    unconditional: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["sample", str(unconditional), "--n", "2"]
    assert cli.main(command) == DONE
    (folder,) = (unconditional / "samples").iterdir()
    assert folder.name == "ddim-5-n2-seed0" and str(folder) in capsys.readouterr().out
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    assert cli.main([*command, "--batch-size", "1"]) == DONE
    again = unconditional / "samples" / "ddim-5-n2-seed0-2"
    assert str(again) in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == before
    with np.load(folder / "samples.npz") as first, np.load(again / "samples.npz") as second:
        assert difference(first["images"], second["images"]) <= 1
    assert cli.main([*command, "--checkpoint", "last", "--seed", "1"]) == DONE
    (other,) = {*(unconditional / "samples").iterdir()} - {folder, again}
    assert other.name == "ddim-5-n2-seed1-last"
    shutil.rmtree(unconditional / "samples")


def test_images_of_other_weights_are_drawn_anew(
    unconditional: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run, its config, the command, and size and time of the checkpoint stay the same."""
    path = tmp_path / "runs" / unconditional.name
    shutil.copytree(unconditional, path)

    def drawn() -> Pixels:
        assert cli.main(["sample", str(path), "--n", "2"]) == DONE
        folder = Path(capsys.readouterr().out.splitlines()[-1].strip())
        with np.load(folder / "samples.npz") as samples:
            return np.asarray(samples["images"])

    checkpoint = path / "checkpoints" / "best.ckpt"
    content = torch.load(checkpoint, weights_only=True)
    torch.save(content, checkpoint)
    written = checkpoint.stat()
    before = drawn()
    sample(tmp_path / "out", path, "--n", 2)
    torch.manual_seed(0)
    for value in content["state_dict"].values():
        if value.is_floating_point() and value.ndim > 1:
            value += 0.1 * torch.randn_like(value)
    torch.save(content, checkpoint)
    os.utime(checkpoint, ns=(written.st_atime_ns, written.st_mtime_ns))
    assert checkpoint.stat().st_size == written.st_size
    after = drawn()
    assert difference(before, after) > 1
    # nor are they taken from, or left in, a folder that was named
    asked = ["sample", str(path), "--n", "2", "--out", str(tmp_path / "out")]
    if cli.main(asked) == DONE:
        with np.load(tmp_path / "out" / "samples.npz") as samples:
            assert np.array_equal(samples["images"], after)
    assert difference(sample(tmp_path / "new", path, "--n", 2), after) <= 1


def test_nothing_else_is_overwritten(
    unconditional: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sample(tmp_path / "a", unconditional)
    content = (tmp_path / "a" / "samples.npz").read_bytes()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.tex").touch()
    for name in ("a", "b"):
        arguments = ["sample", str(unconditional), "--seed", "1", "--out", str(tmp_path / name)]
        assert cli.main(arguments) == REFUSED
        assert "holds other files" in capsys.readouterr().err
    assert (tmp_path / "a" / "samples.npz").read_bytes() == content
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["thesis.tex"]


def side_by_side(folder: Path, n: int) -> list[Pixels]:
    """The rows of a comparison as they are seen: every second pixel, right of the names."""
    with Image.open(folder / "side-by-side.png") as picture:
        seen = np.asarray(picture)
    right = seen[:, -6 - (n * 58 - 2) : -6]
    rows = (len(seen) - 6) // 58
    top = len(seen) - 6 - (rows * 58 - 2)
    return [
        np.stack([right[top + 58 * r :, 58 * i :][:56:2, :56:2, None] for i in range(n)])
        for r in range(rows)
    ]


def test_samplers_side_by_side_start_from_the_same_noise(
    unconditional: Path, tmp_path: Path
) -> None:
    """In one step all of them return the image that the network sees in the noise."""
    own = tmp_path / "own.yaml"
    own.write_text("_target_: genlab.diffusion.samplers.Heun\nsteps: 1\n")
    arguments = ["--sampler", "ddim,dpm_solver", "--sampler", own, "--steps", "1,7", "--n", "20"]
    said = ["sample", unconditional, *arguments, "--out", tmp_path / "out"]
    assert cli.main(list(map(str, said))) == DONE
    rows = side_by_side(tmp_path / "out", 16)
    assert len(rows) == 6
    folders = [path.name for path in (tmp_path / "out").iterdir() if path.is_dir()]
    ways = [f"{name}-{steps}" for name in ("ddim", "dpm_solver", "own") for steps in (1, 7)]
    assert sorted(folders) == sorted(ways)
    for row in rows[2], rows[4]:
        assert difference(rows[0], row) <= 1
    assert not np.array_equal(rows[0], rows[1])
    with np.load(tmp_path / "out" / "ddim-7" / "samples.npz") as content:
        assert np.array_equal(rows[1], content["images"][:16])


def test_a_class_is_its_name_before_it_is_its_number() -> None:
    known = ("cat", "7", "dog")
    assert [class_number(word, known) for word in ("cat", "2", "7")] == [0, 2, 1]
    with pytest.raises(ConfigError, match="did you mean dog"):
        class_number("dogs", known)


@pytest.mark.parametrize(
    ("model", "arguments", "words"),
    [
        ("conditional", ["--class", "10"], ["--class 10", "from 0 to 9"]),
        ("conditional", ["--class", "3,cat"], ["--class cat", "from 0 to 9"]),
        ("unconditional", ["--class", "3"], ["--class 3", "model.conditional=true"]),
        ("unconditional", ["--guidance", "2"], ["--guidance=2", "model.conditional=true"]),
        ("conditional", ["--guidance", "-1"], ["guidance=-1", "at least 0"]),
        (
            "conditional",
            ["--guidance-interval=5,-3"],
            ["--guidance-interval=[5.0, -3.0]", "the lower one first"],
        ),
        ("conditional", ["--guidance-interval", "low"], ["--guidance-interval low", "=-3,5"]),
        ("vae", ["--guidance-interval=-3,5"], ["--guidance-interval", "VAE", "leave"]),
        ("unconditional", ["--steps", "21"], ["--steps=21", "model.steps=20", "at most 20"]),
        ("unconditional", ["--steps", "few"], ["--steps few", "whole numbers"]),
        ("unconditional", ["--sampler", "dimm"], ["--sampler dimm", "did you mean ddim?"]),
        ("unconditional", ["--sampler", "heun,ddim"], ["--steps=50", "at most 20"]),
        ("unconditional", ["--sampler", "heun", "--eta", "1"], ["--eta 1", "--sampler ddim"]),
        (
            "unconditional",
            ["--sampler", "dpm_solver_sde", "--eta", "1"],
            ["this sampler has no such choice"],  # it adds noise all the same
        ),
        ("unconditional", ["--eta", "2"], ["--eta=2", "at most 1"]),
        ("unconditional", ["--grid", "even"], ["--grid='even'", "log_snr"]),
        ("unconditional", ["--n", "0"], ["--n=0", "at least 1"]),
        ("unconditional", ["--batch-size", "0"], ["--batch-size=0", "at least 1"]),
        ("unconditional", ["--seed", "-1"], ["--seed -1", "from 0"]),
        ("unconditional", ["--device", "cuda:99"], ["--device cuda:99", "cpu"]),
        ("unconditional", ["--device", "gpu"], ["--device gpu", "cpu"]),
        ("vae", ["--sampler", "ddim"], ["--sampler", "VAE", "leave"]),
        ("vae", ["--eta", "0"], ["--eta", "VAE", "leave"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_refusals(
    model: str,
    arguments: list[str],
    words: list[str],
    request: pytest.FixtureRequest,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = request.getfixturevalue(model)
    capsys.readouterr()
    assert cli.main(["sample", str(path), *arguments, "--out", str(tmp_path / "out")]) == REFUSED
    (line,) = capsys.readouterr().err.splitlines()
    assert all(word in line for word in words), line
    assert not (tmp_path / "out").exists()


def test_runs_that_cannot_be_read_are_refused(
    unconditional: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "run"
    copy.mkdir()
    for path, words in (
        (tmp_path / "none", ["is not a directory"]),
        (copy, ["no config.yaml"]),
        (copy, ["no checkpoints/best.ckpt", "train it first"]),
        (copy, ["no checkpoints/last.ckpt", "--checkpoint best"]),
    ):
        if "train it first" in words:
            shutil.copy(Run(unconditional).config_path, copy)
        asked = ["--checkpoint", "last"] if "--checkpoint best" in words else []
        if asked:
            (copy / "checkpoints").mkdir()
            shutil.copy(unconditional / "checkpoints" / "best.ckpt", copy / "checkpoints")
        assert cli.main(["sample", str(path), *asked]) == REFUSED
        said = capsys.readouterr().err
        assert all(word in said for word in words), said


@pytest.mark.slow
def test_fourier_features_do_not_make_the_rounding_of_small_batches_visible(tmp_path: Path) -> None:
    """Batches of 1 to 3 images round otherwise, and features of order 8 would show it."""
    fourier = ["model.net.fourier=[7,8]", "model.optimizer.lr=0.02", "model.sampler.steps=20"]
    path = train(tmp_path, *SMALL, *fourier, "trainer.limit_train_batches=12")
    drawn = []
    for size in (1, 3, 8):
        out = tmp_path / str(size)
        asked = ["--n", "8", "--batch-size", str(size), "--out", str(out)]
        assert cli.main(["sample", str(path), *asked]) == DONE
        with np.load(out / "samples.npz") as file:
            drawn.append(file["images"])
            assert int(file["batch_size"]) == size
    assert all(np.array_equal(images, drawn[0]) for images in drawn)


def test_inpainting_keeps_what_is_known(unconditional: Path) -> None:
    model = load(unconditional)
    assert isinstance(model, DDPM)
    known = torch.rand(2, 1, 28, 28)
    mask = torch.zeros(1, 1, 28, 28)
    mask[..., :14] = 1
    other = ImageNoise(1, "noise", indices=range(2))
    keep = inpaint(2 * known - 1, mask, lambda: other.normal(*known.shape[1:]))
    images = model.sample(2, seed=0, project=keep)
    free = model.sample(2, seed=0)
    torch.testing.assert_close(images[..., :14], known[..., :14])
    assert not torch.allclose(images[..., 14:], free[..., 14:])


PRIOR = '''
from genlab.vae.priors import StandardNormal


class Mine(StandardNormal):
    """A prior of another package."""
'''


@pytest.mark.parametrize("command", ["sample", "video"])
def test_a_class_of_another_package_needs_trust(
    command: str,
    vae: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The package lies in the working directory, and nothing of it is imported before."""
    name = f"lab_for_{command}"
    path = tmp_path / "received"
    shutil.copytree(vae, path)
    config = (path / "config.yaml").read_text()
    known = "genlab.vae.priors.StandardNormal"
    assert known in config
    (path / "config.yaml").write_text(config.replace(known, f"{name}.Mine"))
    (tmp_path / f"{name}.py").write_text(PRIOR)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    asked = {
        "sample": [str(path), "--n", "2"],
        "video": [str(path), "--kind", "prior_walk", "--seconds", "0.2", "--n", "1"],
    }[command]
    for trust in ([], ["--trust", "another"]):
        assert cli.main([command, *asked, *trust, "--out", str(tmp_path / "out")]) == REFUSED
        (line,) = capsys.readouterr().err.splitlines()
        assert f"model.prior._target_='{name}.Mine'" in line and "--trust PACKAGE" in line
        assert name not in sys.modules and not (tmp_path / "out").exists()
    trust = ["--trust", "another", "--trust", name]
    assert cli.main([command, *asked, *trust, "--out", str(tmp_path / "out")]) == DONE
    assert any((tmp_path / "out").iterdir())
    if command == "sample":
        with np.load(tmp_path / "out" / "samples.npz") as content:
            assert difference(content["images"], sample(tmp_path / "own", vae, "--n", 2)) == 0
