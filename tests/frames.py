"""Frames of videos that tests make, read and compare."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt

from genlab.media import videos

Pixels = npt.NDArray[np.uint8]


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


def assert_same_film(path: Path, other: Path) -> None:
    """Byte for byte, but for what x264 once in a hundred times decides otherwise."""
    if path.suffix == ".mp4":
        ours, theirs = (videos.read_video(file).astype(int) for file in (path, other))
        assert ours.shape == theirs.shape, path
        assert np.abs(ours - theirs).mean() < 0.5, path
    else:
        assert path.read_bytes() == other.read_bytes(), path
