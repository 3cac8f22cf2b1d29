"""`genlab evaluate`: a run's own test again, any split and checkpoint, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from trained_runs import train_in

from genlab import cli
from genlab.errors import DONE, REFUSED
from genlab.runs.files import sha256
from genlab.runs.run import Run
from genlab.training.load import load

SMALL = [
    *("logger=none", "callbacks=none", "forecast=false", "data.batch_size=32"),
    *("data.eval_batch_size=30", "trainer.limit_val_batches=3", "trainer.limit_test_batches=4"),
    *("trainer.limit_train_batches=6", "trainer.max_epochs=2", "ema_decay=0.9", "seed=3"),
]
MODELS = {
    "vae": [
        *("model.net.encoder.hidden=[32]", "model.net.decoder.hidden=[32]", "model.iwae_samples=3"),
        *("model/likelihood=gaussian_calibrated", "data.binarisation=none"),
    ],
    "binarised": [
        *("model.net.encoder.hidden=[32]", "model.net.decoder.hidden=[32]"),
        "data.binarisation=static",
    ],
    "ddpm": [
        *("model=ddpm", "model.steps=10", "model.sampler.steps=5", "model.net.channels=8"),
        *("model.net.multipliers=[1,1]", "model.net.attention=[]", "model.conditional=true"),
        *("model/reverse_variance=optimal", "trainer.precision=bf16-mixed"),
    ],
}
DATA = "data=mnist_mini"


@pytest.fixture(scope="module", params=MODELS)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train_in(tmp_path_factory.mktemp("runs"), *SMALL, *MODELS[request.param])


def evaluate(*arguments: object) -> int:
    return cli.main(["evaluate", *map(str, arguments)])


def records(run: Path) -> list[dict[str, Any]]:
    """The records of a run's evaluations, the newest last."""
    files = sorted(run.glob("evaluations/*.json"), key=lambda path: path.stat().st_mtime_ns)
    return [json.loads(path.read_text()) for path in files]


def copied(run: Run, folder: Path) -> Path:
    shutil.copytree(run.path, folder / "run")
    shutil.rmtree(folder / "run" / "evaluations", ignore_errors=True)
    return folder / "run"


def test_an_evaluation_is_the_runs_own_test_to_the_last_bit(trained: Run, tmp_path: Path) -> None:
    run = copied(trained, tmp_path)
    before = (run / "result.json").read_bytes()
    assert evaluate(run, DATA) == DONE
    (found,) = records(run)
    assert trained.result is not None
    assert found["metrics"] == trained.result["metrics"] and found["images"] == 120
    assert found["units"] == trained.result["units"]
    assert found["verdict"] == trained.result["verdict"]
    assert found["curves"] == (trained.bound or {})
    assert (run / "result.json").read_bytes() == before
    # the same again is the same file
    assert evaluate(run, DATA) == DONE
    assert len(records(run)) == 1


@pytest.mark.slow
def test_batches_of_another_size_change_a_value_by_float32_rounding_at_most(
    trained: Run, tmp_path: Path
) -> None:
    run = copied(trained, tmp_path)
    assert evaluate(run, DATA, "--batches", "all") == DONE
    assert evaluate(run, DATA, "--batches", "all", "data.eval_batch_size=93") == DONE
    whole, parts = (record["metrics"] for record in records(run))
    is_bf16 = "ddpm" in trained.name  # in which products have 8 bits
    assert parts == pytest.approx(whole, rel=1e-2 if is_bf16 else 2e-6)
    assert records(run)[0]["images"] == 2000


def test_every_split_and_every_checkpoint_can_be_evaluated(trained: Run, tmp_path: Path) -> None:
    run = copied(trained, tmp_path)
    for split in ("val", "train"):
        assert evaluate(run, DATA, "--split", split) == DONE
        found = records(run)[-1]
        assert {name.split("/")[0] for name in found["metrics"]} == {split}
        assert found["images"] == 120
    assert evaluate(run, DATA, "--checkpoint", "last", "--batches", 2) == DONE
    found = records(run)[-1]
    assert (found["checkpoint"], found["images"]) == ("last", 60)
    assert len(list(run.glob("evaluations/*.json"))) == 3


def test_several_runs_are_evaluated_in_turn(
    trained: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = []
    for name in "ab":
        (tmp_path / name).mkdir()
        runs.append(copied(trained, tmp_path / name))
    assert evaluate(runs[0], DATA, runs[1], "--batches", 1) == DONE
    assert records(runs[0])[0]["metrics"] == records(runs[1])[0]["metrics"]
    assert capsys.readouterr().out.count("\nresult ") == 2


def test_a_run_without_a_validation_is_evaluated_and_sampled_at_its_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    run = train_in(tmp_path, *SMALL, *MODELS["vae"], "trainer.limit_val_batches=0")
    assert not (run.checkpoints / "best.ckpt").exists()
    assert evaluate(run.path, DATA) == DONE
    assert "has no best.ckpt" in caplog.text and "last.ckpt is used" in caplog.text
    (found,) = records(run.path)
    assert run.result is not None
    assert found["metrics"] == run.result["metrics"] and found["checkpoint"] == "last"
    assert cli.main(["sample", str(run.path), "--n", "2"]) == DONE
    # and another run starts from it
    train_in(tmp_path / "other", *SMALL, *MODELS["vae"], f"init_from={run.path}")


def test_every_reader_takes_the_weights_of_the_runs_own_test(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are the last ones here; the best are of an earlier epoch, the only one validated."""
    later = ["evaluate=last", "trainer.max_epochs=3", "trainer.check_val_every_n_epoch=2"]
    run = train_in(tmp_path / "runs", *SMALL, *MODELS["vae"], *later)
    assert run.result is not None and run.result["evaluated"] == "last"
    best, last = (load(run, name).state_dict() for name in ("best", "last"))
    assert any(not torch.equal(weight, best[name]) for name, weight in last.items())
    assert evaluate(run.path, DATA) == DONE
    (found,) = records(run.path)
    assert found["metrics"] == run.result["metrics"] and found["checkpoint"] == "last"

    assert cli.main(["export", str(run.path)]) == DONE
    assert cli.main(["sample", str(run.path), "--n", "2"]) == DONE
    (exported,) = (run.path / "exports").iterdir()
    (drawn,) = (run.path / "samples").iterdir()
    assert (exported.name, drawn.name) == ("last-safetensors", "n2-seed0")
    with np.load(drawn / "samples.npz") as content:
        assert content["checkpoint"] == "last"
        assert content["weights"] == sha256(run.checkpoints / "last.ckpt")
    begun = train_in(
        tmp_path / "begun", *SMALL, *MODELS["vae"], f"init_from={run.path}", "trainer.max_epochs=0"
    )
    for model in (load(run), load(exported), load(begun)):
        assert all(torch.equal(w, last[name]) for name, w in model.state_dict().items())

    text = run.config_path.read_text()
    run.config_path.write_text(text.replace("evaluate: last", "evaluate: ../last"))
    for command, *data in (["sample"], ["export"], ["video"], ["evaluate", DATA]):
        capsys.readouterr()
        assert cli.main([command, str(run.path), *data]) == REFUSED
        (line,) = capsys.readouterr().err.splitlines()
        assert "evaluate='../last': choose one of best, last" in line


def test_what_cannot_be_evaluated_is_refused_in_one_line(
    trained: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied(trained, tmp_path)
    link = tmp_path / "link"
    shutil.copytree(run, link)
    (link / "evaluations").symlink_to(tmp_path)
    cases: list[tuple[list[object], list[str]]] = [
        ([run], ["needs images", "give data=NAME"]),
        ([DATA], ["give a run directory"]),
        ([tmp_path / "none", DATA], ["none", "is not a directory"]),
        ([run, "data=cifar10"], ["data=cifar10", "3 x 32 x 32"]),
        ([run, DATA, "data.x=1"], ["data.x", "no such key"]),
        ([run, DATA, "--batches", 0], ["--batches 0", "at least 1"]),
        ([run, DATA, "--device", "cuda:99"], ["--device cuda:99", "no such device"]),
        ([run, DATA, "data.val_images=0", "--split", "val"], ["--split val", "val_images=0"]),
        ([link, DATA], ["evaluations", "link"]),
    ]
    for arguments, words in cases:
        assert evaluate(*arguments) == REFUSED, arguments
        (line,) = capsys.readouterr().err.splitlines()
        assert all(word in line for word in words), line
    assert not (run / "evaluations").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": {"module": {"_target_": "os.system", "_partial_": True}}}, ["model.module"]),
        ({"model": {"module": None}}, ["model.module"]),
        (
            {"model": {"module": {"metrics": {"x": {"_target_": "torchmetrics.MeanMetric"}}}}},
            ["model.module.metrics", "refused"],
        ),
        ({"model": {"module": {"optimizer": {"_target_": "torch.optim.SGD"}}}}, ["refused"]),
        ({"trainer": {"precision": "64-true"}}, ["precision", "choose one of"]),
        ({"data": {"eval_batch_size": "many"}}, ["data.eval_batch_size", "whole number"]),
        ({"data": {"val_images": -1}}, ["data.val_images=-1"]),
        ({"seed": -1}, ["seed"]),
    ],
)
def test_a_received_config_names_no_other_module_and_no_other_kind_of_value(
    trained: Run,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, Any],
    words: list[str],
) -> None:
    run = copied(trained, tmp_path)

    def merged(old: Any, new: Any) -> Any:
        if not isinstance(old, dict) or not isinstance(new, dict):
            return new
        return {**old, **{key: merged(old.get(key), value) for key, value in new.items()}}

    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(merged(config, change)))
    assert evaluate(run, DATA) == REFUSED
    (line,) = capsys.readouterr().err.splitlines()
    assert all(word in line for word in words), line


def test_no_path_and_no_data_set_of_a_received_config_is_used(trained: Run, tmp_path: Path) -> None:
    run = copied(trained, tmp_path)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"] |= {"data_dir": "/nowhere", "source": {"_target_": "os.system"}}
    config["trainer"] = {**config["trainer"], "default_root_dir": "/nowhere", "callbacks": [1]}
    config["init_from"] = "/nowhere"
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert evaluate(run, DATA, "--batches", 1) == DONE
