"""Video files: a round trip of the frames, and the properties that players need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from frames import assert_same_film, moving, psnr, unpadded
from PIL import Image

from genlab.errors import RunDirectoryError
from genlab.media import videos

ROOT = Path(__file__).parents[2]


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


def test_all_videos_of_a_combination_share_one_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    film = np.zeros((8, 40, 50, 3), np.uint8)
    film[::2] = 200
    sources = []
    for name in "abc":
        *_, path = videos.save(tmp_path / name, film, videos.FPS, name)
        sources.append(path)
    size = videos.read_video(sources[0]).nbytes * 3  # grey is decoded as colour
    monkeypatch.setattr(videos, "MOST_BYTES", 3 * size)
    assert videos.side_by_side(sources, "abc", tmp_path / "together", "")
    monkeypatch.setattr(videos, "MOST_BYTES", 2 * size)
    with pytest.raises(RunDirectoryError, match="the frames have more than"):
        videos.side_by_side(sources, "abc", tmp_path / "together", "")


def test_a_long_video_beside_a_large_one_is_refused_before_it_takes_the_memory() -> None:
    """Beside each other they have the length of the one and the size of the other."""
    long, large = np.zeros((10_000, 1, 1), np.uint8), np.zeros((1, 1000, 1000), np.uint8)
    with pytest.raises(RunDirectoryError, match="2 videos cannot be put side by side"):
        videos.beside([long, large], ["long", "large"])
