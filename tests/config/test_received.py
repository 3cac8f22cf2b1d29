"""A received run directory builds its model and nothing else, of classes of the right kinds."""

from __future__ import annotations

import ast
import copy
import importlib
import inspect
import json
import pkgutil
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import fuzz
import pytest
import torch
import yaml
from conf_files import CONF, model_of
from conf_files import name as name_of
from model_trees import OTHERS, names, planted, trees
from torch import nn
from watched import watched

import genlab
from genlab.config.check import check, import_class
from genlab.config.trust import MODEL_PACKAGES, check_received
from genlab.diffusion.samplers import Ancestral
from genlab.errors import ConfigError, GenlabError, RunDirectoryError
from genlab.gan.model import Networks as AdversarialNetworks
from genlab.protocols import ImageSpec
from genlab.runs.run import Run
from genlab.training.load import Received, build_received, read_model, read_received
from genlab.training.run_config import TRAINING
from genlab.vae.model import Networks

SPEC = ImageSpec(1, 28, 28, classes=tuple("0123456789"))


def targets(node: Any) -> Iterator[str]:
    """Return the classes that a config names."""
    for part in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from targets(part)
    if isinstance(node, dict) and "_target_" in node:
        yield node["_target_"]


def parameters(cls: type[Any]) -> dict[str, Any]:
    hints = inspect.get_annotations(cls.__init__, eval_str=True)
    return {name: hint for name, hint in hints.items() if name != "return"}


@cache
def model_classes() -> list[type[Any]]:
    """All classes that are defined in the packages of models."""
    found = {import_class(name, "k") for name in names()}
    own = (cls for cls in found if cls.__module__.startswith(MODEL_PACKAGES))
    return sorted(own, key=lambda cls: (cls.__module__, cls.__qualname__))


def is_admitted(node: Any, annotation: Any) -> bool:
    try:
        check_received(node, annotation, "k")
    except ConfigError:
        return False
    return True


def test_of_all_classes_in_each_place_only_those_of_models_and_of_its_kind_are_admitted() -> None:
    """No other class of genlab can stand anywhere in a received config."""
    annotations: list[Any] = [nn.Module]
    for cls in model_classes():
        annotations += [a for a in parameters(cls).values() if a not in annotations]
    assert len(annotations) > 20 and len(names()) > 1000
    admitted = set()
    for annotation in annotations:
        for name in [*names(), *OTHERS]:
            for partial in (False, True):
                node: Any = {"_target_": name, "_partial_": partial}
                if is_admitted([node] if annotation is Sequence[int] else node, annotation):
                    cls = import_class(name, "k")
                    assert cls.__module__.startswith(MODEL_PACKAGES), (annotation, name)
                    kinds = {base.__name__ for base in inspect.getmro(cls)} - {"object"}
                    assert any(kind in str(annotation) for kind in kinds), (annotation, name)
                    admitted.add(cls)
    # and all that configs name are
    for tree in trees():
        assert {import_class(name, "k") for name in targets(tree)} <= admitted


def test_no_class_of_a_model_takes_a_key_that_it_does_not_declare() -> None:
    evil = planted("genlab.tracking.wandb.WandbLogger", Path("owned"))
    for cls in model_classes():
        node = {"_target_": f"{cls.__module__}.{cls.__qualname__}"}
        known = inspect.signature(cls).parameters
        for key in ("x", "args", "kwargs", "self", "_args_", "_convert_", "filename"):
            if key not in known or known[key].kind in (inspect.Parameter.VAR_KEYWORD, 2):
                for value in (evil, [evil], 1, None):
                    assert not is_admitted({**node, key: value}, cls), (cls, key)


def test_models_know_no_way_to_files_processes_or_the_network() -> None:
    """Their modules import nothing that has one, but what torch brings."""
    for package in MODEL_PACKAGES:
        path = importlib.import_module(package).__path__
        for module in pkgutil.walk_packages(path, f"{package}."):
            tree = ast.parse(inspect.getsource(importlib.import_module(module.name)))
            imported = {
                a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names
            }
            imported |= {str(n.module) for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
            used = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
            roots = {name.partition(".")[0] for name in imported}
            assert not roots & {"os", "io", "pathlib", "shutil", "subprocess", "socket", "urllib"}
            assert not roots & {"tempfile", "pickle", "logging", "lightning", "wandb", "hydra"}
            assert not used & {"open", "exec", "eval", "compile", "__import__"}, module


@pytest.mark.parametrize("number", range(len(trees())))
def test_what_training_writes_is_built_again_and_nothing_else_happens(number: int) -> None:
    tree = trees()[number]
    with watched() as events:
        model = build_received(Received(read_model(tree), SPEC))
    assert isinstance(model, nn.Module) and not events


PARTS = [
    file
    for file in sorted((CONF / "model").rglob("*.yaml"))
    if file.parent.name not in ("optimizer", "lr_schedule")
]


@pytest.mark.parametrize("file", PARTS, ids=name_of)
def test_each_file_of_a_model_can_be_received(file: Path) -> None:
    """A class that this refuses belongs into one of `MODEL_PACKAGES`, with annotated parameters."""
    node = yaml.safe_load(file.read_text())
    for key in ("defaults", "_partial_", *TRAINING):
        node.pop(key, None)
    if "_target_" in node:
        check_received(node, import_class(node["_target_"], "k"), "k")
    else:
        kinds = {"vae": Networks, "gan": AdversarialNetworks}
        check_received(node, kinds[model_of(file)], "k")


BARE = [  # that have no __init__ of their own
    ("likelihood", "genlab.vae.likelihoods.ContinuousBernoulliLikelihood", 0),
    ("likelihood", "genlab.vae.likelihoods.DiscretizedLogisticLikelihood", 0),
    ("reverse_variance", "genlab.diffusion.variances.FixedSmall", 4),
    ("reverse_variance", "genlab.diffusion.variances.FixedLarge", 4),
    ("reverse_variance", "genlab.diffusion.variances.Learned", 4),
    ("time_sampler", "genlab.diffusion.time_samplers.Uniform", 4),
    ("time_sampler", "genlab.diffusion.time_samplers.LowDiscrepancy", 4),
]
HOSTILE = [
    "genlab.training.console._LogFile",
    "genlab.tracking.wandb.WandbLogger",
    "genlab.runs.directory.RunDirectory",
]


@pytest.mark.parametrize(("key", "target", "number"), BARE)
@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_class_without_parameters_takes_no_key(
    tmp_path: Path, key: str, target: str, number: int, hostile: str
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    tree = trees()[number]
    tree[key] = {"_target_": target, "x": planted(hostile, victim)}
    with watched() as events, pytest.raises(ConfigError, match=rf"^model\.{key}\.x="):
        build_received(Received(read_model(tree), SPEC))
    assert not events and victim.read_text() == "precious"


STRANGE = """
from __future__ import annotations
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
import torch
from torch import nn
from genlab.diffusion.samplers import Ancestral

import typing

class Net(nn.Module):
    def __init__(self, path: Path = None, text_or_path: str | Path = "",
                 tensor: torch.Tensor = None,
                 mapping: Mapping = None, plain: dict = None, typed: dict[str, int] = None,
                 anything: Any = None, thing: object = None, untyped=None, items: list = None,
                 call: Callable[..., Any] = None, function: Callable[[int], int] = None,
                 optimizer: torch.optim.Optimizer = None, kind: type[nn.Module] = nn.Linear,
                 bare: typing.Callable = None, part: nn.Module = None,
                 width: int = 1, act: str = "relu", sizes: Sequence[int] = (), **rest: int) -> None:
        super().__init__()

@dataclass(frozen=True)
class Own(Ancestral):
    share: float = 0.5
"""


@pytest.fixture
def strange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "genlab_strange.py").write_text(STRANGE)
    monkeypatch.syspath_prepend(tmp_path)
    return "genlab_strange.Net"


OPEN = [
    *("path", "text_or_path", "tensor", "mapping", "plain", "typed", "anything", "thing"),
    *("bare", "untyped", "items", "call", "function", "optimizer", "kind", "rest", "self"),
]


@pytest.mark.parametrize("key", OPEN)
@pytest.mark.parametrize(
    "value", ["/etc/passwd", 1, None, [1], {}, {"_target_": "genlab_strange.Net"}], ids=str
)
def test_a_parameter_that_says_no_kind_takes_nothing_that_was_received(
    strange: str, key: str, value: Any
) -> None:
    """This holds in a package that the reader trusts, too."""
    trusted = ["genlab_strange"]
    check_received({"_target_": strange, "width": 3, "sizes": [1]}, nn.Module, "k", trusted)
    with pytest.raises(ConfigError, match=rf"^k\.{key}="):
        check_received({"_target_": strange, key: value}, nn.Module, "k", trusted)


def test_a_dataclass_of_another_package_takes_the_keys_of_its_base(strange: str) -> None:
    node = {"_target_": "genlab_strange.Own", "steps": 3, "grid": "uniform", "share": 1}
    check_received(node, Ancestral, "k", ["genlab_strange"])
    assert check(node, "k")["share"] == 1.0
    with pytest.raises(ConfigError, match=r"^k\.other=1: there is no such key"):
        check_received({**node, "other": 1}, Ancestral, "k", ["genlab_strange"])


def test_a_key_with_a_line_end_does_not_begin_a_line_of_its_own(strange: str) -> None:
    with pytest.raises(ConfigError, match=r"^k\.\\nerror: owned=1: there is no such key"):
        check_received(
            {"_target_": strange, "\nerror: owned": 1}, nn.Module, "k", ["genlab_strange"]
        )


def test_a_module_is_named_by_its_class(strange: str) -> None:
    node = {"_target_": strange, "part": {"_target_": strange, "width": 1}}
    check_received(node, nn.Module, "k", ["genlab_strange"])
    for value in ({}, {"width": 1}, 1, "genlab_strange.Net", [], None):
        with pytest.raises(ConfigError, match=r"^k\.part="):
            check_received({**node, "part": value}, nn.Module, "k", ["genlab_strange"])


@pytest.mark.parametrize("value", [{}, [], {"_target_": "genlab_strange.Net"}, b"x", Path("x")])
def test_a_plain_parameter_takes_plain_values_alone(strange: str, value: Any) -> None:
    for key in ("width", "act"):
        with pytest.raises(ConfigError, match=rf"^k\.{key}="):
            node = {"_target_": strange, key: value}
            check_received(node, nn.Module, "k", ["genlab_strange"])


def test_nothing_is_imported_of_a_package_that_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "genlab_marks"
    package.mkdir()
    for name in ("__init__", "__main__", "_hidden"):
        (package / f"{name}.py").write_text(
            f"from pathlib import Path\nPath({str(tmp_path / name)!r}).touch()\nclass A: pass\n"
        )
    monkeypatch.syspath_prepend(tmp_path)
    for target in ("genlab_marks.A", "genlab_marks.__main__.A"):
        assert not is_admitted({"_target_": target}, nn.Module)
    assert not (tmp_path / "__init__").exists()
    for target in ("genlab_marks.__main__.A", "genlab_marks._hidden.A"):
        with pytest.raises(ConfigError, match="is refused"):
            check_received({"_target_": target}, nn.Module, "k", ["genlab_marks"])
    assert not (tmp_path / "__main__").exists() and not (tmp_path / "_hidden").exists()


LARGE = [
    (0, "latent_dim", 10**12),
    (0, "net.encoder.hidden", [10**6, 10**6, 10**6]),
    (0, "net.encoder.hidden", [1] * 10**6),
    (0, "latent_dim", 10**400),
    (0, "kl_weight", 10**400),
    (0, "kl_weight", 1 << 20000),
    (1, "prior.components", 10**12),
    (4, "steps", 10**12),
    (4, "net.channels", 10**9),
    (4, "net.blocks", 10**12),
    (4, "net.fourier", [2000]),
    (4, "net.fourier", [9 * 10**18]),
    (6, "noise_schedule.steps", 10**11),
    (6, "time_sampler.bins", 10**11),
]


@pytest.mark.parametrize(
    ("number", "key", "value"), LARGE, ids=[f"{i}-{large[1]}" for i, large in enumerate(LARGE)]
)
def test_a_network_too_large_is_one_sentence(number: int, key: str, value: Any) -> None:
    tree = trees()[number]
    node = tree
    *parents, last = key.split(".")
    for part in parents:
        node = node[part]
    node[last] = value
    with pytest.raises(ConfigError, match="^model[:.]") as refused:
        build_received(Received(read_model(tree), SPEC))
    assert len(str(refused.value)) < 500


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory without weights."""
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"model": trees()[0]}))
    spec = {"channels": 1, "height": 28, "width": 28, "levels": 256, "classes": ["a", "b"]}
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    return tmp_path


def test_the_spec_of_a_run_comes_from_its_directory(run: Path) -> None:
    assert read_received(run).spec == ImageSpec(1, 28, 28, classes=("a", "b"))
    (run / "spec.json").unlink()
    with pytest.raises(RunDirectoryError, match=r"has no spec\.json.*overwrite=true"):
        genlab.load(run)


@pytest.mark.parametrize(
    "change",
    [
        *({"channels": value} for value in (0, -1, "1", None, 1.5, [1], True, 10**400, 1 << 27)),
        *({"height": 1 << 20, "width": 1 << 20}, {"levels": 1}, {"levels": "x"}, {"extra": 1}),
        *({"classes": value} for value in ("ab", [1], None, {"a": 1}, ["x" * 300], [["a"]])),
        *({"_target_": "os.system"}, {"classes": ["a"] * (1 << 18)}),
        {"channels": {"_target_": "subprocess.Popen", "args": "exit"}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_spec_that_is_none_is_one_sentence(run: Path, change: dict[str, Any]) -> None:
    spec = Run(run).spec or {}
    (run / "spec.json").write_text(json.dumps({**spec, **change}))
    with watched() as events, pytest.raises(GenlabError, match=r"spec\.json"):
        genlab.load(run)
    assert not events


def test_a_config_in_another_encoding_is_one_sentence(run: Path) -> None:
    text = (run / "config.yaml").read_text()
    for encoding in ("utf-16", "utf-16-le", "utf-32"):
        (run / "config.yaml").write_bytes(text.encode(encoding))
        with pytest.raises(GenlabError, match=r"config\.yaml"):
            genlab.load(run)


@pytest.mark.parametrize(
    "text",
    [
        "a0: &a0 [x, x, x, x]\n"
        + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)),
        "model: " + "[" * 5000 + "]" * 5000,
        "model: " + "{schedule: " * 500 + "1" + "}" * 500,
        "model: &a {x: *a}",
        f"model: {{_target_: genlab.vae.model.VAE, latent_dim: 0x{'f' * 9000}}}",
        "model: !!python/object/apply:pathlib.Path [/etc/passwd]",
        "model: 2001-01-01",
        f"model: !!int '{':'.join('1' * 10**5)}'",
        f"model: !!float ' {':'.join('1' * 10**5)}'",
        "model: {_target_: !!str genlab.vae.model.VAE}",
        f"0x{'f' * 9000}: 1",
        f"model: {{_target_: genlab.vae.model.VAE, 0x{'f' * 9000}: 1}}",
        f"model: {{_target_: genlab.vae.model.VAE, {'k' * 9000}: 1}}",
        f"model: {{_target_: genlab.vae.{'k' * 9000}.VAE}}",
        "model: {_target_: genlab.vae.priors.StandardNormal, latent_dim: 3}",
    ],
    ids=[
        *(
            "aliases",
            "lists",
            "mappings",
            "itself",
            "number",
            "path",
            "date",
            "sexagesimal",
            "spaced",
            "tag",
            "key",
            "number key",
        ),
        *("long key", "long name", "part"),
    ],
)
def test_a_config_that_is_a_bomb_is_one_sentence(run: Path, text: str) -> None:
    (run / "config.yaml").write_text(text)
    with watched() as events, pytest.raises(ConfigError) as refused:
        genlab.load(run)
    assert not events and len(str(refused.value)) < 1000 and "\n" not in str(refused.value)


def test_the_limit_on_memory_follows_the_checkpoint(run: Path) -> None:
    """A model that is small beside its checkpoint is built, however large it is."""
    received = read_received(run)
    wide = copy.deepcopy(received.model)
    wide["net"]["encoder"]["hidden"] = [1000]
    build_received(Received(wide, received.spec), 1 << 23)
    with pytest.raises(ConfigError, match=r"^model\.net.*far larger than its checkpoint"):
        build_received(Received(wide, received.spec), 1 << 20)
    assert torch.zeros(1 << 20).nbytes == 1 << 22  # no limit is left behind


def test_mutated_models_are_refused_or_built_and_do_nothing_else() -> None:
    assert fuzz.fuzz("model of a received run", 200, seed=11) == 0


def test_a_hole_in_a_checkpoint_does_not_lift_the_limit_on_memory(run: Path) -> None:
    """A file of 400 GB that takes no room on the disk is no reason to build a model of 40 GB."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["model"]["net"]["encoder"]["hidden"] = [10**6]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (run / "checkpoints").mkdir(exist_ok=True)
    with (run / "checkpoints" / "best.ckpt").open("wb") as file:
        file.write(b"PK")
        file.truncate(400 * 10**9)
    with pytest.raises(ConfigError, match="far larger than its checkpoint"):
        genlab.load(run)
