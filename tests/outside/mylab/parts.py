"""One class of each kind that genlab lets a user add, written from outside."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Laplace
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import Metric

from genlab.data.base import Images, ImageSource, SourceSplit
from genlab.diffusion.process import alpha_sigma
from genlab.diffusion.samplers import Rule, Sampler, Walk
from genlab.diffusion.schedules import NoiseSchedule
from genlab.diffusion.variances import Prediction
from genlab.errors import number, whole
from genlab.protocols import ImageSpec
from genlab.vae.kl_schedules import KLSchedule
from genlab.vae.likelihoods import Likelihood


class Root(NoiseSchedule):
    """The log-SNR falls like a power of t, from `height` to -`height`."""

    def __init__(self, height: float, power: float = 0.5) -> None:
        super().__init__()
        self.height = number("height", height, above=0)
        self.power = number("power", power, above=0)

    def curve(self, u: Tensor) -> Tensor:
        return self.height * (1 - 2 * u**self.power)


class Quadratic(KLSchedule):
    """A parabola from 0 to 1 in `steps` optimizer steps."""

    def __init__(self, steps: int) -> None:
        self.steps = whole("steps", steps, 1)

    def weight(self, step: int) -> float:
        return min(1.0, step / self.steps) ** 2


class LaplaceLikelihood(Likelihood):
    """A Laplace density of fixed scale: the absolute error / scale + D ln(2 scale)."""

    def __init__(self, scale: float = 0.1) -> None:
        super().__init__()
        self.scale = number("scale", scale, above=0)

    def forward(self, output: Tensor) -> Distribution:
        loc = output.float()
        return Independent(Laplace(loc, torch.full_like(loc, self.scale), validate_args=False), 3)


@dataclass(frozen=True)
class Renoise(Sampler):
    """x_s ~ q(x_s | x0_hat), with fresh noise at each step (Song et al. 2023, algorithm 1)."""

    def rule(self, walk: Walk) -> Rule:
        alphas, sigmas = (values.tolist() for values in alpha_sigma(walk.path.log_snrs))

        def advance(i: int, x_t: Tensor, prediction: Prediction) -> Tensor:
            x_s = alphas[i + 1] * prediction.x0_hat
            return x_s.add_(walk.noise(), alpha=sigmas[i + 1]) if sigmas[i + 1] > 0 else x_s

        return advance


class Discs(ImageSource):
    """White discs of two sizes on black, 12 x 12 pixels."""

    name = "discs"

    def __init__(self, images: int = 256) -> None:
        self.images = whole("images", images, 2)

    @property
    def spec(self) -> ImageSpec:
        return ImageSpec(1, 12, 12, classes=("small", "large"))

    def prepare(self, data_dir: Path) -> None:
        """Nothing to fetch."""

    def load(self, data_dir: Path, split: SourceSplit) -> Images:
        random = np.random.default_rng(0 if split == "train" else 1)
        y, x = np.mgrid[:12, :12]
        labels = np.arange(self.images, dtype=np.int64) % 2
        centres = random.uniform(4, 8, (self.images, 2, 1, 1))
        distance = np.hypot(y - centres[:, 0], x - centres[:, 1])
        inside = distance < (2 + 2 * labels)[:, None, None]
        return Images((255 * inside[:, None]).astype(np.uint8), labels)


class Plain(nn.Module):
    """Two convolutions that are told nothing of the noise level but by a bias."""

    def __init__(self, spec: ImageSpec, out_channels: int, classes: int, width: int = 8) -> None:
        super().__init__()
        whole("width", width, 1)
        self.first = nn.Conv2d(spec.channels, width, 3, padding=1)
        self.level = nn.Linear(1, width)
        self.last = nn.Conv2d(width, out_channels, 3, padding=1)

    def forward(self, x_t: Tensor, log_snr: Tensor, labels: Tensor | None = None) -> Tensor:
        level = self.level(log_snr.clamp(-20, 20).to(x_t.dtype)[:, None])[:, :, None, None]
        out: Tensor = self.last(torch.relu(self.first(x_t) + level))
        return out


class SignDescent(torch.optim.Optimizer):
    """Each weight moves by `lr` against the sign of its gradient."""

    def __init__(self, params: Iterable[Tensor], lr: float) -> None:
        super().__init__(params, {"lr": number("lr", lr, above=0)})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None if closure is None else closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    weight.add_(weight.grad.sign(), alpha=-group["lr"])
        return loss


class Halving(LRScheduler):
    """The rate halves after every `every` optimizer steps."""

    def __init__(self, optimizer: torch.optim.Optimizer, every: int) -> None:
        self.every = whole("every", every, 1)
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        return [rate * 0.5 ** (self.last_epoch // self.every) for rate in self.base_lrs]


class WorstPixel(Metric):
    """The largest error of any pixel of a reconstruction."""

    full_state_update = False
    worst: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("worst", torch.tensor(0.0), dist_reduce_fx="max")

    def update(self, preds: Tensor, target: Tensor) -> None:
        self.worst = torch.maximum(self.worst, (preds - target).abs().max())

    def compute(self) -> Tensor:
        return self.worst


class CountsEpochs(pl.Callback):
    """Logs how many epochs there were, and writes them into the run directory."""

    def __init__(self, directory: Path, start: int = 0) -> None:
        self.directory, self.epochs = directory, start

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.epochs += 1
        (self.directory / "epochs.txt").write_text(str(self.epochs))

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pl_module.log("val/epochs_so_far", float(self.epochs))


class Lines(Logger):
    """Every row as a line of JSON."""

    def __init__(self, save_dir: str) -> None:
        super().__init__()
        self.path = Path(save_dir) / "lines.jsonl"

    @property
    def name(self) -> str:
        return "lines"

    @property
    def version(self) -> int:
        return 0

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self.path.with_name("hyperparameters.json").write_text(json.dumps(params, default=str))


class Identity(nn.Sequential):
    """An encoder of two linear maps, with no layer between."""

    def __init__(self, spec: ImageSpec, latent_dim: int, widths: Sequence[int] = ()) -> None:
        sizes = [spec.dims, *widths, 2 * latent_dim]
        layers = [nn.Linear(a, b) for a, b in zip(sizes[:-1], sizes[1:], strict=True)]
        super().__init__(nn.Flatten(), *layers)
