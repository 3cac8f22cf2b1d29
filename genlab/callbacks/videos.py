"""Videos that a model can draw, in the run directory and in loggers.

A video depends on the model, the first validation images and a seed that is not the run's. The same
moment in the videos of two runs therefore shows the same images and the same noise.
"""

# no postponed annotations: see genlab.callbacks.base

import re
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor

from genlab.callbacks.base import (
    MEASURED,
    Inputs,
    MediaCallback,
    Pixels,
    generative,
    latents_by_kl,
    shown,
    takes_part,
)
from genlab.errors import RunDirectoryError, number, whole
from genlab.media import pictures
from genlab.media.videos import FPS, MOST_BYTES, captioned, panels, save, tile
from genlab.modules.base import GenerativeModule
from genlab.protocols import CanInterpolate, CanSample, CanTraverse, CanWalk, HasTrajectory
from genlab.tracking.loggers import TakesVideos

#: Seconds for which a video shows its final result.
_HOLD = 1.5
#: Name of a frame: the step, nine digits.
_FRAME = re.compile(r"[0-9]{9}\.png")


@dataclass(eq=False)
class VideoCallback(MediaCallback):
    """Base of the callbacks that write videos into the run's `videos/`.

    Args:
        videos: the run's `videos/`.
        images: number of panels.
        seconds, fps: the length, and frames per second.
        seed: of the random numbers; the same for all runs that are to be compared.
    """

    kind: ClassVar[str]

    videos: Path
    images: int = field(default=9, kw_only=True)
    every_n_epochs: int = field(default=0, kw_only=True)
    seconds: float = field(default=6.0, kw_only=True)
    fps: float = field(default=FPS, kw_only=True)
    seed: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        number("seconds", self.seconds, above=0, at_most=600)
        number("fps", self.fps, at_least=1, at_most=60)
        whole("seed", self.seed, 0)

    @property
    def frames(self) -> int:
        """Number of frames, 2 or more."""
        return max(2, round(self.seconds * self.fps))

    @abstractmethod
    def film(self, model: Any, inputs: Inputs) -> Pixels | None:
        """Draw frames (T, H, W) or (T, H, W, 3); None if the model lacks the ability."""

    def draw(self, trainer: pl.Trainer, module: GenerativeModule) -> dict[str, Pixels]:
        film = self.film(module.model, self.inputs(trainer, module))
        return {} if film is None else {self.kind: film}

    def keep(self, trainer: pl.Trainer, name: str, drawn: Pixels, when: str) -> None:
        title = self.caption(trainer, name.replace("_", " "))
        path, *_ = save(self.videos / f"{name}-{when}", drawn, self.fps, title)
        for logger in trainer.loggers:
            if isinstance(logger, TakesVideos) and path.suffix == ".mp4":
                logger.log_video(f"videos/{name}", path, trainer.global_step)


def frames_of(
    model: Any, images: Tensor, labels: list[str] | None = None, columns: int | None = None
) -> Pixels:
    """Lay out images (T, N, C, H, W) in [0, 1] as frames of N panels."""
    pixels = shown(model, images.flatten(0, 1))
    return panels(pixels.reshape(images.shape), labels, columns)


@dataclass(eq=False, kw_only=True)
class InterpolationVideo(VideoCallback):
    """Validation images that change into one another, and back into the first.

    The model interpolates between two images; the video pauses at the reconstruction of each.

    Args:
        stops: number of images that a panel visits.
    """

    name: ClassVar[str] = "video_interpolation"
    kind: ClassVar[str] = "interpolation"

    stops: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("stops", self.stops, 2)

    def film(self, model: Any, inputs: Inputs) -> Pixels | None:
        if not isinstance(model, CanInterpolate):
            return None
        x = inputs(self.images * self.stops)
        x = x[: len(x) // self.stops * self.stops]
        if len(x) == 0:
            return None
        each = max(2, self.frames // self.stops)
        rest = each // 4
        loops = []
        for stops in x.split(self.stops):
            way = model.interpolate(stops, stops.roll(-1, 0), each - rest + 1)[:, :-1]
            still = way[:, :1].expand(-1, rest, -1, -1, -1)
            loops.append(torch.cat([still, way], 1).flatten(0, 1))
        return frames_of(model, torch.stack(loops, 1))


@dataclass(eq=False, kw_only=True)
class TraversalVideo(VideoCallback):
    """The latents with the highest KL, each moved to `extent`, to -`extent` and back.

    Each panel moves one latent; the others keep their values for the first validation image.

    Args:
        extent: largest distance that a latent moves.
    """

    name: ClassVar[str] = "video_traversal"
    kind: ClassVar[str] = "traversal"

    extent: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        number("extent", self.extent, above=0)

    def film(self, model: Any, inputs: Inputs) -> Pixels | None:
        if not isinstance(model, CanTraverse):
            return None
        x = inputs(MEASURED)
        latents = latents_by_kl(model, x, self.images)
        turn = np.linspace(0, 2 * np.pi, self.frames, endpoint=False)
        values = (self.extent * np.sin(turn)).tolist()
        films = [model.traverse(x[:1], [d], values)[0] for d, _ in latents]
        labels = [f"z{d}: {kl:.2f}" for d, kl in latents]
        frames = frames_of(model, torch.stack(films, 1), labels)
        return captioned(frames, [f"one latent at {v:+.1f}; KL in nats" for v in values])


@dataclass(eq=False, kw_only=True)
class PriorWalkVideo(VideoCallback):
    """A closed walk through the prior, in which every frame is a sample.

    Args:
        sampled_frames: different frames for a model that samples each one step by step; 0 makes no
            such video.
    """

    name: ClassVar[str] = "video_prior_walk"
    kind: ClassVar[str] = "prior_walk"

    sampled_frames: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("sampled_frames", self.sampled_frames, 0)

    def film(self, model: Any, inputs: Inputs) -> Pixels | None:
        if not isinstance(model, CanWalk):
            return None
        is_costly = isinstance(model, HasTrajectory)
        count = min(self.sampled_frames, self.frames) if is_costly else self.frames
        walk = model.walk(self.images, count, self.seed) if count else None
        if walk is None:
            return None
        return frames_of(model, walk)[np.arange(self.frames) * count // self.frames]


class TrajectoryVideo(VideoCallback):
    """Samples in the reverse process: each x_t above the network's x0_hat."""

    name = "video_trajectory"
    kind = "trajectory"

    def film(self, model: Any, inputs: Inputs) -> Pixels | None:
        if not isinstance(model, HasTrajectory):
            return None
        rest = min(self.frames - 1, round(_HOLD * self.fps))
        moving = self.frames - rest
        steps = np.arange(moving) * model.sampling_steps() // moving
        wanted = set(steps.tolist())
        kept: dict[int, tuple[float, Tensor, Tensor]] = {}

        def keep(i: int, t: float, x_t: Tensor, x0_hat: Tensor) -> None:
            if i in wanted:
                kept[i] = (t, x_t.clone(), x0_hat.clone())

        final = model.sample(self.images, self.seed, on_step=keep)
        times, noisy, seen = zip(*(kept[i] for i in steps.tolist()), strict=True)
        ways = [torch.stack([*map(model.images_of, way), *[final] * rest]) for way in (noisy, seen)]
        films = [frames_of(model, way, columns=self.images) for way in ways]
        captions = [
            f"t {t:.2f}, log-SNR {log_snr:+.1f}"
            for t, log_snr in zip(times, model.log_snr(times), strict=True)
        ]
        return captioned(
            tile(films, ["x_t", "x0_hat, seen in it"], columns=1),
            [*captions, *["t 0, the sample"] * rest],
        )


@dataclass(eq=False, kw_only=True)
class TrainingVideo(VideoCallback):
    """Samples from fixed noise over the course of training.

    Each validation writes a frame into `videos/frames/`, named by the step. The test makes the
    video of the frames in this folder, so that the video of a resumed run has all of them. The
    folder may be from another person: of more than `most_frames` some are left out, evenly.

    Args:
        most_frames: largest number of frames, evenly spaced over the validations of the training.
    """

    name: ClassVar[str] = "video_training"
    kind: ClassVar[str] = "training"

    every_n_epochs: int = field(default=0, init=False)
    most_frames: int = 60

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("most_frames", self.most_frames, 2)

    def film(self, model: Any, inputs: Inputs) -> Pixels | None:
        found = sorted(p for p in self.videos.glob("frames/*.png") if _FRAME.fullmatch(p.name))
        if len(found) < 2:
            return None
        count = min(len(found), self.most_frames)
        paths = [found[round(i * (len(found) - 1) / (count - 1))] for i in range(count)]
        rest = round(_HOLD * self.fps)
        each = max(1, round((self.frames - rest) / len(paths)))
        which = [i for i in range(len(paths)) for _ in range(each)] + [len(paths) - 1] * rest
        frames = np.stack(list(_read_alike(paths, MOST_BYTES // len(which))))
        return captioned(frames[which], [f"samples at step {int(paths[i].stem)}" for i in which])

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        model = generative(pl_module).model
        is_due = trainer.state.fn == "fit" and self._is_due(trainer)
        if not is_due or not takes_part(trainer) or not isinstance(model, CanSample):
            return
        frame = frames_of(model, model.sample(self.images, self.seed)[None])[0]
        if trainer.is_global_zero:
            with self.passing_over_file_errors(trainer):
                path = self.videos / "frames" / f"{trainer.global_step:09d}.png"
                pictures.save_png(path, frame)

    def _is_due(self, trainer: pl.Trainer) -> bool:
        """Decide from the epoch alone, so that a resumed run draws at the same validations."""
        epochs = trainer.max_epochs or 0
        if epochs < 1:
            return True
        now = trainer.current_epoch + 1
        before = now - (trainer.check_val_every_n_epoch or 1)
        return now * self.most_frames // epochs > before * self.most_frames // epochs


def _read_alike(paths: Sequence[Path], most_bytes: int) -> Iterator[Pixels]:
    """Read frames (H, W, 3) of one shape.

    Raises:
        RunDirectoryError: one cannot be read, is of another shape than the first, or takes more
            than `most_bytes`.
    """
    first: Pixels | None = None
    for path in paths:
        frame = pictures.read_png(path)
        first = frame if first is None else first
        if frame.shape != first.shape or frame.nbytes > most_bytes:
            height, width, _ = frame.shape
            raise RunDirectoryError(
                f"{path} has {width} x {height} pixels: remove it, since a frame of this video is "
                f"of the shape of {paths[0].name}, and takes at most {most_bytes:,} bytes"
            )
        yield frame


#: All kinds of video by name.
KINDS: dict[str, type[VideoCallback]] = {
    video.kind: video
    for video in (
        InterpolationVideo,
        TraversalVideo,
        PriorWalkVideo,
        TrajectoryVideo,
        TrainingVideo,
    )
}
