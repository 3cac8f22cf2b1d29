"""Videos of what a model can do, in the run directory and on W&B.

What moves is a function of the model, of the first validation images and of a seed that is not the
run's: so the same moment of two runs' videos shows the same end points and the same noise.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor

from genlab.callbacks.pictures import PictureCallback, Pixels
from genlab.checks import number, whole
from genlab.diffusion.samplers import ImageNoise
from genlab.media import pictures, videos
from genlab.modules.ddpm import DDPM
from genlab.modules.vae import VAE
from genlab.protocols import CanInterpolate, CanSample
from genlab.seeding import generator
from genlab.vae.priors import StandardNormal

#: n to the first n validation images in model space.
Inputs = Callable[[int], Tensor]

#: Seconds for which a video that ends in a result shows it.
_HOLD = 1.5
#: Validation images by which latents are ordered.
_MEASURED = 1000
#: Images that are drawn at once.
_BATCH = 64


class VideoCallback(PictureCallback):
    """Films every `every_n_epochs` epochs, after the last one, and in the test.

    Args:
        videos: the run's `videos/`.
        images: how many panels move at once.
        every_n_epochs: epochs between two videos; 0 films in the test alone.
        seconds, fps: the length, and frames a second.
        seed: of what is drawn; the same for all runs that are to be compared.
    """

    kind: str

    def __init__(
        self,
        videos: Path,
        images: int = 9,
        every_n_epochs: int = 0,
        seconds: float = 6.0,
        fps: float = videos.FPS,
        seed: int = 0,
    ) -> None:
        super().__init__(videos, images, every_n_epochs)
        key = f"callbacks.{self.name}"
        self.seconds = number(f"{key}.seconds", seconds, above=0, at_most=600)
        self.fps = number(f"{key}.fps", fps, at_least=1, at_most=60)
        self.seed = whole(f"{key}.seed", seed, 0)

    @property
    def frames(self) -> int:
        """How many there are; 2 or more."""
        return max(2, round(self.seconds * self.fps))

    @abstractmethod
    def film(self, module: Any, inputs: Inputs) -> Pixels | None:
        """Frames (T, H, W) or (T, H, W, 3); None if the model lacks the ability."""

    def draw(self, trainer: pl.Trainer, module: Any) -> dict[str, Pixels]:
        film = self.film(module, lambda count: self.inputs(trainer, module, count))
        return {} if film is None else {self.kind: film}

    def keep(self, trainer: pl.Trainer, name: str, picture: Pixels, when: str) -> None:
        title = self.caption(trainer, trainer.lightning_module, name.replace("_", " "))
        written = videos.save(self.directory / f"{name}-{when}", picture, self.fps, title)
        for logger in trainer.loggers:
            if hasattr(logger, "log_video") and written[0].suffix == ".mp4":
                logger.log_video(f"videos/{name}", written[0], trainer.global_step)

    def panels(
        self,
        module: Any,
        images: Tensor,
        labels: list[str] | None = None,
        columns: int | None = None,
    ) -> Pixels:
        """Images (T, N, C, H, W) in model space as frames of N panels."""
        shown = self.shown(module, images.flatten(0, 1))
        return videos.panels(shown.reshape(images.shape), labels, columns)


class InterpolationVideo(VideoCallback):
    """Validation images turning into one another, and back into the first.

    Between two images the way is straight, from posterior mean to posterior mean in a VAE; at each
    of them it rests, and shows its reconstruction.

    Args:
        stops: how many images a panel visits.
    """

    name, kind = "video_interpolation", "interpolation"

    def __init__(
        self,
        videos: Path,
        images: int = 9,
        every_n_epochs: int = 0,
        seconds: float = 6.0,
        fps: float = videos.FPS,
        seed: int = 0,
        stops: int = 4,
    ) -> None:
        super().__init__(videos, images, every_n_epochs, seconds, fps, seed)
        self.stops = whole(f"callbacks.{self.name}.stops", stops, 2)

    def film(self, module: Any, inputs: Inputs) -> Pixels | None:
        if not isinstance(module, CanInterpolate):
            return None
        x = inputs(self.images * self.stops)
        x = x[: len(x) // self.stops * self.stops]
        if len(x) == 0:
            return None
        each = max(2, self.frames // self.stops)
        rest = each // 4
        loops = []
        for stops in x.split(self.stops):
            way = module.interpolate(stops, stops.roll(-1, 0), each - rest + 1)[:, :-1]
            still = way[:, :1].expand(-1, rest, -1, -1, -1)
            loops.append(torch.cat([still, way], 1).flatten(0, 1))
        return self.panels(module, torch.stack(loops, 1))


class TraversalVideo(VideoCallback):
    """The latents with the highest KL, each moved to `extent`, to -`extent` and back.

    A panel moves one of them; the others stay at the posterior mean of the first validation image.
    """

    name, kind = "video_traversal", "traversal"

    def __init__(
        self,
        videos: Path,
        images: int = 9,
        every_n_epochs: int = 0,
        seconds: float = 6.0,
        fps: float = videos.FPS,
        seed: int = 0,
        extent: float = 3.0,
    ) -> None:
        super().__init__(videos, images, every_n_epochs, seconds, fps, seed)
        self.extent = number(f"callbacks.{self.name}.extent", extent, above=0)

    def film(self, module: Any, inputs: Inputs) -> Pixels | None:
        if not isinstance(module, VAE):
            return None
        x = inputs(_MEASURED)
        with torch.no_grad():
            posterior = module.encode(x)
        mean, log_var = posterior.loc, posterior.log_var
        kl = 0.5 * (mean.square() + log_var.exp() - 1 - log_var).mean(0)
        dims = kl.argsort(descending=True)[: self.images].tolist()
        turn = np.linspace(0, 2 * np.pi, self.frames, endpoint=False)
        values = (self.extent * np.sin(turn)).tolist()
        films = [module.traverse(x[:1], [d], values)[0] for d in dims]
        labels = [f"z{d}: {kl[d]:.2f}" for d in dims]
        frames = self.panels(module, torch.stack(films, 1), labels)
        return videos.captioned(frames, [f"one latent at {v:+.1f}; KL in nats" for v in values])


class PriorWalkVideo(VideoCallback):
    """A closed walk along a great circle through two draws a, b of the prior: cos a + sin b.

    For independent standard normal a and b every point of it is a draw again, so that no frame is
    less typical than another. A diffusion model walks through all the noise that its sampler uses.

    Args:
        sampled_frames: different frames of a diffusion model's walk, each of which takes a whole
            sampling of every panel; 0 makes no such video.
    """

    name, kind = "video_prior_walk", "prior_walk"

    def __init__(
        self,
        videos: Path,
        images: int = 9,
        every_n_epochs: int = 0,
        seconds: float = 6.0,
        fps: float = videos.FPS,
        seed: int = 0,
        sampled_frames: int = 0,
    ) -> None:
        super().__init__(videos, images, every_n_epochs, seconds, fps, seed)
        self.sampled_frames = whole(f"callbacks.{self.name}.sampled_frames", sampled_frames, 0)

    def film(self, module: Any, inputs: Inputs) -> Pixels | None:
        if isinstance(module, VAE) and isinstance(module.prior, StandardNormal):
            latents = self.latents(self.frames, module.latent_dim)
            with torch.no_grad():
                images = [
                    module.decode(z.to(module.device)).mean
                    for z in latents.flatten(0, 1).split(_BATCH)
                ]
            return self.panels(module, torch.cat(images).unflatten(0, latents.shape[:2]))
        if isinstance(module, DDPM) and self.sampled_frames:
            count = min(self.sampled_frames, self.frames)
            frames = self.panels(module, self._sampled(module, count))
            return frames[np.arange(self.frames) * count // self.frames]
        return None

    def latents(self, steps: int, latent_dim: int) -> Tensor:
        """The walk of every panel, (steps, images, latent_dim)."""
        draws = [
            torch.randn(2, latent_dim, generator=generator(self.seed, "prior walk", i))
            for i in range(self.images)
        ]
        a, b = torch.stack(draws, 1)
        turn = torch.linspace(0, 2 * math.pi, steps + 1)[:-1, None, None]
        return turn.cos() * a + turn.sin() * b

    def _sampled(self, module: DDPM, count: int) -> Tensor:
        turns = torch.linspace(0, 2 * math.pi, count + 1)[:-1].repeat_interleave(self.images)
        places = range(count * self.images)
        images = []
        for start in range(0, len(places), _BATCH):
            panel = [i % self.images for i in places[start : start + _BATCH]]
            turn = turns[start : start + _BATCH, None, None, None].to(module.device)
            streams = [
                ImageNoise(self.seed + end, panel, module.spec.shape, module.device)
                for end in range(2)
            ]

            def noise(turn: Tensor = turn, streams: list[ImageNoise] = streams) -> Tensor:
                return turn.cos() * streams[0]() + turn.sin() * streams[1]()

            classes = len(module.spec.classes)
            labels = torch.tensor(panel) % classes if module.conditional else None
            images.append(
                module.sample_with(
                    panel, self.seed, labels=labels, guidance=module.guidance, noise=noise
                )
            )
        return torch.cat(images).unflatten(0, (count, self.images))


class TrajectoryVideo(VideoCallback):
    """Samples on their way out of noise: x_t above the image that the network sees in it."""

    name, kind = "video_trajectory", "trajectory"

    def film(self, module: Any, inputs: Inputs) -> Pixels | None:
        if not isinstance(module, DDPM):
            return None
        steps = module.sampler.path(module.process).steps
        rest = min(self.frames - 1, round(_HOLD * self.fps))
        shown = np.arange(self.frames - rest) * steps // (self.frames - rest)
        wanted = set(shown.tolist())
        kept: dict[int, tuple[float, Tensor, Tensor]] = {}

        def keep(i: int, t: float, x_t: Tensor, x0_hat: Tensor) -> None:
            if i in wanted:
                kept[i] = (t, x_t.clone(), x0_hat.clone())

        final = 2 * module.sample(self.images, self.seed, on_step=keep) - 1
        times, noisy, seen = zip(*(kept[i] for i in shown.tolist()), strict=True)
        log_snrs = module.process.log_snr(torch.tensor(times, dtype=torch.float64).to(final.device))
        ways = [torch.stack([*way, *[final] * rest]) for way in (noisy, seen)]
        films = [self.panels(module, (way.float() + 1) / 2, columns=self.images) for way in ways]
        captions = [
            f"t {t:.2f}, log-SNR {s:+.1f}" for t, s in zip(times, log_snrs.tolist(), strict=True)
        ]
        names = ["x_t", "x0_hat, seen in it"]
        return videos.captioned(
            videos.tile(films, names, columns=1), [*captions, *["t 0, the sample"] * rest]
        )


class TrainingVideo(VideoCallback):
    """Samples from fixed noise as training goes on.

    A validation leaves its frame in `videos/frames/`, named by the step; the test makes the video
    of all that are there, so that a run that was interrupted has them all.

    Args:
        most_frames: of a long training only so many validations are filmed, evenly spread.
    """

    name, kind = "video_training", "training"

    def __init__(
        self,
        videos: Path,
        images: int = 9,
        seconds: float = 6.0,
        fps: float = videos.FPS,
        seed: int = 0,
        most_frames: int = 60,
    ) -> None:
        super().__init__(videos, images, 0, seconds, fps, seed)
        self.most_frames = whole(f"callbacks.{self.name}.most_frames", most_frames, 2)

    def film(self, module: Any, inputs: Inputs) -> Pixels | None:
        paths = sorted(self.directory.glob("frames/*.png"))
        if len(paths) < 2:
            return None
        rest = round(_HOLD * self.fps)
        each = max(1, round((self.frames - rest) / len(paths)))
        which = [i for i in range(len(paths)) for _ in range(each)] + [len(paths) - 1] * rest
        frames = np.stack([pictures.read_png(path) for path in paths])
        return videos.captioned(
            frames[which], [f"samples at step {int(paths[i].stem)}" for i in which]
        )

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        module: Any = pl_module
        if trainer.state.fn != "fit" or not self._is_due(trainer):
            return
        if not self.takes_part(trainer, module):
            return
        if isinstance(module, CanSample):
            frame = self.panels(module, module.sample(self.images, self.seed)[None])[0]
            path = self.directory / "frames" / f"{trainer.global_step:09d}.png"
            if trainer.is_global_zero:
                with self.worth_no_run(trainer):
                    pictures.save_png(path, frame)

    def _is_due(self, trainer: pl.Trainer) -> bool:
        """A function of the epoch alone, so that a resumed run films the same ones."""
        epochs = trainer.max_epochs or 0
        if epochs < 1:
            return True
        now = trainer.current_epoch + 1
        before = now - (trainer.check_val_every_n_epoch or 1)
        return now * self.most_frames // epochs > before * self.most_frames // epochs


#: Every kind of video, by its name.
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
