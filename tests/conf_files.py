"""The YAML files of `conf/`: their names, their groups, and what each cannot do without."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from genlab.config.compose import directory

CONF = directory()
#: What a file cannot do without: a root for the images, a likelihood of the convention's error.
PARTNERS = {
    "data/folder": ["data.source.root=images", "model.likelihood.colour_targets=true"],
    "data/cifar10": ["model.likelihood.colour_targets=true"],
    "data/gaussian": ["model/likelihood=gaussian"],
    "experiment/ddpm/cifar10": ["trainer.accelerator=cpu"],
    "model/kl_convention/half_sum_squared_error": ["model/likelihood=gaussian"],
    "model/kl_convention/mean_squared_error": ["model/likelihood=gaussian"],
    "model/kl_convention/sum_squared_error": ["model/likelihood=gaussian"],
    "model/noise_schedule/learned": [
        "model/weighting=vlb",
        "model.steps=null",
        "model.test_draws=2",
    ],
    "model/noise_schedule/zero_terminal_snr": ["model/parameterization=v"],
    "trainer/gpu": ["trainer.accelerator=cpu"],
    "trainer/ddp": ["trainer.accelerator=cpu", "trainer.devices=1"],
    "trainer/fsdp": ["trainer.accelerator=cpu", "trainer.devices=1"],
}


def name(path: Path) -> str:
    return path.relative_to(CONF).with_suffix("").as_posix()


def groups(model: str) -> set[str]:
    """The config groups that a model is composed of."""
    defaults = OmegaConf.load(CONF / "model" / f"{model}.yaml").defaults
    return {key for entry in defaults if isinstance(entry, DictConfig) for key in entry}
