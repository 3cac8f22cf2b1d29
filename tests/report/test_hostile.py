"""A run that cannot be read is a named row, and what a run says is text, wherever it is shown."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import shutil
import socket
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from rich.console import Console

from genlab.cli import main
from genlab.config import received_yaml
from genlab.errors import DONE, REFUSED, RunDirectoryError
from genlab.media import pictures, videos
from genlab.report import Record, collect, print_sweep, swept_keys, write_sweep
from genlab.report.collect import MOST_FILES, MOST_KEYS, MOST_METRICS
from genlab.report.escaping import markdown, spreadsheet_cell
from genlab.runs.directory import RunDirectory
from genlab.runs.manifest import FILE_NAME, Job, Manifest
from genlab.runs.points import short_names
from genlab.runs.reading import ROW
from genlab.training.terminal import print_error

ROOT = Path(__file__).parents[2]
HOSTILE = "\x1b]0;owned\x07\x1b[2J\u202e|*a*\n# b [c](http://d)\r`<e>&"


def config(**changes: Any) -> dict[str, Any]:
    model = {"_target_": "genlab.vae.model.VAE", "kl_weight": 1.0, "latent_dim": 4}
    return {"seed": 0, "group": "s", "data": {"name": "mnist"}, "model": model} | changes


def write(path: Path, given: dict[str, Any], **metrics: float) -> Path:
    with RunDirectory(path) as run:
        run.write_config(yaml.safe_dump(given))
        terms = {"reconstruction": 90.0, "kl": 10.0, "neg_elbo": 100.0, "active_units": 2.0}
        known = {f"test/{name}": value for name, value in (terms | metrics).items()}
        run.write_result({"metrics": known, "seed": 0, "verdict": "fine"})
        run.write_bound({"kl_by_unit": [3.0, 1.0]})
        run.write_env({"versions": {"torch": "2"}})
        run.append_metrics(1, 0, {"val/kl": 1.0})
        run.append_metrics(2, 0, {"val/kl": 2.0})
        run.write_status("completed")
        Image.new("RGB", (8, 8), "red").save(run.pictures / "reconstructions-final.png")
    return path


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two good runs, and `bad`, which a test spoils."""
    for name, weight in (("a", 1.0), ("b", 30.0), ("bad", 3.0)):
        given = config()
        given["model"]["kl_weight"] = weight
        write(tmp_path / "s" / name, given, kl=10 / weight)
    return tmp_path / "s"


def shown(sweep: Path) -> str:
    """Everything that a report says of a sweep, on a terminal and in files."""
    terminal = io.StringIO()
    print_sweep(collect(sweep), sweep, Console(file=terminal))
    names = ("report.html", "summary.csv", "summary.md", "by_point.csv")
    files = [sweep / name for name in names]
    return terminal.getvalue() + "".join(p.read_text() for p in files if p.exists())


def bomb() -> str:
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    return "\n".join(levels)


UNREADABLE = {
    "a huge integer in the result": ("result.json", f'{{"metrics": {{"test/kl": 1{"0" * 400}}}}}'),
    "a huge number in the result": ("result.json", '{"metrics": {"test/kl": 1e308}}'),
    "a deep result": ("result.json", '{"metrics": ' + "[" * 100_000),
    "a nested result": ("result.json", '{"metrics": ' + "[" * 60 + "]" * 60 + "}"),
    "too many metrics": ("result.json", json.dumps({"metrics": {str(i): i for i in range(5000)}})),
    "a huge number in the bound": ("bound.json", '{"kl_by_unit": [1e308]}'),
    "a huge pid": ("status.json", f'{{"state": "running", "pid": {10**30}, "host": ""}}'),
    "a deep status": ("status.json", "[" * 100_000),
    "a state of its own": ("status.json", '{"state": "owned"}'),
    "a state that is no word": ("status.json", '{"state": [1]}'),
    "a deep config": ("config.yaml", "a: " + "[" * 5000),
    "a nested config": ("config.yaml", "a: " + "[" * 60 + "]" * 60),
    "a bomb of aliases": ("config.yaml", bomb()),
    "an endless alias": ("config.yaml", "a: &a [*a]"),
    "a huge integer in the config": ("config.yaml", f"seed: 1{'0' * 400}"),
    "a huge number in the config": ("config.yaml", "seed: 1.0e+308"),
    "a date that does not exist": ("config.yaml", "seed: 2001-99-99"),
    "an integer that is none": ("config.yaml", "seed: !!int ''"),
    "too many values": ("config.yaml", f"a: [{'1, ' * 30_000}]"),
    "a config in UTF-16": ("config.yaml", "a: 1".encode("utf-16")),
    "a config of a list": ("config.yaml", "[1]"),
}


def test_a_run_that_cannot_be_read_is_a_named_row(sweep: Path) -> None:
    for kind, (name, content) in UNREADABLE.items():
        shutil.copytree(sweep / "bad", sweep / kind)
        data = content if isinstance(content, bytes) else content.encode()
        (sweep / kind / name).write_bytes(data)
    records = {record.run_id: record for record in collect(sweep)}
    text = shown(sweep)
    for kind, (name, _) in UNREADABLE.items():
        assert records[kind].state == "unreadable", kind
        assert name in (records[kind].error or ""), kind
        assert f"{kind} (unreadable): " in text
    assert {records[name].state for name in ("a", "b", "bad")} == {"completed"}
    assert "kl_weight 30" in text  # of the others, everything


@pytest.mark.parametrize("name", ["config.yaml", "status.json", "result.json", "bound.json"])
@pytest.mark.parametrize("kind", ["FIFO", "socket", "sparse"])
def test_a_special_file_is_a_named_row_and_holds_nobody(
    sweep: Path, name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = sweep / "bad" / name
    path.unlink()
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "socket":
        monkeypatch.chdir(path.parent)
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(name)
    else:
        with path.open("wb") as file:
            file.truncate(2**40)
    (record,) = [record for record in collect(sweep) if record.run_id == "bad"]
    assert record.state == "unreadable" and name in (record.error or "")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.jsonl", '{"step": 1}\nno row\n'),
        ("metrics.jsonl", '{"step": 1, "val/kl": [[1]]}\n'),
        ("metrics.jsonl", '{"step": 1, "val/kl": {"a": 1}}\n'),
        ("metrics.jsonl", f'{{"step": 1, "note": "{"x" * ROW}"}}\n'),
        ("env.json", "no JSON"),
    ],
)
def test_a_damaged_record_on_the_side_is_left_out_with_a_line(
    sweep: Path, name: str, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    (sweep / "bad" / name).write_text(content)
    assert {record.state for record in collect(sweep)} == {"completed"}
    shown(sweep)
    (line,) = [text for text in caplog.messages if "left out" in text]
    assert " of bad: " in line and name in line


PLACES = (
    *("env.json", "metrics.jsonl", "train.log", "pictures/x-final.png", "videos/x-final.mp4"),
    *("videos/x-final.webp", "../jobs/bad.log", "../videos/.x.sha256", ".lock"),
)


def test_a_fifo_anywhere_in_a_run_is_passed_over(sweep: Path) -> None:
    for place in PLACES:
        path = sweep / "bad" / place
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        os.mkfifo(path)
    status = {"state": "running", "pid": os.getpid(), "host": socket.gethostname()}
    (sweep / "bad" / "status.json").write_text(json.dumps(status))
    assert "1 interrupted" in shown(sweep)  # since nobody holds the lock
    (sweep / "bad" / "status.json").write_text('{"state": "completed"}')
    assert "Could not be read: bad/x-final." in shown(sweep)


def test_numbers_at_the_limit_are_drawn(sweep: Path) -> None:
    for value in (float("nan"), float("inf"), 1e100, 1e-300, 1e-99, -1e100, 2**63, True, "x"):
        path = sweep / str(value)
        shutil.copytree(sweep / "bad", path)
        result = json.loads((path / "result.json").read_text())
        result["metrics"] |= dict.fromkeys(("test/kl", "test/neg_elbo", "test/neg_elbo_se"), value)
        result["metrics"] |= {"test/bits_per_dim": value, "forecast/rate": value}
        result |= {"seed": value, "wall_seconds": value}
        (path / "result.json").write_text(json.dumps(result))
        given = config()
        given["model"] |= {"kl_weight": value, "latent_dim": value}
        given["model"]["likelihood"] = {"_target_": "x.GaussianLikelihood", "scale": value}
        (path / "config.yaml").write_text(yaml.safe_dump(given))
        (path / "bound.json").write_text(json.dumps({"kl_by_unit": [value]}))
    assert {record.state for record in collect(sweep)} == {"completed"}
    shown(sweep)


def test_a_name_that_a_terminal_would_obey_is_shown_escaped(sweep: Path) -> None:
    for name in (b"bad-\xff\xfe", "bad-\x1b[2J\u202e".encode(), b"bad\n# owned"):
        path = sweep / os.fsdecode(name)
        shutil.copytree(sweep / "bad", path)
        shutil.copy(
            path / "pictures" / "reconstructions-final.png", path / "pictures" / "x-final.png"
        )
        (path / "pictures" / f"{os.fsdecode(name)}-final.png").write_text("no picture")
        (path / "config.yaml").write_text("a: 1")
    text = shown(sweep)
    assert not set("\x1b\u202e") & set(text) and "\n# owned" not in text
    assert all(shown_name in text for shown_name in ("bad-\\udcff", "bad-\\x1b", "bad\\n# owned"))


def test_hostile_text_is_text_wherever_it_is_shown(sweep: Path) -> None:
    given = config(group=HOSTILE, notes=HOSTILE)
    given["data"]["name"] = HOSTILE
    given["model"] |= {"kl_weight": HOSTILE, HOSTILE: HOSTILE, "a": "\ud800"}
    text = json.dumps(given)  # JSON is YAML, with escapes for what YAML does not hold
    (sweep / "bad" / "config.yaml").write_text(text.replace("\\ud800", "x"))
    for seed in (1, 2):  # replicates
        shutil.copytree(sweep / "bad", sweep / f"bad{seed}")
    result = json.loads((sweep / "bad" / "result.json").read_text())
    result["metrics"] |= {f"test/{HOSTILE}": 1.0, "test/\ud800": 2.0}
    result |= {"verdict": HOSTILE, "git_commit": HOSTILE}
    (sweep / "bad" / "result.json").write_text(json.dumps(result))
    failed = {"state": "failed", "type": HOSTILE, "message": HOSTILE, "where": HOSTILE}
    (sweep / "b" / "status.json").write_text(json.dumps(failed))
    text = shown(sweep)
    assert not set("\x1b\x07\u202e\r") & set(text)
    told = (sweep / "summary.md").read_text()
    lines = told.splitlines()
    # the title, and those of two groups, whose data do not compare
    marks = [line.partition(" ")[0] for line in lines if line.startswith("#")]
    assert marks == ["#", "##", "##"]
    outside = "".join(told.split("\n```")[::2])  # of what is shown as it is
    assert "\\[c\\](" in outside and "[c](" not in outside and "<e>" not in outside


@pytest.mark.slow
def test_no_cell_of_a_spreadsheet_is_a_formula(sweep: Path) -> None:
    for start in ("=1+1", "+1+1", "-1+1", "@SUM(1)", "\t=1", "\r=1"):
        given = config(notes=start)
        given["model"] |= {"kl_weight": start, f"{start}key": 1}
        (sweep / "bad" / "config.yaml").write_text(json.dumps(given))
        result = json.loads((sweep / "bad" / "result.json").read_text())
        result["metrics"] |= {"test/kl": -4.5, start: 1.0}
        (sweep / "bad" / "result.json").write_text(json.dumps(result | {"verdict": start}))
        shutil.rmtree(sweep / "bad2", ignore_errors=True)
        shutil.copytree(sweep / "bad", sweep / "bad2")
        (sweep / "bad2" / "config.yaml").write_text(json.dumps(given | {"seed": 1}))
        write_sweep(collect(sweep), sweep)
        for name in ("summary.csv", "by_point.csv"):
            cells = [c for row in csv.reader(io.StringIO((sweep / name).read_text())) for c in row]
            assert any(start.strip() in cell for cell in cells)
            for cell in cells:
                assert not cell.startswith(("=", "+", "@", "\t", "\r")), cell
                assert not cell.startswith("-") or float(cell), cell
        assert "-4.5" in (sweep / "summary.csv").read_text().split(",")


def test_escapes_leave_numbers_and_words_as_they_are() -> None:
    for value in (-1.5, "-1.5", "-1e-3", "+2", "a=b", "", None, 3, "kl-weight"):
        assert spreadsheet_cell(value) == value
    assert spreadsheet_cell("-2+3") == "'-2+3"
    assert markdown("kl_weight 0.5 (a-b)") == "kl_weight 0.5 (a-b)"
    assert markdown("a\n# b") == "a \\# b"


def test_an_error_is_printed_with_visible_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    print_error("\x1b[2J\u202e[red]x")
    assert capsys.readouterr().err == "error: \\x1b[2J\\u202e[red]x\n"
    assert main(["report", "no\x1b[2J\u202e"]) == REFUSED
    assert "no\\x1b[2J\\u202e is not a directory" in capsys.readouterr().err


def test_a_thousand_differing_keys_are_bounded_to_some_columns(sweep: Path) -> None:
    for i, name in enumerate(("a", "b", "bad")):
        given = config()
        given["model"] |= {f"key_{k}": (k + i * (1 + k % 7)) % 1000 for k in range(1000)}
        (sweep / name / "config.yaml").write_text(yaml.safe_dump(given))
    records = collect(sweep)
    assert len(swept_keys(records)) <= MOST_KEYS
    text = shown(sweep)
    assert f"the first {MOST_KEYS} are shown" in text
    assert "more keys" in (sweep / "report.html").read_text()


def test_keys_of_many_values_are_compared_a_few_times(sweep: Path) -> None:
    """The cost grows with the keys, and not with their square."""
    touched = 0

    class Counted(str):
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            nonlocal touched
            touched += 1
            return str.__eq__(self, other)

    def count(keys: int) -> int:
        nonlocal touched
        touched = 0
        records = [
            Record(
                sweep / n, n, "s", "completed", {str(k): Counted(f"{n}{k}") for k in range(keys)}
            )
            for n in ("a", "b")
        ]
        swept_keys(records)
        return touched

    assert count(2000) <= 2.5 * count(1000)


def test_short_names_are_the_shortest_that_no_other_shares() -> None:
    keys = ["model.kl_weight", "model.kl.weight", "data.weight", "a._target_", "model/net", "net"]
    assert short_names(keys) == {
        "model.kl_weight": "kl_weight",
        "model.kl.weight": "kl.weight",
        "data.weight": "data.weight",
        "a._target_": "a",
        "model/net": "model.net",
        "net": "net",
    }


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:50])


def no_picture(path: Path) -> None:
    path.write_text("no picture")


def wrong_checksum(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 5] ^= 0xFF
    path.write_bytes(data)


def too_many_pixels(path: Path, width: int = 13_379, height: int = 13_379) -> None:
    """A PNG of 179 million pixels in a few kilobytes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(height * (1 + (width + 7) // 8)), 9)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)


POSTSCRIPT = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 8 8
%%EndComments
showpage
%%EOF
"""


def postscript(path: Path) -> None:
    path.write_bytes(POSTSCRIPT)


def tiff(path: Path) -> None:
    Image.new("RGB", (8, 8)).save(path, "tiff")


DAMAGES = [torn, no_picture, wrong_checksum, too_many_pixels, postscript, tiff]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_picture_is_left_out_with_a_line(
    sweep: Path, damage: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[object] = []
    monkeypatch.setattr(subprocess, "check_call", started.append)  # by which Ghostscript is called
    monkeypatch.setattr(subprocess, "Popen", started.append)
    path = sweep / "bad" / "pictures" / "reconstructions-final.png"
    damage(path)
    with caplog.at_level(logging.WARNING):
        write_sweep(collect(sweep), sweep)
    assert (
        "Could not be read: bad/reconstructions-final.png." in (sweep / "report.html").read_text()
    )
    assert f"left out: {path} cannot be read as a picture" in caplog.text
    with Image.open(sweep / "reconstructions.png") as whole:
        assert whole.height < 2 * 8 + 2 * 8  # of two runs
    assert not started
    with pytest.raises(RunDirectoryError, match="cannot be read as a picture"):
        pictures.read_png(path)


PLAYLIST = "#EXTM3U\n#EXTINF:1,\nhttp://192.0.2.1/x.ts\n#EXT-X-ENDLIST\n"


def test_a_video_is_of_a_known_format(tmp_path: Path) -> None:
    for content in (PLAYLIST.encode(), b"ffconcat version 1.0\nfile /etc/passwd\n", b"", b"x"):
        (tmp_path / "x.mp4").write_bytes(content)
        with pytest.raises(RunDirectoryError, match="cannot be read as a video"):
            videos.read_video(tmp_path / "x.mp4")
    for damage in (no_picture, postscript, tiff):
        damage(tmp_path / "x.webp")
        with pytest.raises(RunDirectoryError, match="cannot be read as a video"):
            videos.read_video(tmp_path / "x.webp")


def test_a_video_of_another_codec_is_refused(tmp_path: Path) -> None:
    import av

    with av.open(str(tmp_path / "x.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.height = stream.width = 16
        stream.pix_fmt = "yuv420p"
        for _ in range(3):
            frame = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(RunDirectoryError, match="its codec is mpeg4, not h264"):
        videos.read_video(tmp_path / "x.mp4")


def test_a_video_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (64, 64), shade) for shade in ("red", "blue")]
    frames[0].save(
        tmp_path / "x.webp", save_all=True, append_images=frames[1:], duration=16_000_000
    )
    with pytest.raises(RunDirectoryError, match="more than 1e\\+09 bytes"):
        videos.read_video(tmp_path / "x.webp")


def test_a_damaged_video_does_not_stop_the_report(sweep: Path) -> None:
    for name in ("a", "b", "bad"):
        (sweep / name / "videos").mkdir()
        for suffix in (".mp4", ".webp"):
            (sweep / name / "videos" / f"walk-final{suffix}").write_text(PLAYLIST)
    write_sweep(collect(sweep), sweep)


@pytest.mark.parametrize("tag", ["!!int", "!!float", "!!str", "!", "!!map", "!x"])
def test_a_tag_is_refused(tag: str) -> None:
    """One before 1:1:1:... makes YAML take time with the square of the length."""
    with pytest.raises(ValueError, match="says a kind: write the value alone"):
        received_yaml.parse(f"a: {tag} {'{}' if tag == '!!map' else '1'}")


@pytest.mark.parametrize("text", [bomb(), "a: &x 1\nb: *x", "a: &a [*a]", "<<: *x"])
def test_an_alias_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"repeats a value|undefined alias"):
        received_yaml.parse(text)


def test_a_number_that_takes_minutes_to_read_is_refused() -> None:
    with pytest.raises(ValueError, match="too long"):
        received_yaml.parse("bomb: " + "1:" * 200_000 + "1")
    assert received_yaml.parse(f"text: {'word ' * 100}\nnumber: 1:30") == {
        "text": ("word " * 100).strip(),
        "number": 90,
    }


def test_jobs_that_never_started_are_plain_text(tmp_path: Path) -> None:
    job = Job("x\x1b\udcff", (), {"model.kl_weight": "\x1b"}, 0, {"group": "\x1b\u202e", "seed": 1})
    Manifest("s", (), (job,)).write(tmp_path)
    content = json.loads((tmp_path / FILE_NAME).read_text())
    content["jobs"][0]["run_id"] = "x\x1b"
    (tmp_path / FILE_NAME).write_text(json.dumps(content | {"command": [1]}))
    text = shown(tmp_path)
    assert "\x1b" not in text and "x\\x1b" in text


SHADOWED = ("rich", "yaml", "numpy", "PIL", "av", "matplotlib", "json", "argparse", "typing")
OBEYED = ("cffi", "olefile", "defusedxml", "msvcrt", "sitecustomize", "usercustomize")


def reported_from_within(sweep: Path, *start: str) -> subprocess.CompletedProcess[str]:
    """Enter the directory, and make its report with the Python arguments `start`."""
    return subprocess.run(
        [sys.executable, *start, "report", "."],
        cwd=sweep,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("start", [["-m", "genlab"], ["-c", "CONSOLE"]])
def test_nothing_in_the_working_directory_is_imported_or_obeyed(
    sweep: Path, tmp_path: Path, start: list[str]
) -> None:
    """A stranger's directory is entered, and the report made of `.`."""
    owned = tmp_path / "owned"
    for name in (*SHADOWED, *OBEYED):
        (sweep / f"{name}.py").write_text(f"open({str(owned)!r}, 'a').write({name!r})\n")
    (sweep / "matplotlibrc").write_text("text.usetex: true\nbackend: module://owned\nowned: 1\n")
    # the console script has the folder of its own at the start of the path
    script = (
        f"import sys; sys.path[0] = {str(ROOT)!r}; from genlab.__main__ import main;"
        "sys.argv[0] = 'genlab'; sys.exit(main())"
    )
    arguments = [script if word == "CONSOLE" else word for word in start]
    done = reported_from_within(sweep, *arguments)
    assert done.returncode == DONE, done.stderr
    assert not owned.exists(), owned.read_text()
    assert "owned" not in done.stderr
    assert (sweep / "rate_distortion.png").exists()


def test_a_matplotlibrc_that_never_ends_is_not_read(sweep: Path) -> None:
    os.mkfifo(sweep / "matplotlibrc")
    done = reported_from_within(sweep, "-P", "-m", "genlab")
    assert done.returncode == DONE, done.stderr


def test_a_run_has_so_many_metrics_at_most(sweep: Path) -> None:
    with RunDirectory(sweep / "bad") as run:
        run.write_result({"metrics": {f"test/{i}": 1.0 for i in range(MOST_METRICS)}})
    assert [record.state for record in collect(sweep)] == ["completed"] * 3
    shown(sweep)


def test_the_pixels_of_all_pictures_are_bounded(
    sweep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture of one colour has a few kilobytes, and takes a second to be made smaller."""
    for name in ("a", "b", "bad"):
        for kind in ("reconstructions", *range(60)):
            too_many_pixels(sweep / name / "pictures" / f"{kind}-final.png", 300, 300)
    for module in ("media", "sweep"):
        monkeypatch.setattr(f"genlab.report.{module}.PIXEL_BUDGET", 2**20, raising=False)
    decoded: list[Path] = []
    read = pictures.read_png
    monkeypatch.setattr(
        pictures, "read_png", lambda path, *a: decoded.append(path) or read(path, *a)
    )
    text = shown(sweep)
    assert 5 < len(decoded) < 20
    assert "reconstructions" in text
    assert all(len(record.files("pictures/*-final.png")) == MOST_FILES for record in collect(sweep))


def test_a_comparison_of_many_sweeps_has_a_name_that_a_file_system_takes(tmp_path: Path) -> None:
    sweeps = [tmp_path / f"{i}{'x' * 40}" for i in range(12)]
    for i, path in enumerate(sweeps):
        write(path / "run", config(group=str(i)))
    assert main(["report", *map(str, sweeps)]) == DONE
    (made,) = tmp_path.glob("*-beside-*")
    assert made.name.startswith(f"{sweeps[0].name}-beside-{sweeps[1].name}")
    assert main(["report", *map(str, sweeps[:11])]) == DONE
    assert len(list(tmp_path.glob("*-beside-*"))) == 2


def test_what_the_log_says_on_a_terminal_is_escaped(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = (
        "import logging, sys\n"
        "from genlab import cli\n"
        "from genlab.report import videos\n"
        "def warn(*_): logging.getLogger('genlab.x').warning('odd %s', '\\x1b[2Jx'); return []\n"
        "import genlab.report.sweep as sweep\n"
        "sweep.write_videos = warn\n"
        "sys.exit(cli.main(['report', sys.argv[1]]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(sweep)], capture_output=True, text=True, check=True
    )
    assert "odd \\x1b[2Jx" in done.stderr and "\x1b" not in done.stderr
