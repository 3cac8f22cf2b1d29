"""Mutations of checkpoints."""

from __future__ import annotations

import os
import pickle
import random
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from attack.changes import ESCAPES, Place, at, awkward, change_tree, mutation, nodes
from attack.sandbox import MARK
from fuzz import changed


def checkpoints(place: Place) -> list[Path]:
    return sorted((place.run / "checkpoints").glob("*.ckpt"))


def rewrite(place: Place, change: Callable[[dict[str, Any]], Any]) -> None:
    """Rewrite all checkpoints, so that none can take the place of a refused one."""
    for path in checkpoints(place):
        content = torch.load(path, weights_only=True)
        made = change(content)
        torch.save(content if made is None else made, path)


def tensors(chance: random.Random) -> tuple[Any, ...]:
    index = torch.tensor([[0, 1]])
    return (
        torch.sparse_coo_tensor(index, torch.ones(2), (4,)),
        torch.empty(3, device="meta"),
        torch.zeros(1).expand(1 << 40),
        torch.zeros(()),
        torch.zeros(0),
        torch.full((3,), float("nan")),
        torch.ones(2, dtype=torch.complex64),
        torch.tensor([True]),
        torch.tensor(10**18),
        torch.nn.Parameter(torch.ones(2)),
        torch.ones(2, dtype=torch.float16),
        torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
    )


@mutation("checkpoint")
def any_bytes_of_a_checkpoint(place: Place, chance: random.Random) -> None:
    path = chance.choice(checkpoints(place))
    path.write_bytes(changed(path.read_bytes(), chance))


@mutation("checkpoint")
def any_bytes_of_a_checkpoints_pickle(place: Place, chance: random.Random) -> None:
    """The checksums of the archive are right."""
    for path in checkpoints(place):
        with zipfile.ZipFile(path) as archive:
            entries = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in entries.items():
                archive.writestr(name, changed(data, chance) if name.endswith("data.pkl") else data)


@mutation("checkpoint")
def an_awkward_value_in_a_checkpoint(place: Place, chance: random.Random) -> None:
    seed = chance.random()

    def change(content: dict[str, Any]) -> Any:
        same = random.Random(seed)
        for _ in range(same.randint(1, 3)):
            content = change_tree(content, same, awkward(same, tensors(same)))
        return content

    rewrite(place, change)


@mutation("checkpoint", reader="resume")
def an_awkward_value_in_a_checkpoints_callbacks(place: Place, chance: random.Random) -> None:
    def change(content: dict[str, Any]) -> None:
        for name in ("callbacks", "loops", "optimizer_states", "lr_schedulers"):
            if name in content and chance.random() < 0.5:
                value = awkward(chance, tensors(chance))
                content[name] = change_tree(content[name], chance, value)

    rewrite(place, change)


@mutation("checkpoint")
def a_tensor_of_another_kind(place: Place, chance: random.Random) -> None:
    tensor = chance.choice(tensors(chance))

    def change(content: dict[str, Any]) -> None:
        name = chance.choice(sorted(content["state_dict"]))
        given = content["state_dict"][name]
        kinds = [tensor, given.to_sparse(), given.to("meta"), given.double(), given.bool()]
        kinds += [given.tolist(), torch.zeros(1).expand(given.shape), given.to(torch.complex64)]
        content["state_dict"][name] = chance.choice(kinds)

    rewrite(place, change)


@mutation("checkpoint", reader="resume")
def paths_in_the_state_of_model_checkpoint(place: Place, chance: random.Random) -> None:
    target = str(place.private)
    run = place.run / "checkpoints" / ".." / ".." / ".." / ".." / "private"
    planted = chance.choice(
        (
            *(f"local://{target}", target, f"{target}/notes.txt", str(run), f"file://{target}"),
            *("http://192.0.2.1/x.ckpt", "s3://192.0.2.1/x", "memory://x", f"dir://{target}"),
        )
    )

    _plant(place, planted, chance.random() < 0.7)


@mutation("checkpoint", reader="resume")
def a_directory_that_is_removed_for_a_better_checkpoint(place: Place, _: random.Random) -> None:
    _plant(place, f"local://{place.private}", True)


def _plant(place: Place, path: str, is_anywhere: bool) -> None:
    """Put a path in the place of the best checkpoint, and a score that every other one betters."""

    def change(content: dict[str, Any]) -> None:
        worst = torch.tensor(1e9, dtype=torch.float64)
        states = content.setdefault("callbacks", {})
        names = [name for name in states if "Checkpoint" in name and name != "LastCheckpoint"]
        for name in names or ["BestCheckpoint"]:
            state = states.setdefault(name, {})
            if is_anywhere:
                state.pop("dirpath", None)
            state |= {"best_k_models": {path: worst}, "kth_best_model_path": path}
            state |= {"kth_value": worst, "best_model_score": worst, "best_model_path": path}
            state |= {"last_model_path": path}

    rewrite(place, change)


@mutation("checkpoint", reader="resume")
def states_of_callbacks_that_genlab_did_not_write(place: Place, chance: random.Random) -> None:
    new = str(place.base / "planted")

    def change(content: dict[str, Any]) -> None:
        states = content.setdefault("callbacks", {})
        junk = {"state_dict": 1, "seconds": ESCAPES, "_target_": "os.system", "dirpath": new}
        for name in ("LastCheckpoint", "StopOnSignal", "WeightAverage", "Heartbeat", "Throughput"):
            states[name] = chance.choice([junk, None, [], "x", {"seconds": "x"}])
        content |= {
            "hyper_parameters": {"_target_": "os.system", "command": MARK},
            "datamodule_hyper_parameters": {"data_dir": new},
            "ImageData": {"root": new},
            "raw_weights": chance.choice([None, {}, [1], {"x": 1}]),
            "ema_updates": chance.choice(["x", -1, 10**400, None]),
        }

    rewrite(place, change)


@mutation("checkpoint", reader="resume")
def a_checkpoint_of_an_old_lightning(place: Place, chance: random.Random) -> None:
    version = chance.choice(["0.1.0", "1.5.0", "x", "", 3, None, "99.0", ESCAPES, "1.9.0\n"])

    def change(content: dict[str, Any]) -> None:
        content["pytorch-lightning_version"] = version
        content["checkpoint_callback_best"] = content["checkpoint_callback_best_model_path"] = "x"
        content.pop("loops", None)

    rewrite(place, change)


@mutation("checkpoint", reader="resume")
def a_learning_rate_schedule_that_replaces_methods(place: Place, chance: random.Random) -> None:
    def change(content: dict[str, Any]) -> None:
        for state in content.get("lr_schedulers", []):
            state |= {"step": "x", "get_lr": None, "optimizer": MARK, "last_epoch": "x"}
        for state in content.get("optimizer_states", []):
            state["param_groups"][0] |= {"lr": chance.choice(["x", None, 1e308]), "params": [0, 99]}

    rewrite(place, change)


@mutation("checkpoint", reader="resume")
def an_optimizer_state_of_another_size(place: Place, chance: random.Random) -> None:
    odd = chance.choice([torch.zeros(1).expand(1 << 38), torch.zeros(3), "x", None])

    def change(content: dict[str, Any]) -> None:
        for state in content.get("optimizer_states", []):
            for of_weight in state["state"].values():
                of_weight |= dict.fromkeys(of_weight, odd)

    rewrite(place, change)


@mutation("checkpoint", reader="resume")
def counters_that_are_no_counters(place: Place, chance: random.Random) -> None:
    odd = chance.choice([10**400, -1, "x", None, 1e308, 2**70, torch.ones(3)])

    def change(content: dict[str, Any]) -> None:
        content |= {"epoch": odd, "global_step": odd}
        for path in nodes(content.get("loops", {})):
            if isinstance(at(content["loops"], path), int):
                at(content["loops"], path[:-1])[path[-1]] = odd

    rewrite(place, change)


@mutation("checkpoint")
def a_checkpoint_that_is_something_else(place: Place, chance: random.Random) -> None:
    for path in checkpoints(place):
        match chance.randrange(10):
            case 0:
                torch.save([1, 2], path)
            case 1:
                torch.save(torch.ones(3), path)
            case 2:
                torch.save({"state_dict": chance.choice([[], None, "x", 3, {}, {1: 2}])}, path)
            case 3:
                torch.save({}, path)
            case 4:
                path.unlink()
                path.mkdir()
            case 5:
                path.write_bytes(b"")
            case 6:
                path.write_bytes(pickle.dumps({"state_dict": {}}))
            case 7:
                torch.save({"state_dict": {}}, path, _use_new_zipfile_serialization=False)
            case 8:
                with zipfile.ZipFile(path, "w") as archive:
                    archive.writestr("../../private/notes.txt", MARK)
            case _:
                path.unlink()


class Planted:
    """A command that a pickle hides."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


@mutation("checkpoint")
def a_pickle_that_runs_a_command(place: Place, chance: random.Random) -> None:
    def change(content: dict[str, Any]) -> None:
        content["planted"] = Planted(f"touch {place.base}/planted")

    rewrite(place, change)


@mutation("checkpoint")
def a_pickle_without_an_archive(place: Place, chance: random.Random) -> None:
    for path in checkpoints(place):
        path.write_bytes(pickle.dumps(Planted(f"touch {place.base}/planted")))


@mutation("checkpoint")
def an_archive_that_unpacks_to_gigabytes(place: Place, chance: random.Random) -> None:
    for path in checkpoints(place)[:1]:
        with zipfile.ZipFile(path) as archive:
            entries = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in entries.items():
                archive.writestr(name, data)
            with archive.open("archive/data/999", "w") as file:
                for _ in range(64):
                    file.write(bytes(1 << 20))


@mutation("checkpoint")
def a_deeply_nested_checkpoint(place: Place, chance: random.Random) -> None:
    def change(content: dict[str, Any]) -> None:
        deep: Any = []
        for _ in range(900):  # what torch.save can still write
            deep = [deep] if chance.random() < 0.5 else {"x": deep}
        content[chance.choice(["epoch", "callbacks", "loops", "x"])] = deep

    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(50000)
    try:
        rewrite(place, change)
    finally:
        sys.setrecursionlimit(limit)
