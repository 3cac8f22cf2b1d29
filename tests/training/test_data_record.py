"""A run refuses changed images, and needs no images where only its model is used."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from genlab import cli
from genlab.config.compose import compose
from genlab.data.array import ArrayFile
from genlab.errors import DONE, DataError
from genlab.runs.manifest import Manifest
from genlab.runs.run import Run
from genlab.training import run

QUICK = [
    *("trainer=smoke", "callbacks=none", "logger=none", "forecast=false", "data=folder"),
    *("data.source.image_size=8", "data.source.channels=1", "data.val_images=8"),
    *("data.batch_size=16", "data.eval_batch_size=20"),
    *("model.net.encoder.hidden=[16]", "model.net.decoder.hidden=[16]"),
]


def add_images(folder: Path, first: int, number: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(first, first + number):
        Image.new("L", (8, 8), i % 256).save(folder / f"{i:04}.png")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("cat", "dog"):
        add_images(tmp_path / "tree" / name, 0, 40)
    return tmp_path / "tree"


def train(tree: Path, *overrides: str) -> Any:
    base = tree.parent
    places = [f"data.source.root={tree}", f"data.source.cache_dir={base / 'cache'}"]
    return run.run(compose([*QUICK, *places, f"runs_dir={base / 'runs'}", *overrides]))


def test_a_completed_run_does_not_speak_for_other_images(tree: Path) -> None:
    first = train(tree)
    assert Run(first.path).data["images"] == {"test": 8, "train": 72}
    assert train(tree).result == first.result
    add_images(tree / "cat", 40, 30)
    told = "of this run, which had 72 train and 8 test images; now there are 99 train and 11 test"
    with pytest.raises(DataError, match=told) as refused:
        train(tree)
    assert "overwrite=true" in str(refused.value)
    anew = train(tree, "overwrite=true")
    assert Run(anew.path).data["images"] == {"test": 11, "train": 99}
    assert train(tree).result == anew.result


def test_an_interrupted_run_does_not_go_on_with_other_images(tree: Path) -> None:
    path = train(tree).path
    (path / "result.json").unlink()
    (path / "status.json").write_text('{"state": "preempted"}')
    (tree / "dog" / "0003.png").rename(tree / "dog" / "renamed.png")
    with pytest.raises(DataError, match="the images are not those of this run"):
        train(tree)
    (tree / "dog" / "renamed.png").rename(tree / "dog" / "0003.png")
    assert train(tree).result is not None


def test_a_copy_of_the_same_files_is_no_change(
    tree: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = train(tree)
    os.utime(tree / "dog" / "0003.png", (1e9, 1e9))
    assert train(tree).result == first.result
    assert "their names and sizes are the same" in caplog.text


def test_images_that_are_gone_have_not_changed(
    tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = train(tree)
    tree.rename(tree.with_name("elsewhere"))
    assert train(tree).result == first.result
    assert cli.main(["sample", str(first.path), "--n", "2"]) == DONE
    assert Run(first.path).spec["classes"] == ["cat", "dog"]


def test_an_evaluation_on_other_images_says_so(
    tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = train(tree).path
    data = [o for o in QUICK if o.startswith("data")] + [f"data.source.root={tree}"]
    data += [f"data.source.cache_dir={tree.parent / 'cache'}"]
    assert cli.main(["evaluate", str(path), *data]) == DONE
    assert "are not those of the run" not in capsys.readouterr().out
    add_images(tree / "cat", 40, 30)
    assert cli.main(["evaluate", str(path), *data]) == DONE
    told = "these 99 train and 11 test images are not those of the run, which had 72 train and 8"
    assert told in capsys.readouterr().out


def test_a_sweep_is_not_continued_on_other_images(tree: Path) -> None:
    first = train(tree, "group=weights", "model.kl_weight=0")
    Manifest("weights", ("model.kl_weight",), ()).write(first.path.parent)
    add_images(tree / "cat", 40, 1)
    with pytest.raises(DataError, match=rf"not those of {first.path.name} of this sweep"):
        train(tree, "group=weights", "model.kl_weight=1")
    assert train(tree, "group=others", "model.kl_weight=1").result is not None


def test_a_data_set_that_is_verified_keeps_no_record(tmp_path: Path) -> None:
    small = [o for o in QUICK if not o.startswith("data")]
    path = run.run(compose([*small, f"runs_dir={tmp_path}"])).path
    assert path is not None and Run(path).data is None


def test_an_array_of_images_has_a_fingerprint(tmp_path: Path) -> None:
    pixels = np.zeros((100, 8, 8), dtype=np.uint8)
    np.save(tmp_path / "x.npy", pixels)
    source = ArrayFile(str(tmp_path / "x.npy"), cache_dir=str(tmp_path / "cache"))
    before = source.fingerprint(tmp_path)
    assert before.images == {"train": 100}
    np.save(tmp_path / "x.npy", pixels[:99])
    after = ArrayFile(str(tmp_path / "x.npy"), cache_dir=str(tmp_path / "cache"))
    assert after.fingerprint(tmp_path).files != before.files


def test_an_array_of_the_same_size_with_other_pixels_is_a_change(tmp_path: Path) -> None:
    def train_on(level: int) -> Any:
        images = np.full((80, 8, 8), level, dtype=np.uint8)
        np.save(tmp_path / "images.npy", images)
        places = [
            *("data=array", f"data.source.path={tmp_path / 'images.npy'}"),
            *(f"data.source.cache_dir={tmp_path / 'cache'}", f"runs_dir={tmp_path / 'runs'}"),
        ]
        quick = [key for key in QUICK if not key.startswith(("data=", "data.source"))]
        return run.run(compose([*quick, *places]))

    assert train_on(7).result == train_on(7).result
    with pytest.raises(DataError, match="the images are not those of this run"):
        train_on(8)
