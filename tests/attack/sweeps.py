"""Mutations of a sweep around its runs."""

from __future__ import annotations

import json
import os
import random
import shutil

import yaml
from attack.changes import (
    ESCAPES,
    FORMULA,
    MARKUP,
    MUTATIONS,
    Mutation,
    Place,
    awkward,
    change_tree,
    dump,
    mutation,
    nested,
    write_sparse,
)
from attack.configs import configured
from attack.places import something_else
from fuzz import changed


@mutation("sweep", may_refuse=True)
def any_bytes_of_the_manifest(place: Place, chance: random.Random) -> None:
    path = place.run.parent / "manifest.json"
    path.write_bytes(changed(path.read_bytes(), chance))


@mutation("sweep", may_refuse=True)
def an_awkward_value_in_the_manifest(place: Place, chance: random.Random) -> None:
    path = place.run.parent / "manifest.json"
    content = json.loads(path.read_text())
    for _ in range(chance.randint(1, 3)):
        content = change_tree(content, chance, awkward(chance))
    path.write_text(dump(content))


@mutation("sweep", may_refuse=True, reader="report here")
def hostile_text_in_the_manifest(place: Place, chance: random.Random) -> None:
    path = place.run.parent / "manifest.json"
    content = json.loads(path.read_text())
    text = chance.choice([ESCAPES, FORMULA, MARKUP, "\ud800", "x\n\n# y", "[red]x[/nope]"])
    content |= {"name": text, "question": text, "command": [text], "swept": [text], "created": text}
    content["code"] = {text: text}
    for entry in content["jobs"]:
        entry |= {"point": {text: text}, "overrides": [text], "config": {text: text, "group": text}}
        entry["run_id"] = chance.choice([entry["run_id"], text.replace("/", "_") or "x"])
    path.write_text(dump(content))


@mutation("sweep", may_refuse=True)
def a_manifest_of_odd_kinds(place: Place, chance: random.Random) -> None:
    path = place.run.parent / "manifest.json"
    content = json.loads(path.read_text())
    for name in chance.sample(sorted(content), 2):
        content[name] = chance.choice([[1], 1, None, "x", {"x": 1}, [None], [[1]], [10**400], {}])
    for entry in content["jobs"] if isinstance(content["jobs"], list) else []:
        if isinstance(entry, dict):
            entry[chance.choice(sorted(entry))] = awkward(chance)
    path.write_text(dump(content))


@mutation("sweep", may_refuse=True)
def a_manifest_of_two_hundred_jobs(place: Place, chance: random.Random) -> None:
    path = place.run.parent / "manifest.json"
    content = json.loads(path.read_text())
    one = {**content["jobs"][-1], "config": {"model": {"x": 1}}}
    content["jobs"] += [{**one, "run_id": f"run-{i}"} for i in range(200)]
    path.write_text(dump(content))


@mutation("sweep", may_refuse=True)
def a_deep_or_huge_manifest(place: Place, chance: random.Random) -> None:
    path = place.run.parent / "manifest.json"
    deep = nested(chance.choice([900, 100000]))
    if chance.random() < 0.3:
        write_sparse(path, 1 << 36)
    else:
        path.write_text(chance.choice([deep, f'{{"jobs": {deep}, "swept": [], "command": []}}']))


BESIDE = (
    *("manifest.json", "report.html", "summary.csv", "summary.md", "by_point.csv", ".lock"),
    *("rate_distortion.png", "rate_distortion.svg", "kl_by_unit.png", "reconstructions.png"),
    *("samples.png", "videos/interpolation.mp4", "videos/.interpolation.sha256", "jobs"),
    *("videos", "wandb_views.json", "wandb_workspace.json", "multirun.yaml", "optuna.db"),
)


def _beside(name: str) -> None:
    def change(place: Place, chance: random.Random) -> None:
        something_else(place, place.run.parent / name, chance)

    MUTATIONS[f"no_file_beside_{name}"] = Mutation("sweep", change, may_refuse=True, is_last=True)


for _name in BESIDE:
    _beside(_name)


NAMES = (
    *(MARKUP.replace("/", "_"), FORMULA.replace("/", "_"), ESCAPES, "x\n\n# y", "-n", "--help"),
    *(os.fsdecode(b"\xff\xfe\x80"), "a b", "$HOME", "~", "](javascript:x)", "x" * 250, "[red]x"),
    *("\ufeff", "con", "..x", "x.old-1", "@sum", "\u202ex"),
)


@mutation("sweep", may_refuse=True, reader="report")
def more_runs_of_odd_names(place: Place, chance: random.Random) -> None:
    for name in chance.sample(NAMES, 3):
        shutil.copytree(place.run, place.run.with_name(name), symlinks=True)


@mutation("sweep", may_refuse=True)
def a_thousand_keys_that_differ_between_runs(place: Place, chance: random.Random) -> None:
    config = configured(place)
    for number in range(12):
        copy = place.run.with_name(f"copy-{number}")
        copy.mkdir()
        for name in ("result.json", "status.json"):
            shutil.copy(place.run / name, copy / name)
        config["model"] |= {f"key_{number}_{i}": chance.random() for i in range(100)}
        (copy / "config.yaml").write_text(yaml.safe_dump(config))
