"""Reading a run directory is bounded: in kind, size, depth and number of what is read."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from genlab.errors import RunDirectoryError
from genlab.runs import reading
from genlab.runs.directory import RunDirectory
from genlab.runs.locks import Lock, holder, is_locked
from genlab.runs.manifest import FILE_NAME, Job, Manifest
from genlab.runs.reading import parse_json, plain, read_bytes, read_end
from genlab.runs.run import Run
from genlab.runs.text import printable


def listen(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


SPECIAL: dict[str, Callable[[Path], object]] = {
    "a FIFO": os.mkfifo,
    "a folder": Path.mkdir,
    "a link": lambda path: path.symlink_to("/dev/zero"),
    "a socket": listen,
}


@pytest.mark.parametrize("kind", SPECIAL)
def test_only_regular_files_are_read(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    path = Path("file")
    SPECIAL[kind](path)
    for read in (read_bytes, read_end):
        with pytest.raises(RunDirectoryError, match=f"file is {kind}: put a regular file"):
            read(path, 100)


def test_a_device_is_not_read() -> None:
    with pytest.raises(RunDirectoryError, match="/dev/zero is a device"):
        read_bytes("/dev/zero", 100)


READERS: dict[str, Callable[[Path], object]] = {
    "config.yaml": lambda path: Run(path).config_text,
    "status.json": lambda path: Run(path).status,
    "result.json": lambda path: Run(path).result,
    "bound.json": lambda path: Run(path).bound,
    "metrics.jsonl": lambda path: Run(path).metrics(),
    FILE_NAME: Manifest.read,
}


@pytest.mark.parametrize("name", READERS)
def test_no_reader_waits_for_a_fifo_or_reads_without_end(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(RunDirectoryError, match="is a FIFO"):
        READERS[name](tmp_path)
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(RunDirectoryError, match="is a link"):
        READERS[name](tmp_path)
    (tmp_path / name).unlink()
    with (tmp_path / name).open("wb") as file:
        file.truncate(2**31)  # a hole, which takes no room on the disk
    with pytest.raises(RunDirectoryError, match="has 2147483648 bytes: at most"):
        READERS[name](tmp_path)


def test_a_fifo_in_the_place_of_a_lock_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".lock")
    assert not is_locked(tmp_path)
    assert holder(tmp_path) == "another process"
    with pytest.raises(RunDirectoryError, match=r"cannot be written: .*is a FIFO"):
        Lock(tmp_path).open()


def test_a_fifo_in_the_place_of_the_metrics_is_refused_to_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(RunDirectoryError, match="is a FIFO"):
        RunDirectory(tmp_path).open()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f'{{"a": 1{"0" * 400}}}', "bits: at most 64"),
        (f'{{"a": 1{"0" * 5000}}}', "4300 digits"),
        ('{"a": 1e308}', "at most 1e\\+100"),
        ('{"a": 1e999}', "at most 1e\\+100"),
        ('{"a": ' + "[" * 10**5, "nested too deeply"),
        ('{"a": ' + "[" * 40 + "]" * 40 + "}", "32 containers"),
        ("[1]", "holds a list"),
        ('{"a": ', "Expecting value"),
        ("\udcff", "utf-8"),
    ],
)
def test_json_that_cannot_be_computed_with_is_refused(
    tmp_path: Path, text: str, reason: str
) -> None:
    for name in ("status.json", "result.json", "bound.json"):
        (tmp_path / name).write_text(text, errors="surrogateescape")
        with pytest.raises(RunDirectoryError, match=reason):
            READERS[name](tmp_path)
    (tmp_path / FILE_NAME).write_text(text, errors="surrogateescape")
    with pytest.raises(RunDirectoryError, match="is no manifest of a sweep"):
        Manifest.read(tmp_path)


def test_a_row_of_metrics_that_cannot_be_computed_with_is_named(tmp_path: Path) -> None:
    for value in ("1" + "0" * 400, "1e308", "[" * 10**5, "\udcff"):
        text = f'{{"step": 1, "epoch": 0, "a": {value}}}\n'
        (tmp_path / "metrics.jsonl").write_text(text, errors="surrogateescape")
        with pytest.raises(RunDirectoryError, match="line 1 is not a row"):
            Run(tmp_path).metrics()


def test_numbers_that_are_not_finite_are_null() -> None:
    assert parse_json(b"[NaN, Infinity, -Infinity, 1.5, -2]") == [None, None, None, 1.5, -2]


def test_plain_values_stay_and_others_become_text() -> None:
    same = {"a": [1, -2.5, True, None, "x\ny"], "b": {"c": "é 漢 👍"}}
    assert plain(same) == same
    assert plain([float("inf"), b"x", {1: ("y",)}]) == ["inf", "b'x'", {"1": ["y"]}]
    for number in (10**400, -(10**400), 1e308, -1e308):
        with pytest.raises(ValueError, match="at most"):
            plain(number)
    assert plain(2**64 - 1) == 2**64 - 1
    assert plain([1e-300, 1e-99]) == [0.0, 1e-99]


def test_a_config_that_is_no_utf_8_is_named(tmp_path: Path) -> None:
    for data in ("a: 1".encode("utf-16"), b"a: \xff"):
        (tmp_path / "config.yaml").write_bytes(data)
        with pytest.raises(RunDirectoryError, match=r"config\.yaml cannot be read .*utf-8"):
            _ = Run(tmp_path).config_text


@pytest.mark.parametrize("pid", [10**18, 2**40, -1, 0, "x", None, [1]])
def test_a_pid_that_no_process_can_have_is_dead(tmp_path: Path, pid: object) -> None:
    status = {"state": "running", "pid": pid, "host": socket.gethostname()}
    (tmp_path / "status.json").write_text(json.dumps(status))
    assert Run(tmp_path).is_interrupted


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("swept", "abc"),
        ("swept", [1]),
        ("jobs", {"a": 1}),
        ("jobs", [[]]),
        ("jobs", [{"run_id": "a", "overrides": [1], "point": {}, "seed": 0, "config": {}}]),
        ("jobs", [{"run_id": "a", "overrides": [], "point": 1, "seed": 0, "config": {}}]),
        ("jobs", [{"run_id": "a", "overrides": [], "point": {}, "seed": "0", "config": {}}]),
        ("jobs", [{"run_id": "a", "overrides": [], "point": {}, "seed": 0, "config": 1}]),
        ("jobs", [{"run_id": "a\0b", "overrides": [], "point": {}, "seed": 0, "config": {}}]),
        ("name", 1),
        ("question", [1]),
        ("code", 1),
        ("unknown", 1),
    ],
)
def test_a_manifest_of_other_kinds_is_refused(tmp_path: Path, key: str, value: object) -> None:
    Manifest("s", ("a",), (Job("run", (), {}, 0),)).write(tmp_path)
    content = json.loads((tmp_path / FILE_NAME).read_text())
    (tmp_path / FILE_NAME).write_text(json.dumps(content | {key: value}))
    with pytest.raises(RunDirectoryError, match="is no manifest of a sweep"):
        Manifest.read(tmp_path)


def test_the_command_of_a_manifest_is_text(tmp_path: Path) -> None:
    Manifest("s", (), ()).write(tmp_path)
    content = json.loads((tmp_path / FILE_NAME).read_text())
    (tmp_path / FILE_NAME).write_text(json.dumps(content | {"command": [1, ["x"]]}))
    found = Manifest.read(tmp_path)
    assert found is not None and found.command == ("1", "['x']")


def test_what_a_terminal_would_obey_is_shown() -> None:
    assert printable("\x1b]0;x\x07\x9b\r\u202e\ud800\x00") == (
        r"\x1b]0;x\x07\x9b\r\u202e\ud800\x00"
    )
    same = "a\n\tb é 漢字 👍 \xa0 α ±"
    assert printable(same) == same
    limit = reading.DEEPEST
    assert plain({"\x1b": "\x1b"}, limit) == {r"\x1b": r"\x1b"}
