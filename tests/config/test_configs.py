"""Every YAML file composes, builds and has comments; a config is typed, checked and named."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import string
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

import lightning.pytorch as pl
import pytest
import torch
from conf_files import CONF, LACKING, PARTNERS, PLACES, model_of, name
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf
from torch import nn
from trained_runs import load_with_data

from genlab import seeding
from genlab.config.build import build, takes
from genlab.config.check import Config, check, coerce, fitting, from_yaml, need, to_yaml
from genlab.config.compose import compose as compose_train
from genlab.config.trust import check_received
from genlab.data.datamodule import ImageData
from genlab.errors import ConfigError, GenlabError
from genlab.gan import model as gan
from genlab.modules.base import GenerativeModule
from genlab.protocols import HasBound, ImageSpec
from genlab.runs.identity import flatten, identity
from genlab.training import run
from genlab.training.load import load, read_received
from genlab.training.run_config import TRAINING, RunConfig, build_model, without_training
from genlab.vae import model as vae
from genlab.vae.kl import KLConvention
from genlab.vae.kl_schedules import Linear
from genlab.vae.likelihoods import GaussianLikelihood, Likelihood

# What is for W&B's own agent is no config of Hydra's: see test_wandb_sweep.py.
FILES = [file for file in sorted(CONF.rglob("*.yaml")) if file.parent.name != "wandb_sweep"]
# Those of train.py: tests/sweeps has the studies, and what Ray brings.
OF_TRAIN = [
    file
    for file in FILES
    if file.parent.name != "sweep" and name(file) not in {"launcher/ray", *LACKING}
]
EXPERIMENTS = [file for file in FILES if file.is_relative_to(CONF / "experiment")]
# What makes a step of any of a model's experiments a matter of a second.
SMALL = {
    "VAE": ["data.val_images=1000", "model.iwae_samples=2"],
    "DDPM": [
        *(f"data.{key}=4" for key in ("batch_size", "eval_batch_size")),
        *(f"model.{key}=1" for key in ("val_draws", "test_draws")),
        "model.net.channels=8",
    ],
    "GAN": ["data.batch_size=4", "data.eval_batch_size=4"],
}


@cache
def compose(*overrides: str) -> DictConfig:
    return compose_train(overrides)


def resolve(*overrides: str) -> Config:
    """The checked config of a run, as plain containers."""
    return dataclasses.asdict(RunConfig.of(compose(*overrides)))


def choice(path: Path) -> list[str]:
    """The overrides that bring a file into `train.yaml`."""
    top = path.relative_to(CONF).parts[0]
    if path.parent == CONF:
        return []
    if path.stem.startswith("_"):
        return ["data=mnist_mini"]
    in_model = top == "model" and len(path.relative_to(CONF).parts) == 3
    group = path.parent.relative_to(CONF).as_posix() if in_model else top
    chosen = path.relative_to(CONF / group).with_suffix("").as_posix()
    before = [f"model={model_of(path)}"] if in_model and model_of(path) != "vae" else []
    if group in PLACES:
        *before, group = PLACES[group]
    return [*before, f"{group}={chosen}", *PARTNERS.get(name(path), [])]


@pytest.mark.parametrize("path", OF_TRAIN, ids=name)
def test_every_file_composes_and_everything_in_it_is_built(path: Path, tmp_path: Path) -> None:
    config = resolve(*choice(path), f"data.data_dir={tmp_path}")
    checked = RunConfig.of(config)
    data = build(checked.data, "data")
    assert isinstance(data, ImageData)
    model = build_model(checked.model, data.spec)
    assert isinstance(model, nn.Module)
    parts = {name: build(checked.model[name], f"model.{name}") for name in TRAINING}
    assert isinstance(parts.pop("module")(model=model, **parts), GenerativeModule)
    assert isinstance(build(checked.trainer, "trainer", logger=False), pl.Trainer)
    for key, node in checked.callbacks.items():
        given = {name: tmp_path for name in ("videos", "directory") if takes(node, name)}
        assert isinstance(build(node, f"callbacks.{key}", **given), pl.Callback)
    for key, node in checked.logger.items():
        need(node, Logger, f"logger.{key}")


@pytest.mark.parametrize(
    "path", [p for p in OF_TRAIN if p.parent.name == "data" and p.stem != "_base"], ids=name
)
def test_a_diffusion_model_is_built_for_every_8_bit_data_set(path: Path) -> None:
    config = resolve(
        "model=ddpm",
        f"data={path.stem}",
        *(word for word in PARTNERS.get(name(path), []) if word.startswith("data.")),
    )
    spec = build(config["data"], "data").spec
    if spec.levels is None:
        with pytest.raises(ConfigError, match="real numbers"):
            build_model(config["model"], spec)
    else:
        build_model(config["model"], spec)


@pytest.mark.parametrize("path", OF_TRAIN, ids=name)
def test_every_value_of_a_file_reaches_the_config(path: Path) -> None:
    own = OmegaConf.load(path)
    composed = OmegaConf.to_container(compose(*choice(path)))
    package = re.search("@package (.*)", path.read_text())
    place = path.parent.relative_to(CONF).as_posix().replace("/", ".").strip(".")
    place = PLACES[place][-1].partition("@")[2] if place in PLACES else place
    if package is not None:
        place = package[1].replace("_global_", "")
    for part in filter(None, place.split(".")):
        composed = composed[part]
    there = flatten(composed)
    overridden = [o.partition("=")[0].removeprefix(f"{place}.") for o in choice(path)]
    for key, value in flatten(OmegaConf.to_container(own)).items():
        if key.split(".")[0] not in ("defaults", "hydra") and key not in overridden:
            assert there[key] == value, key


@pytest.mark.parametrize("path", FILES, ids=name)
def test_every_key_is_explained(path: Path) -> None:
    lines = path.read_text().splitlines()
    headers = [line for line in lines if line.startswith("#") and "@package" not in line]
    top = path.relative_to(CONF).parts[0]
    if top in ("experiment", "experiment_on", "debug"):  # their keys have a home elsewhere
        assert headers, f"{path} does not say what it is for"
        return
    in_defaults = False
    for above, line in pairwise(["", *lines]):
        key = re.match(r"\s*([\w./]+):(\s|$)", line)
        if key is None:
            continue
        in_defaults = key[1] == "defaults" or (in_defaults and line.startswith(" "))
        value = line[key.end() :].partition("#")[0].strip()
        explained = "# " in line or above.lstrip().startswith("# ")
        plain = in_defaults or not value or key[1] in ("_target_", "_partial_")
        assert explained or plain, f"{path}: {line}"


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name)
@pytest.mark.slow
def test_every_experiment_trains(path: Path, tmp_path: Path) -> None:
    given_by_experiment = resolve(*choice(path))
    model = given_by_experiment["model"]["_target_"].rpartition(".")[2]
    outcome = run.run(
        compose_train(
            [
                *choice(path),
                "data=mnist_mini",
                *SMALL[model],
                "trainer.accelerator=cpu",
                "compile=false",
                "trainer.max_epochs=2",
                *(f"trainer.limit_{split}_batches=1" for split in ("train", "val", "test")),
                "trainer.check_val_every_n_epoch=1",
                "trainer.log_every_n_steps=1",
                "logger=none",
                "callbacks=none",
                "training_flops=null",
                *(["~callbacks.cost"] if path.stem == "claims_front" else []),  # it sets its steps
                f"runs_dir={tmp_path}",
            ]
        )
    )
    assert outcome.exit_code == 0 and outcome.result is not None and outcome.path is not None
    assert outcome.path.parent.name == given_by_experiment["group"]
    assert outcome.result["steps"] == 2
    metrics = outcome.result["metrics"]
    trained, data = load_with_data(outcome.path, "last")
    if isinstance(trained, HasBound):
        assert metrics["test/neg_elbo"] == pytest.approx(
            metrics["test/reconstruction"] + metrics["test/kl"]
        )
    else:
        assert metrics and not {"test/neg_elbo", "test/kl"} & metrics.keys()
    assert all(math.isfinite(value) for value in metrics.values())
    seeding.seed_everything(0)
    fresh = build_model(read_received(outcome.path).model, data.spec)
    moved = [
        not torch.equal(a, b) for a, b in zip(trained.parameters(), fresh.parameters(), strict=True)
    ]
    assert any(moved)


def test_an_integer_and_a_float_are_one_run() -> None:
    whole, real = resolve("model.kl_weight=30"), resolve("model.kl_weight=30.0")
    assert identity(whole) == identity(real)
    assert to_yaml(whole) == to_yaml(real)
    assert type(whole["model"]["kl_weight"]) is float
    assert identity(resolve("model.latent_dim=20.0")) == identity(resolve())


@pytest.mark.parametrize(
    "overrides",
    [
        ["runs_dir=elsewhere"],
        ["group=another"],
        ["overwrite=true"],
        ["traceback=true"],
        ["notes=hello", "tags=[a]"],
        ["logger=none"],
        ["data.data_dir=elsewhere"],
        ["data.num_workers=2"],
        ["data.device=cpu"],
        ["trainer=cpu", "trainer.accelerator=auto"],
        ["trainer.devices=2"],
        ["trainer.log_every_n_steps=1"],
        ["trainer.profiler=simple"],
    ],
    ids=" ".join,
)
def test_where_and_how_a_run_happens_is_no_part_of_its_identity(overrides: list[str]) -> None:
    assert identity(resolve(*overrides)) == identity(resolve())


def test_the_order_of_keys_is_no_part_of_an_identity() -> None:
    def backwards(node: Any) -> Any:
        if not isinstance(node, dict):
            return node
        return {key: backwards(node[key]) for key in reversed(node)}

    for overrides in ([], ["model=ddpm"], ["model/kl_schedule=linear", "ema_decay=0.9"]):
        config = resolve(*overrides)
        assert list(backwards(config)) != list(config)
        assert identity(backwards(config)) == identity(config)
    one, other = {"encoder": {"a": 1, "b": 2}, "c": 3}, {"c": 3, "encoder": {"b": 2, "a": 1}}
    assert identity(one) == identity(other)


def test_what_a_run_computes_is_its_identity() -> None:
    variants = [
        [],
        ["seed=1"],
        ["model.kl_weight=2"],
        ["model.kl_weight=0"],
        ["model/likelihood=gaussian"],
        ["model/likelihood=gaussian", "model.likelihood.scale=0.5"],
        ["model/kl_schedule=linear"],
        ["model.latent_dim=2"],
        ["data.batch_size=64"],
        ["data.binarisation=static"],
        ["trainer.max_epochs=31"],
        ["trainer.precision=bf16-mixed"],
        ["ema_decay=0.9"],
    ]
    assert len({identity(resolve(*overrides)) for overrides in variants}) == len(variants)


def test_all_missing_values_are_listed_at_once() -> None:
    listed = "data.source.root, group, model.kl_weight"
    with pytest.raises(ConfigError, match=rf"^no value for {listed}: give one on the command line"):
        resolve("data=folder", "group=???", "model.kl_weight=???")


@pytest.mark.parametrize("path", OF_TRAIN, ids=name)
def test_what_is_stored_is_what_was_run(path: Path) -> None:
    config = resolve(*choice(path))
    assert from_yaml(to_yaml(config), "config.yaml") == config


# Control characters are YAML's own business; a dollar begins an interpolation.
TEXT = st.text(st.characters(exclude_categories=["C", "Z"], exclude_characters="$")) | (
    st.sampled_from(["1e-3", "null", "yes", "0x10", "1:30", "${oops}", " a b ", "- a: b", "#"])
)
SCALARS = st.none() | st.booleans() | st.integers(-1000, 1000) | st.floats(allow_nan=False) | TEXT
KEYS = st.text(string.ascii_lowercase + "_", min_size=1).filter(lambda k: k != "_target_")
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner))


@settings(max_examples=15)
@given(st.dictionaries(KEYS, VALUES))
def test_any_config_survives_its_file(config: dict[str, Any]) -> None:
    back = from_yaml(to_yaml(config), "config.yaml")
    assert back == config
    assert json.dumps(back) == json.dumps(config)  # which tells 1 from 1.0 and from true


Colour = Literal["red", "green"]
HINTS: list[Any] = [
    bool,
    int,
    float,
    str,
    int | None,
    float | None,
    str | int,
    int | float | None,
    Colour,
    Colour | None,
    Colour | Literal["blue", 3],
    list[int],
    tuple[float, ...],
    Likelihood,
    KLConvention | None,
    Any,
]


@settings(max_examples=60)
@given(VALUES | st.just(math.nan), st.sampled_from(HINTS))
def test_coercion_gives_the_type_or_refuses_and_is_done_once(value: Any, hint: Any) -> None:
    try:
        typed = coerce(value, hint, "some.key")
    except ConfigError as error:
        refusal = str(error)
    else:
        refusal = ""
    if refusal:  # of a list the element, of a component one of its keys may be what is wrong
        assert refusal.startswith("some.key")
        return
    if hint in (bool, int, float, str):
        assert type(typed) is hint
    if hint in (int, float):
        assert typed == value or math.isnan(value)
    again = coerce(typed, hint, "some.key")
    assert repr(again) == repr(typed)


@given(st.integers(-(2**53), 2**53))
def test_whole_numbers_are_numbers_and_the_reverse(n: int) -> None:
    assert repr(coerce(n, float, "k")) == repr(float(n))
    assert repr(coerce(float(n), int, "k")) == repr(n)
    assert coerce(n, int | None, "k") == n


@given(st.sampled_from(get_args(Colour)))
def test_a_choice_of_several_sets_lists_them_all(colour: str) -> None:
    hint = Literal["red"] | Literal["green"]
    assert coerce(colour, hint, "k") == colour
    with pytest.raises(ConfigError, match="^k='pink': choose one of red, green$"):
        coerce("pink", hint, "k")


def test_a_node_is_built_with_what_is_nested_in_it() -> None:
    node = {"_target_": "genlab.vae.kl_schedules.Linear", "steps": 10.0}
    checked = check({"a": [node]}, "k")
    (schedule,) = build(checked)["a"]
    assert isinstance(schedule, Linear) and schedule.weight(5) == 0.5
    later = build(check({**node, "_partial_": True}, "k"))
    assert later(start=1.0).weight(0) == 1.0
    convention = build(
        coerce(
            {"error": "squared", "reconstruction": "mean", "kl": "sum"}, KLConvention | None, "k"
        )
    )
    assert convention == KLConvention("squared", "mean", "sum")


def test_a_component_of_another_kind_is_refused() -> None:
    node = {"_target_": "genlab.vae.kl_schedules.Constant"}
    with pytest.raises(ConfigError, match=r"^k\._target_=.*Constant': Likelihood is needed$"):
        coerce(node, Likelihood, "k")
    with pytest.raises(ConfigError, match=r"^k\._partial_=true: false is needed here$"):
        coerce({**node, "_partial_": True}, type(build(node)), "k")


FORBIDDEN = [
    "os.system",
    "builtins.eval",
    "builtins.exec",
    "torch.load",
    "hydra.utils.get_method",
    "pathlib.Path",
    "subprocess.Popen",
    "genlab.training.run.os.system",
    "genlab.training.run.Path",
    "genlab.training.run.subprocess.Popen",
    "genlab.training.run.train",
    "genlab.runs.files.write_atomically",
    "genlab.runs.directory",
    "genlab",
    "lightning.pytorch.callbacks.LambdaCallback",
    "genlab_evil.Thing",
    "",
    ".",
    3,
    None,
    ["os.system"],
]


@pytest.mark.parametrize("target", FORBIDDEN, ids=str)
def test_no_other_target_of_a_received_config_is_admitted(target: Any) -> None:
    node = {"_target_": target, "command": "exit", "args": "exit"}
    with pytest.raises(ConfigError, match=r"^k\._target_="):
        check_received(node, nn.Module, "k")


@pytest.mark.parametrize(
    ("key", "target"),
    [
        *(("model", target) for target in FORBIDDEN if isinstance(target, str) and len(target) > 1),
        *((key, "os.system") for key in ("model.net.encoder", "data.source", "trainer")),
    ],
)
def test_no_other_kind_comes_from_the_command_line(key: str, target: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{re.escape(key)}\._target_='{re.escape(target)}'"):
        resolve(f"{key}._target_={target}")


@pytest.mark.parametrize("where", ["model", "model/prior", "data/source", "callbacks/x", "extra/a"])
def test_a_planted_config_runs_nothing(tmp_path: Path, where: str) -> None:
    config = resolve()
    node: dict[str, Any] = config
    *parents, last = where.split("/")
    for key in parents:
        node = node.setdefault(key, {})
    node[last] = {"_target_": "os.system", "command": f"touch {tmp_path}/owned"}
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    (tmp_path / "spec.json").write_text(json.dumps(dataclasses.asdict(ImageSpec(1, 28, 28))))
    # of a run directory the model is built, and nothing else is looked at
    is_built = where.startswith("model")
    place = rf"^{where.replace('/', '.')}\._target_='os.system'" if is_built else "last.ckpt"
    with pytest.raises(GenlabError, match=place):
        load(tmp_path, "last")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a: [", "is no readable YAML"),
        ("- a", "holds no mapping"),
        ("!!python/object/apply:os.system ['exit']", "is no readable YAML"),
        ("seed: 0", "model=null: Module is needed"),
        ("", "model=null: Module is needed"),
    ],
)
def test_what_is_no_config_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match=complaint):
        load(tmp_path)


def test_a_stored_interpolation_is_not_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hidden")
    assert from_yaml("notes: ${oc.env:SECRET}", "f") == {"notes": "${oc.env:SECRET}"}


def test_a_received_config_may_name_packages_that_its_reader_trusts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "genlab_lawful"
    package.mkdir()
    (package / "__init__.py").write_text(
        "import os\n"
        "from pathlib import Path\n"
        "from genlab.vae.likelihoods import GaussianLikelihood\n"
        "class Wide(GaussianLikelihood):\n"
        "    def __init__(self, factor: float) -> None:\n"
        "        super().__init__(10.0 * factor)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    overrides = ["model/likelihood=bernoulli", "model.likelihood._target_=genlab_lawful.Wide"]
    overrides += ["~model.likelihood.colour_targets", "+model.likelihood.factor=2"]
    own = resolve(*overrides)["model"]
    spec = build(resolve()["data"]).spec
    likelihood = build_model(own, spec).likelihood
    assert isinstance(likelihood, GaussianLikelihood) and likelihood.scale == 20.0
    received = without_training(own)
    with pytest.raises(ConfigError, match=r"^model\.likelihood\._target_=.*--trust PACKAGE"):
        check_received(received, nn.Module, "model")
    packages = ["something_else", "genlab_lawful"]
    check_received(received, nn.Module, "model", packages)
    undeclared = {**received, "likelihood": {**received["likelihood"], "options": 1}}
    with pytest.raises(ConfigError, match=r"^model\.likelihood\.options=1: there is no such key"):
        check_received(undeclared, nn.Module, "model", packages)
    # a class of genlab, under another name
    borrowed = {"_target_": "genlab_lawful.GaussianLikelihood", "scale": 2}
    check_received(borrowed, Likelihood, "k", packages)
    for name_ in ("os.system", "Path"):
        with pytest.raises(ConfigError, match=r"^k\._target_="):
            check_received({"_target_": f"genlab_lawful.{name_}"}, nn.Module, "k", packages)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name)
def test_a_smoke_test_of_an_experiment_is_a_few_steps(path: Path) -> None:
    chosen = [*choice(path), "trainer=smoke"]
    trainer, own = resolve(*chosen)["trainer"], resolve(*choice(path))["trainer"]
    assert (trainer["max_epochs"], trainer["max_steps"]) == (1, -1)
    assert trainer["check_val_every_n_epoch"] == 1
    for split, most in (("train", 4), ("val", 2), ("test", 2)):
        assert trainer[f"limit_{split}_batches"] == most
    assert trainer["gradient_clip_val"] == own["gradient_clip_val"]
    # what is typed is taken
    assert resolve(*chosen, "trainer.max_epochs=2")["trainer"]["max_epochs"] == 2


def test_a_choice_of_networks_lists_those_of_its_own_family() -> None:
    own = {
        vae.Networks: {"mlp", "linear", "conv", "conv_plain", "conv_4x", "conv_8x"},
        gan.Networks: {"gan_tiny", "gan_conv"},
    }
    for networks, files in own.items():
        assert set(fitting(networks, "model.net")) == files
