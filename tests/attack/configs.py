"""Mutations of config.yaml."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import random
from functools import cache
from typing import Any

import yaml
from attack.changes import (
    ESCAPES,
    FORMULA,
    MARKUP,
    MUTATIONS,
    Mutation,
    Place,
    at,
    awkward,
    change_tree,
    dump,
    mutation,
    nested,
    nodes,
)
from attack.sandbox import MARK
from fuzz import changed


def configured(place: Place) -> dict[str, Any]:
    content: dict[str, Any] = _load((place.run / "config.yaml").read_text("utf-8"))
    return content


def _load(text: str) -> Any:
    return yaml.load(text, yaml.CSafeLoader)  # four times as fast


def configure(place: Place, config: Any) -> None:
    text = yaml.safe_dump(config, sort_keys=False)
    (place.run / "config.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))


@cache
def classes() -> list[str]:
    """Every class that a module of genlab holds, also those that it only imports."""
    import genlab

    found = set()
    for module in pkgutil.walk_packages(genlab.__path__, "genlab."):
        if not module.name.endswith("__main__"):
            held = importlib.import_module(module.name)
            found |= {
                f"{module.name}.{name}" for name, _ in inspect.getmembers(held, inspect.isclass)
            }
    return sorted(found)


def harmful(place: Place, chance: random.Random) -> dict[str, Any]:
    """A class that does something when it is built, with arguments that let it."""
    notes, new = str(place.private / "notes.txt"), str(place.base / "planted")
    run = {"experiment_name": "x", "run_name": "x"}
    wandb = {"project": "p", "entity": "e", "mode": "online"}
    folder = {"root": str(place.private), "image_size": 28, "channels": 1, "cache_dir": new}
    command = {"_target_": "os.system", "command": MARK}
    known: list[dict[str, Any]] = [
        {"_target_": "genlab.training.console._LogFile", "filename": notes, "mode": "w"},
        {"_target_": "genlab.tracking.wandb.WandbLogger", **wandb},
        {"_target_": "genlab.tracking.mlflow.MLflowLogger", "save_dir": new, **run},
        {"_target_": "genlab.tracking.tensorboard.TensorBoardLogger", "save_dir": new},
        {"_target_": "genlab.runs.directory.RunDirectory", "path": new},
        {"_target_": "genlab.runs.locks.Lock", "folder": new},
        {"_target_": "genlab.data.idx.MNIST"},
        {"_target_": "genlab.data.cifar.CIFAR10"},
        {"_target_": "genlab.data.folder.ImageFolder", **folder},
        {"_target_": "genlab.callbacks.videos.PriorWalkVideo", "videos": new},
        command,
        {"_target_": "builtins.eval", "_args_": [MARK]},
        {"_target_": "subprocess.Popen", "args": [MARK]},
        {"_target_": "shutil.rmtree", "path": str(place.private)},
        {"_target_": "builtins.open", "file": notes, "mode": "w"},
        {"_target_": "pathlib.Path.touch", "self": new},
        {"_target_": "hydra.utils.instantiate", "config": command},
        {"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": new},
        {"_target_": "torch.load", "f": notes, "weights_only": False},
        {"_target_": "logging.FileHandler", "filename": notes, "mode": "w"},
        {"_target_": "tempfile.TemporaryDirectory", "dir": str(place.private)},
    ]
    node = chance.choice([*known, {"_target_": chance.choice(classes())}])
    return {**node, **({"_partial_": True} if chance.random() < 0.1 else {})}


def put(config: dict[str, Any], chance: random.Random, value: Any, below: str = "model") -> None:
    """Put a value below the model or the data, as one more key or in the place of one."""
    inside = [path for path in nodes(config) if path[0] == below] or [()]
    path = chance.choice(inside)
    if isinstance(found := at(config, path), dict):
        found[chance.choice(["x", "_args_", "args", "config", "kind", *found])] = value
    else:
        at(config, path[:-1])[path[-1]] = value


@mutation("config")
def any_bytes_of_the_config(place: Place, chance: random.Random) -> None:
    path = place.run / "config.yaml"
    path.write_bytes(changed(path.read_bytes(), chance))


@mutation("config")
def an_awkward_value_in_the_config(place: Place, chance: random.Random) -> None:
    harm = (harmful(place, chance),)
    configure(place, change_tree(configured(place), chance, awkward(chance, harm)))


@mutation("config")
def a_class_in_the_model(place: Place, chance: random.Random) -> None:
    put(config := configured(place), chance, harmful(place, chance))
    configure(place, config)


@mutation("config")
def a_class_in_the_data(place: Place, chance: random.Random) -> None:
    put(config := configured(place), chance, harmful(place, chance), "data")
    configure(place, config)


@mutation("config", reader="sample")
def a_class_below_a_component_without_a_constructor(place: Place, chance: random.Random) -> None:
    config = configured(place)
    likelihood, sampler = "genlab.vae.likelihoods.", "genlab.diffusion.time_samplers."
    variance = "genlab.diffusion.variances."
    places = {
        "likelihood": [
            f"{likelihood}{name}Likelihood"
            for name in ("ContinuousBernoulli", "DiscretizedLogistic")
        ],
        "time_sampler": [f"{sampler}{name}" for name in ("Uniform", "LowDiscrepancy")],
        "reverse_variance": [f"{variance}{n}" for n in ("FixedSmall", "FixedLarge", "Learned")],
        "kl_schedule": ["genlab.vae.kl_schedules.Constant"],
    }
    name = chance.choice([name for name in places if name in config["model"]])
    node = {"_target_": chance.choice(places[name]), "x": harmful(place, chance)}
    config["model"][name] = node
    configure(place, config)


@mutation("config", reader="sample")
def a_class_that_empties_a_file(place: Place, chance: random.Random) -> None:
    """A mutation below a component that takes whatever a module takes."""
    config = configured(place)
    target = {"_target_": "genlab.training.console._LogFile", "mode": "w"}
    config["model"]["likelihood"] = {
        "_target_": "genlab.vae.likelihoods.ContinuousBernoulliLikelihood",
        "x": {**target, "filename": str(place.private / "notes.txt")},
    }
    configure(place, config)


@mutation("config")
def another_class_of_genlab_in_the_place_of_a_component(
    place: Place, chance: random.Random
) -> None:
    config = configured(place)
    targets = [
        path for path in nodes(config) if path[-1] == "_target_" and path[0] in ("model", "data")
    ]
    path = chance.choice(targets)
    at(config, path[:-1])["_target_"] = chance.choice(classes())
    configure(place, config)


@mutation("config", reader="video")
def a_data_source_elsewhere(place: Place, chance: random.Random) -> None:
    config = configured(place)
    new, private = str(place.base / "planted"), str(place.private)
    folder = {"_target_": "genlab.data.folder.ImageFolder", "image_size": 28, "channels": 1}
    sources = [
        {**folder, "root": private, "cache_dir": new},
        {**folder, "root": str(place.run), "cache_dir": private},
        *({"_target_": f"genlab.data.sources.{n}"} for n in ("MNIST", "CIFAR10", "FashionMNIST")),
        harmful(place, chance),
    ]
    config["data"] |= {"data_dir": chance.choice([new, private]), "source": chance.choice(sources)}
    configure(place, config)


@mutation("config")
def a_logger_callback_or_trainer_that_does_harm(place: Place, chance: random.Random) -> None:
    config = configured(place)
    for group in ("logger", "callbacks", "metrics", "trainer", "hydra"):
        config[group] = {"planted": harmful(place, chance), **harmful(place, chance)}
    configure(place, config)


@mutation("config")
def a_network_too_large(place: Place, chance: random.Random) -> None:
    config = configured(place)
    numbers = [
        path
        for path in nodes(config)
        if path[0] == "model" and type(at(config, path)) is int and "steps" not in str(path)
    ]
    path = chance.choice(numbers)
    at(config, path[:-1])[path[-1]] = chance.choice([10**5, 10**7, 10**9, 10**12, 2**62, 10**30])
    configure(place, config)


@mutation("config")
def an_awkward_value_in_the_image_spec(place: Place, chance: random.Random) -> None:
    path = place.run / "spec.json"
    value = chance.choice([awkward(chance), 10**9, [1, 10**6, 10**6], [0, -1, 2**63], ["x"] * 9999])
    path.write_text(dump(change_tree(json.loads(path.read_text()), chance, value)))


CONFIG_TEXTS: dict[str, str | bytes] = {
    "an_alias_bomb": "a0: &a0 [x, x]\n"
    + "".join(f"a{i}: &a{i} [{', '.join(9 * [f'*a{i - 1}'])}]\n" for i in range(1, 12))
    + "model: *a11\n",
    "an_alias_of_itself": "model: &a {x: *a}\ndata: &b [*b]\n",
    "merge_keys_without_end": "a: &a\n  <<: *a\nmodel:\n  <<: [*a, *a]\n",
    "deep_nesting_of_brackets": "model: " + nested(20000),
    "deep_nesting_of_braces": "model: " + nested(5000, "{a: ", "}"),
    "deep_nesting_by_indent": "".join(f"{' ' * i}a:\n" for i in range(3000)),
    "a_config_in_utf_16": "model: {}\n".encode("utf-16"),
    "a_config_of_another_encoding": b"model: \xff\xfe\xe9\n",
    "a_python_object_in_yaml": f"model: !!python/object/apply:os.system ['{MARK}']\n",
    "a_huge_integer_in_yaml": f"model: {{latent_dim: {'9' * 5000}}}\n",
    "a_number_in_base_60": "model: {latent_dim: " + "1:" * 3000 + "1}\n",
    "a_date_out_of_range": "model: 9999-99-99\nseed: 0000-00-00T99:99:99Z\n",
    "a_null_byte": "model: \0\n",
    "a_list_for_a_config": "- model\n- data\n",
    "a_mapping_as_key": "? {a: 1}\n: 2\nmodel: {[1]: 2}\n",
    "several_documents": "model: 1\n---\nmodel: 2\n",
    "a_binary_and_a_set": "model: !!binary aGVsbG8=\ndata: !!set {a, b}\nx: !!omap [a: 1]\n",
    "an_empty_config": "",
}


def _config_text(name: str, text: str | bytes) -> None:
    def change(place: Place, chance: random.Random) -> None:
        data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
        (place.run / "config.yaml").write_bytes(data)

    MUTATIONS[name] = Mutation("config", change, is_last=True)


for _name, _text in CONFIG_TEXTS.items():
    _config_text(_name, _text)


@mutation("config", reader="report")
def hostile_text_in_every_value(place: Place, chance: random.Random) -> None:
    config = configured(place)
    text = chance.choice([ESCAPES, FORMULA, MARKUP, "\ud800", "x\n\n# y"])
    for path in nodes(config):
        if isinstance(at(config, path[:-1])[path[-1]], str) and path[0] != "model":
            at(config, path[:-1])[path[-1]] = text
    config |= {"group": text, "notes": text, "tags": [text], text: text}
    config["model"] |= {"kl_weight": text, text: text, "label": [text]}
    configure(place, config)


@mutation("config", reader="report")
def a_thousand_keys_that_differ(place: Place, chance: random.Random) -> None:
    config = configured(place)
    config["model"] |= {f"key_{i}": chance.random() for i in range(1000)}
    configure(place, config)
