"""Mutations of the JSON files, the metrics and the log of a run."""

from __future__ import annotations

import json
import random
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attack.changes import (
    ESCAPES,
    FORMULA,
    MARKUP,
    MUTATIONS,
    NUMBERS,
    Mutation,
    Place,
    at,
    awkward,
    change_tree,
    dump,
    mutation,
    nested,
    nodes,
    write_sparse,
)
from fuzz import changed

RECORDS = ("status.json", "result.json", "bound.json", "env.json", "metrics.jsonl", "spec.json")


def _record(place: Place, chance: random.Random) -> Path:
    there = [place.run / name for name in RECORDS if (place.run / name).is_file()]
    return chance.choice(there)


@mutation("records")
def any_bytes_of_a_record(place: Place, chance: random.Random) -> None:
    path = chance.choice(
        [_record(place, chance), place.run / "train.log", place.run / "tracker_id"]
    )
    if path.exists():
        path.write_bytes(changed(path.read_bytes(), chance))


@mutation("records")
def an_awkward_value_in_a_record(place: Place, chance: random.Random) -> None:
    path = _record(place, chance)
    if path.suffix == ".jsonl":
        rows: Any = [json.loads(line) for line in path.read_text().splitlines()]
        rows = change_tree(rows, chance, awkward(chance))
        rows = rows if isinstance(rows, list) else [rows]
        text = "".join(dump(row) + "\n" for row in rows)
    else:
        text = dump(change_tree(json.loads(path.read_text()), chance, awkward(chance)))
    path.write_text(text)


@mutation("records")
def awkward_numbers_in_all_records(place: Place, chance: random.Random) -> None:
    number = chance.choice(NUMBERS)
    for name in RECORDS:
        path = place.run / name
        if path.is_file():
            rows = [
                json.loads(t)
                for t in (
                    [path.read_text()] if name != "metrics.jsonl" else path.read_text().splitlines()
                )
            ]
            for row in rows:
                for found in nodes(row):
                    if isinstance(at(row, found), int | float) and chance.random() < 0.7:
                        at(row, found[:-1])[found[-1]] = number
            path.write_text("".join(dump(row) + "\n" for row in rows))


@mutation("records", reader="report")
def hostile_text_in_all_records(place: Place, chance: random.Random) -> None:
    text = chance.choice([ESCAPES, FORMULA, MARKUP, "\ud800", "| a | b |\n\n# x", "[red]x[/nope]"])
    for name in ("status.json", "result.json", "env.json"):
        path = place.run / name
        if path.is_file():
            content = json.loads(path.read_text())
            for found in nodes(content):
                if isinstance(at(content, found), str) and found != ("state",):
                    at(content, found[:-1])[found[-1]] = text
            content[text] = text
            path.write_text(dump(content))
    result = place.run / "result.json"
    if result.is_file():
        content = json.loads(result.read_text())
        content |= {"verdict": text, "forecast_verdict": text, "units": {text: text}}
        content["metrics"] |= {f"test/{text}": 1.0}
        result.write_text(dump(content))
    (place.run / "train.log").write_text(text, errors="surrogatepass")


@mutation("records", reader="report")
def hostile_text_about_a_failure(place: Place, chance: random.Random) -> None:
    text = chance.choice([ESCAPES, FORMULA, MARKUP, "\ud800", "x\n\n# y"])
    status = {"state": chance.choice(["failed", text, "running", "preempted"]), "type": text}
    status |= {"message": text, "where": text, "heartbeat": text, "host": text, "started": text}
    (place.run / "status.json").write_text(dump(status))


@mutation("records", reader="report")
def a_process_that_cannot_be(place: Place, chance: random.Random) -> None:
    pid = chance.choice([10**30, 2**31, -1, 0, "1", 1.5, None, True, [1], 10**400])
    status = {"state": "running", "pid": pid, "host": socket.gethostname(), "started": pid}
    (place.run / "status.json").write_text(dump(status))


RECORD_TEXTS: dict[str, Callable[[random.Random], bytes]] = {
    "deep_nesting_in_a_record": lambda chance: nested(chance.choice([900, 100000])).encode(),
    "deep_objects_in_a_record": lambda chance: nested(50000, '{"a":', "}").encode(),
    "a_huge_number_in_a_record": lambda chance: b'{"metrics": {"test/kl": ' + b"9" * 5000 + b"}}",
    "a_record_in_utf_16": lambda chance: '{"state": "completed"}'.encode("utf-16"),
    "lone_surrogates_in_a_record": lambda chance: (
        b'{"state": "\\ud800", "metrics": {"\\udfff": 1}}'
    ),
    "a_list_for_a_record": lambda chance: b"[1, 2]",
    "nothing_in_a_record": lambda chance: b"",
    "null_for_a_record": lambda chance: b"null",
    "infinity_in_a_record": lambda chance: b'{"metrics": {"test/kl": Infinity, "test/x": NaN}}',
    "lists_for_mappings_in_a_record": lambda chance: (
        b'{"metrics": [1], "state": ["x"], "units": 3}'
    ),
    "a_row_of_odd_steps": lambda chance: (
        b'{"step": 1%s, "epoch": [], "val/kl": "x"}\n' % (b"0" * 400)
    ),
    "rows_of_odd_values": lambda chance: (
        b'{"step": 1, "val/kl": 1e308}\n{"step": -5, "val/kl": -1e308}\n'
        b'{"step": true, "val/kl": {}}\n'
    ),
}


def _record_text(name: str, make: Callable[[random.Random], bytes]) -> None:
    def change(place: Place, chance: random.Random) -> None:
        data = make(chance)
        for path in {_record(place, chance), _record(place, chance)}:
            path.write_bytes(data.replace(b"\n", b" ") + b"\n" if path.suffix == ".jsonl" else data)

    MUTATIONS[name] = Mutation("records", change, is_last=True)


for _name, _make in RECORD_TEXTS.items():
    _record_text(_name, _make)


@mutation("records")
def a_huge_record(place: Place, chance: random.Random) -> None:
    names = [*RECORDS, "config.yaml", "train.log", "tracker_id"]
    write_sparse(place.run / chance.choice(names), 1 << 36)


@mutation("records")
def a_metric_of_another_kind_everywhere(place: Place, chance: random.Random) -> None:
    result = place.run / "result.json"
    if result.is_file():
        content = json.loads(result.read_text())
        value = awkward(chance)
        content["metrics"] = dict.fromkeys(content["metrics"], value)
        result.write_text(dump(content))
    (place.run / "bound.json").write_text(
        dump({"kl_by_unit": awkward(chance), "log_snr_edges": [1], "nats_by_log_snr": "x"})
    )
