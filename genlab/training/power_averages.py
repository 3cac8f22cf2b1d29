"""Averages of the weights of any length, chosen after the training (Karras et al. 2024, sec. 3)."""

# no postponed annotations: see genlab.callbacks.base

import math
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from genlab.errors import ConfigError, RunDirectoryError, naming, whole
from genlab.runs.files import refuse_links, write_atomically
from genlab.runs.run import Layout
from genlab.training import weights
from genlab.training.ema import averaged
from genlab.training.load import load
from genlab.training.power_profiles import Combination, Profile, combination, gamma_of
from genlab.training.sharding import sharded_like, unsharded

#: Averages at once, and snapshots of a run.
_MOST_WIDTHS, _MOST_SNAPSHOTS = 8, 1000
#: Snapshots of a training where their distance is not given.
_USUAL = 16
#: Bytes of a snapshot beside its weights.
_HEADER = 2**24
#: The relative error of a profile up to which it is used.
_LARGEST_ERROR = 0.1
#: For a snapshot that cannot be used.
_REMEDY = "remove it, and averages are made of the other snapshots"
_NAME = "averages.{steps}.safetensors"


class PowerAverages(pl.Callback):
    """Keeps snapshots of power-function averages, from which one of any length can be made.

    After step t each average moves towards the weights by 1 - (1 - 1/t)^(gamma + 1). The state of
    the averages is in every checkpoint from which a run resumes; the training itself is the same
    with and without them. Snapshots are `checkpoints/averages.STEPS.safetensors`, the last one of
    the last step.

    Args:
        widths: relative widths of the averages; see `power_profiles`.
        every_n_steps: steps between two snapshots; None keeps about 16 in the whole training.
        run: directory of the run; None keeps no snapshots.

    Raises:
        ValueError: a value is outside its range.
    """

    def __init__(
        self,
        widths: Sequence[float] = (0.05, 0.1),
        every_n_steps: int | None = None,
        run: Path | None = None,
    ) -> None:
        if not 1 <= len(widths) <= _MOST_WIDTHS or len(set(widths)) < len(widths):
            raise ValueError(f"widths={list(widths)}: give 1 to {_MOST_WIDTHS} different numbers")
        with naming("widths"):
            self._gammas = [gamma_of(width) for width in widths]
        if every_n_steps is not None:
            whole("every_n_steps", every_n_steps, 1)
        self.widths, self.every_n_steps = [float(width) for width in widths], every_n_steps
        self.folder = None if run is None else Layout(run).checkpoints
        self.steps = 0
        self._averages: list[dict[str, Tensor]] = []
        self._global_step = self._every = self._total = 0

    def state_dict(self) -> dict[str, Any]:
        averages = [{name: unsharded(a) for name, a in one.items()} for one in self._averages]
        return {"widths": self.widths, "steps": self.steps, "averages": averages}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if [float(width) for width in state_dict["widths"]] != self.widths:
            raise ValueError(f"the averages are of the widths {state_dict['widths']}")
        self.steps = whole("steps", state_dict["steps"], 0)
        self._averages = [dict(one) for one in state_dict["averages"]]

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Show what the state will be, so that one from a checkpoint is checked against it."""
        if stage == "fit" and not self._averages:
            outline = {
                n: torch.empty_like(w, device="meta") for n, w in averaged(pl_module).items()
            }
            self._averages = [dict(outline) for _ in self.widths]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        total = trainer.estimated_stepping_batches
        if not math.isfinite(total):
            raise ConfigError("callbacks.averages: the training has no end; set trainer.max_epochs")
        self._total, self._global_step = int(total), trainer.global_step
        self._every = self.every_n_steps or max(1, math.ceil(self._total / _USUAL))
        if (number := self._total / self._every) > _MOST_SNAPSHOTS:
            raise ConfigError(
                f"callbacks.averages.every_n_steps={self._every}: {self._total:,} steps would "
                f"leave {number:,.0f} snapshots; give at least {self._total // _MOST_SNAPSHOTS + 1}"
            )
        here = averaged(pl_module)
        for one in self._averages:
            for name, weight in here.items():
                known = self.steps > 0
                one[name] = sharded_like(one[name].clone(), weight) if known else weight.clone()

    @torch.no_grad()
    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if trainer.global_step == self._global_step:  # between two steps that accumulate gradients
            return
        self._global_step = trainer.global_step
        self.steps += 1
        here = list(averaged(pl_module).values())
        for gamma, one in zip(self._gammas, self._averages, strict=True):
            torch._foreach_lerp_(list(one.values()), here, _step(gamma, self.steps))
        if self.steps % self._every == 0 or self.steps == self._total:
            self._keep(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.steps > 0 and self.steps != self._total:  # the training has ended early
            self._keep(trainer)

    def _keep(self, trainer: pl.Trainer) -> None:
        """Write a snapshot; all processes must call this."""
        content = {
            "widths": torch.tensor(self.widths, dtype=torch.float64),
            "steps": torch.tensor(self.steps),
        }
        for number, one in enumerate(self._averages):
            content |= {f"{number}.{n}": unsharded(a).cpu().contiguous() for n, a in one.items()}
        if trainer.is_global_zero and self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / _NAME.format(steps=self.steps)
            write_atomically(path, weights.to_safetensors(content))


def _step(gamma: float, steps: int) -> float:
    """Return 1 - (1 - 1/t)^(gamma + 1), without cancellation."""
    return 1.0 if steps == 1 else -math.expm1((gamma + 1) * math.log1p(-1 / steps))


def load_average(run: Path, width: float, packages: Collection[str] = ()) -> Any:
    """Load the model of a run directory with the average of a relative width, at its last step.

    Raises:
        ConfigError, RunDirectoryError: see `genlab.training.load.load` and `KeptAverages`.
        ValueError: the snapshots do not reach this width.
    """
    model = load(run, "last", packages)
    KeptAverages(run, model).load(width)
    return model


class KeptAverages:
    """The snapshots of a run directory, which may come from a stranger.

    Args:
        run: the run directory.
        model: that of the run's last step.

    Raises:
        ConfigError: the last snapshot does not fit the model.
        RunDirectoryError: there are no snapshots, or too many; the last one cannot be read; or a
            link leads out of the run.
    """

    def __init__(self, run: Path, model: nn.Module) -> None:
        refuse_links(run, ["checkpoints"])
        folder = Layout(run).checkpoints
        pattern = re.escape(_NAME).replace(r"\{steps\}", "([1-9][0-9]{0,15})")
        found = [re.fullmatch(pattern, path.name) for path in folder.glob(_NAME.format(steps="*"))]
        self.steps = sorted(int(match[1]) for match in found if match)
        if not self.steps:
            raise RunDirectoryError(
                f"{run} has no snapshots of averages: train it anew with "
                "callbacks=[default,averages]"
            )
        if len(self.steps) > _MOST_SNAPSHOTS + 1:
            raise RunDirectoryError(
                f"{folder} has {len(self.steps):,} snapshots of averages: at most "
                f"{_MOST_SNAPSHOTS:,} are read"
            )
        self.run, self._folder = run, folder
        self._here = averaged(nn.ModuleDict({"model": model}))  # named as in a LightningModule
        self.widths: list[float] = []
        self._read(self.steps[-1])

    def combination(self, width: float) -> Combination:
        """Return how the snapshots combine into the average of a relative width.

        Raises:
            ValueError: there is no such width, or the snapshots do not reach it.
        """
        found = self._combination(gamma_of(width))
        if found.error > _LARGEST_ERROR:
            grid = torch.logspace(-3, math.log10(0.288), 200, dtype=torch.float64).tolist()
            near = [w for w in grid if self._combination(gamma_of(w)).error <= _LARGEST_ERROR]
            raise ValueError(
                f"{width:g}: the profile that the {len(self.steps)} snapshots of {self.run} give "
                f"is {found.error:.0%} off; give {min(near):.2g} to {max(near):.2g}"
            )
        return found

    def _combination(self, gamma: float) -> Combination:
        kept = [Profile(steps, gamma_of(w)) for steps in self.steps for w in self.widths]
        return combination(kept, Profile(self.steps[-1], gamma))

    @torch.no_grad()
    def load(self, width: float) -> Combination:
        """Put the average of a relative width, at the last snapshot, into the model.

        Raises:
            ValueError: see `combination`.
            ConfigError, RunDirectoryError: a snapshot does not fit the model, or cannot be read.
        """
        found = self.combination(width)
        sums = {name: torch.zeros_like(w, dtype=torch.float64) for name, w in self._here.items()}
        shares = iter(found.shares)
        for steps in self.steps:
            for one in self._read(steps):
                share = next(shares)
                for name, total in sums.items():
                    total += share * one[name]
        for name, weight in self._here.items():
            weight.copy_(sums[name])
        return found

    def _read(self, steps: int) -> list[dict[str, Tensor]]:
        """Read a snapshot: its averages in the order of the widths."""
        path = self._folder / _NAME.format(steps=steps)
        size = sum(weight.nbytes for weight in self._here.values())
        content = weights.read_safetensors(path, _HEADER + _MOST_WIDTHS * size, _REMEDY)
        widths, told = content.pop("widths", None), content.pop("steps", None)
        with weights.naming(path, _REMEDY):
            self._check(widths, told, steps)
        averages = []
        for number, _ in enumerate(self.widths):
            start = f"{number}."
            names = [name for name in content if name.startswith(start)]
            one = {name.removeprefix(start): content.pop(name) for name in names}
            weights.check_weights(path, str(number), one, self._here)
            averages.append(one)
        with weights.naming(path, _REMEDY):
            if content:
                raise ValueError(f"{min(content)!r} in it is unknown")
            if not all(w.isfinite().all() for one in averages for w in one.values()):
                raise ValueError("a weight in it is not finite")
        return averages

    def _check(self, widths: Tensor | None, told: Tensor | None, steps: int) -> None:
        """Check that a snapshot says the steps of its name and the widths of the others.

        Raises:
            ValueError: it does not.
        """
        if told is None or told.shape != () or told.dtype != torch.int64 or told.item() != steps:
            raise ValueError(f"steps: {steps} is needed")
        if widths is None or widths.dtype != torch.float64 or widths.ndim != 1:
            raise ValueError("widths: a list of numbers is needed")
        found = widths.tolist()
        if not self.widths and 1 <= len(found) <= _MOST_WIDTHS:
            with naming("widths"):
                _ = [gamma_of(width) for width in found]
            self.widths = found
        if found != self.widths:
            raise ValueError(f"widths={found[:_MOST_WIDTHS]}: those of the last one are needed")
