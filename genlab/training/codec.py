"""The trained VAE of a codec: its config and weights become part of the run that uses it.

`model.codec.run` is read before the run begins. From then on the run has a copy of its own: config
in config.yaml, weights in every checkpoint.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from genlab.config.check import Config
from genlab.errors import ConfigError, GenlabError, RunDirectoryError
from genlab.runs.identity import identity
from genlab.runs.run import Run
from genlab.runs.text import printable
from genlab.training import weights
from genlab.training.load import (
    Received,
    build_believed,
    read_config,
    read_model,
    read_received,
)

log = logging.getLogger(__name__)

KEY = "model.codec.run"
#: Keys of the data that the codec's run and the run that uses it must share, beside the source.
_SPLIT = ("val_images", "train_images")


def source_of(config: Mapping[str, Any]) -> str | None:
    """Return the run directory of the codec's VAE; None if there is none."""
    codec = config["model"].get("codec")
    run = codec.get("run") if isinstance(codec, dict) else None
    return None if run is None else str(run)


def with_vae(config: Config, path: Path) -> Config:
    """Add the config of the codec's VAE to that of a run at `path`, whose own copy counts.

    Raises:
        ConfigError: naming `model.codec.run`, what is wrong with it, and what would be right.
    """
    source = source_of(config)
    if source is None:
        return config
    own = Run(path)
    goes_on = own.is_completed or (own.checkpoints / "last.ckpt").exists()
    try:
        if goes_on and not config["overwrite"]:
            vae = _own_copy(own)
        else:
            vae = _received(Run(source), config["data"])
    except GenlabError as error:
        raise ConfigError(f"{KEY}={printable(source)}: {error}") from error
    return _with(config, vae)


def _with(config: Config, vae: Config) -> Config:
    model = config["model"]
    return {**config, "model": {**model, "codec": {**model["codec"], "vae": vae}}}


def _own_copy(run: Run) -> Config:
    received = read_received(run.path)
    codec = received.model.get("codec")
    vae = codec.get("vae") if isinstance(codec, dict) else None
    if not isinstance(vae, dict):
        raise RunDirectoryError(
            f"{run.config_path} has no model.codec.vae, with which this run began: put it back, or "
            "start anew with overwrite=true"
        )
    node = {key: value for key, value in vae.items() if key != "_partial_"}
    build_believed(Received(node, received.spec), run.checkpoints / "last.ckpt")
    return _partial(node)


def rehearsed(config: Config, theirs: Config) -> Config:
    """Add the config of the codec's VAE to that of a run, as `with_vae`, before the VAE is trained.

    Args:
        theirs: the config of the VAE's run, as it will be kept.

    Raises:
        ConfigError: naming `model.codec.run`, what is wrong with it, and what would be right.
    """
    if source_of(config) is None:
        return config
    try:
        _refuse_changing(config["data"])
        return _with(config, _checked(theirs, config["data"]))
    except GenlabError as error:
        raise ConfigError(f"{KEY}: {error}") from error


def _received(run: Run, data: Mapping[str, Any]) -> Config:
    _refuse_changing(data)
    if not run.path.is_dir():
        raise ConfigError("there is no such folder; give the run directory of a trained VAE")
    if (state := run.state) == "missing":
        raise ConfigError("this folder is no run directory; give that of a trained VAE")
    if not run.is_completed:
        raise ConfigError(f"this run is {state}, not completed; let it end first")
    checked = _checked(read_config(run), data)
    build_believed(read_received(run), weights.checkpoint_of(run))
    return checked


def _refuse_changing(data: Mapping[str, Any]) -> None:
    if data.get("binarisation") == "dynamic":
        raise ConfigError(
            "the latents of an image are computed once, and data.binarisation=dynamic changes it "
            "in every epoch; give static"
        )


def _checked(config: Config, data: Mapping[str, Any]) -> Config:
    node = read_model(config.get("model"))
    theirs = config.get("data")
    if not isinstance(theirs, dict) or _images(theirs) != _images(data):
        raise ConfigError(
            f"this run was trained on other images ({_told(theirs)}) than those of this one "
            f"({_told(data)}); give the same data, data.val_images and data.train_images"
        )
    return _partial(node)


def _images(data: Mapping[str, Any]) -> list[Any]:
    is_binary = data.get("binarisation", "none") != "none"
    source = identity({"data": {"source": data.get("source") or {}}})
    return [source, is_binary, *(data.get(key) for key in _SPLIT)]


def _told(data: Any) -> str:
    if not isinstance(data, dict) or not isinstance(data.get("source"), dict):
        return "unknown"
    name = str(data["source"].get("_target_")).rpartition(".")[2]
    kind = data.get("binarisation", "none")
    words = [name, *(f"{key} {data.get(key)}" for key in _SPLIT), f"binarisation {kind}"]
    return printable(", ".join(words))[:200]


def _partial(node: Config) -> Config:
    return {**node, "_partial_": True}


def load_vae(model: nn.Module, config: Config) -> None:
    """Load the weights of the codec's VAE into a model that begins its training, if it has one.

    Raises:
        ConfigError, RunDirectoryError: naming `model.codec.run`, the weights do not fit or cannot
            be read.
    """
    source = source_of(config)
    if source is not None:
        weights.load_into(_as_checkpoint(model), Path(source), KEY)


def refuse_other_images(config: Config, images: Mapping[str, Any]) -> None:
    """Refuse a codec whose VAE was trained before the images of a run changed.

    Args:
        images: the record of this run's images, as in data.json; empty where they cannot change.

    Raises:
        ConfigError: naming `model.codec.run`.
    """
    source = source_of(config)
    before = None if source is None else Run(source).data
    if source is not None and images and before and before.get("files") != images.get("files"):
        raise ConfigError(
            f"{KEY}={printable(source)}: the images have changed since this run; train it again"
        )


def told_if_changed(model: nn.Module, config: Config) -> None:
    """Warn if the codec's run has other weights now than the copy in a model that goes on."""
    source = source_of(config)
    if source is None or not Run(source).path.is_dir():
        return
    if not _is_of(model, source):
        log.warning(
            "%s=%s has changed since this run began, which goes on with its own copy; "
            "overwrite=true starts anew with what is there now",
            KEY,
            printable(source),
        )


def refuse_other_vae(model: nn.Module, config: Config, key: str, start: str) -> None:
    """Refuse a run whose codec would be another VAE than that of the weights it starts from.

    Args:
        model: with these weights.
        key, start: the key that names them, and its value.

    Raises:
        ConfigError: naming the key and `model.codec.run`.
    """
    source = source_of(config)
    if source is not None and not _is_of(model, source):
        raise ConfigError(
            f"{key}={printable(start)}: it was trained on the latents of another VAE than "
            f"{KEY}={printable(source)}; give {KEY} the VAE that it was trained with"
        )


def _is_of(model: nn.Module, source: str) -> bool:
    """Return whether the VAE of a codec has the weights of a run."""
    holder = _as_checkpoint(model)
    try:
        theirs = weights.check_fits(holder, weights.checkpoint_of(source))["state_dict"]
    except GenlabError:
        return False
    own = holder.state_dict()
    return all(bool((theirs[name] == value.cpu()).all()) for name, value in own.items())


def _as_checkpoint(model: Any) -> nn.Module:
    """Return a module that holds the codec's VAE under the name that checkpoints use."""
    holder = nn.Module()
    holder.add_module("model", model.codec.vae)
    return holder
