"""Reading a received run directory changes nothing elsewhere, and starts nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def attacked(folder: Path, *options: str) -> None:
    """Read mutants in a process of its own; what fails is shown with what makes it again."""
    done = subprocess.run(
        [sys.executable, "tests/mutants.py", "--base", str(folder), *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, "\n" + done.stdout[-20000:] + done.stderr[-3000:]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs that are trained once for all mutants."""
    return tmp_path_factory.mktemp("attack")


@pytest.mark.slow
def test_known_attacks_do_nothing(base: Path) -> None:
    attacked(base, "--known", "1", "--count", "60")


@pytest.mark.slow
@pytest.mark.parametrize("first", [60, 560, 1060, 1560])
def test_random_attacks_do_nothing(base: Path, first: int) -> None:
    attacked(base, "--first", str(first), "--count", "500")


WATCHED = """
import os, sys
from pathlib import Path
from attack.sandbox import Sandbox

base = Path(sys.argv[1])
private = base / "private"
sandbox = Sandbox(base / "received", private)
os.chdir(base / "received")
with sandbox.watching([base / "out"]) as seen:
    try:
        exec(compile(sys.argv[2], str(base / "bad.py"), "exec"))
    except OSError:
        pass
    except BaseException as error:
        seen.append(f"ended with {error!r}")
print("\\n".join(seen))
"""

BAD: dict[str, tuple[str, str]] = {
    "write": ("open(private / 'x', 'w')", "open of .*/private/x for writing"),
    "append": ("open(private / 'notes', 'ab')", "open of .*/private/notes for writing"),
    "low-level write": ("os.open(private / 'x', os.O_CREAT | os.O_RDWR)", "for writing"),
    "write through a link": ("open('link', 'w')", "open of link for writing"),
    "write below a link": ("open('folder/x', 'w')", "open of folder/x for writing"),
    "write beside": ("Path('x').write_text('x')", "open of x for writing"),
    "read": ("open('link').read()", "open of link, which is private"),
    "list": ("os.listdir(private)", "os.listdir of .*private"),
    "walk": ("[*os.walk(private)]", "os.scandir of .*private"),
    "remove": ("os.remove(private / 'notes')", "os.remove of .*/notes"),
    "rename from": ("os.rename(private / 'notes', base / 'out' / 'x')", "os.rename of .*/notes"),
    "rename to": ("os.rename(base / 'out' / 'old', private / 'x')", "os.rename of .*private/x"),
    "rmdir": ("os.rmdir(private / 'empty')", "os.rmdir of .*empty"),
    "mkdir": ("(private / 'x').mkdir()", "os.mkdir of .*private/x"),
    "link": ("os.link(base / 'out' / 'old', private / 'x')", "os.link of .*private/x"),
    "symlink": ("os.symlink('x', private / 'x')", "os.symlink of .*private/x"),
    "chmod": ("os.chmod(private / 'notes', 0)", "os.chmod of .*notes"),
    "truncate": ("os.truncate(private / 'notes', 0)", "os.truncate of .*notes"),
    "utime": ("os.utime(private / 'notes')", "os.utime of .*notes"),
    "rmtree": ("import shutil; shutil.rmtree(private)", "shutil.rmtree of .*private"),
    "remove by descriptor": (
        "os.remove('notes', dir_fd=os.open('/proc/self/cwd/../private/.', os.O_PATH))",
        "private",
    ),
    "process": ("import subprocess; subprocess.run(['true'])", "subprocess.Popen 'true'"),
    "system": ("os.system('true')", "os.system b'true'"),
    "exec": ("os.execv('/bin/true', ['true'])", "os.exec"),
    "spawn": ("os.posix_spawn('/bin/true', ['true'], {})", "os.posix_spawn"),
    "fork": ("os.fork()", "os.fork"),
    "signal": ("os.kill(os.getppid(), 0) or os.kill(os.getppid(), 23)", "os.kill"),
    "socket": ("import socket; socket.socket()", "socket.__new__"),
    "lookup": ("import socket; socket.getaddrinfo('localhost', 1)", "socket.getaddrinfo"),
    "url": ("import urllib.request as r; r.urlopen('http://192.0.2.1')", "urllib.Request"),
    "library": ("import ctypes; ctypes.CDLL('libnothing.so')", "ctypes.dlopen 'libnothing.so'"),
    "import": ("sys.path.insert(0, ''); import planted", "planted"),
    "code": ("exec(compile('1', 'planted.py', 'exec'))", "compile of planted.py"),
    "evaluation": ("eval('\"planted_by_the_attack\"')", "compile of .*planted_by_the_attack"),
    "pickle": (
        "import pickle; pickle.loads(b'cos\\nsystem\\n.')",
        "pickle.find_class 'os'",
    ),
    "question": ("input()", "builtins.input"),
}


def watched(base: Path, code: str) -> str:
    for name in ("received", "private/empty", "out"):
        (base / name).mkdir(parents=True)
    (base / "private" / "notes").write_text("private")
    (base / "out" / "old").write_text("old")
    (base / "received" / "planted.py").write_text("1")
    (base / "received" / "link").symlink_to(base / "private" / "notes")
    (base / "received" / "folder").symlink_to(base / "private")
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, str(base), code],
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests"), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
        check=True,
    )
    assert sorted(path.name for path in (base / "private").iterdir()) == ["empty", "notes"]
    assert (base / "private" / "notes").read_text() == "private"
    return done.stdout.strip()


@pytest.mark.parametrize("kind", BAD)
def test_the_sandbox_notices_and_prevents(tmp_path: Path, kind: str) -> None:
    code, seen = BAD[kind]
    first, *_ = watched(tmp_path, code).splitlines()
    assert re.search(seen, first)


@pytest.mark.parametrize(
    "code",
    [
        "open('planted.py').read()",
        "open(base / 'out' / 'x', 'w'); os.replace(base / 'out' / 'x', base / 'out' / 'y')",
        "(base / 'out' / 'a' / 'b').mkdir(parents=True); os.rmdir(base / 'out' / 'a' / 'b')",
        "import shutil; shutil.rmtree(base / 'out')",
        "base.mkdir(exist_ok=True); os.kill(os.getpid(), 0); open(os.devnull, 'w')",
        "import socket; socket.gethostname(); compile('1', '<string>', 'exec')",
    ],
)
def test_the_sandbox_leaves_a_good_reader_alone(tmp_path: Path, code: str) -> None:
    assert watched(tmp_path, code) == ""
