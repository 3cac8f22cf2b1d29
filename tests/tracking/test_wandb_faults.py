"""W&B's own process hanging, killed or not starting; no word to the network offline; its key."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import wandb
from wandb.sdk.lib.service import service_process
from wandb_stub import KEY, WandbStub

from genlab.errors import ConfigError
from genlab.tracking import wandb as tracking
from genlab.tracking.account import key_is_configured
from genlab.tracking.files import logged_rows
from genlab.tracking.loggers import TrackedRun
from genlab.tracking.wandb import WandbLogger

#: Logs one row to W&B in the directory of the first argument; kills its process after `kill`.
SCRIPT = """
import os, signal, sys
from pathlib import Path
from genlab.tracking.loggers import TrackedRun
from genlab.tracking.wandb import WandbLogger
logger = WandbLogger()
logger.begin(TrackedRun(Path(sys.argv[1]), "the-run", "the-group", "name", [], None, {}))
logger.log_metrics({"train/loss": 1.0}, 1)
for stat in Path("/proc").glob("[0-9]*/stat"):
    name, _, rest = stat.read_text().partition("(")[2].rpartition(")")
    if "kill" in sys.argv and name == "wandb-core" and int(rest.split()[1]) == os.getpid():
        os.kill(int(stat.parent.name), signal.SIGKILL)
logger.close(0)
print(logger.sentence)
"""


@pytest.fixture(autouse=True)
def of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave no client behind; use no key, mode or settings of this machine; wait shortly."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_SILENT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "true")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    wandb.teardown()
    yield
    with contextlib.suppress(Exception, SystemExit):
        wandb.teardown()


def services() -> list[int]:
    """The pids of W&B's own processes that this one has started, zombies left out."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, _, rest = stat.read_text().partition("(")[2].rpartition(")")
            state, parent = rest.split()[:2]
            if name == "wandb-core" and int(parent) == os.getpid() and state != "Z":
                found.append(int(stat.parent.name))
    return found


def opened(path: Path) -> WandbLogger:
    logger = WandbLogger()
    logger.begin(TrackedRun(path, "the-run", "the-group", "the name", [], None, {}))
    return logger


def log_one_row(path: Path, *words: str, **variables: str) -> str:
    """Let a process of its own log a row; return its output."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, path, *words],
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
    )
    return done.stdout


@pytest.mark.slow
def test_pandas_is_whole_before_the_thread_of_wandb_logs(tmp_path: Path) -> None:
    """W&B's client imports it late, while the main thread may be drawing with Altair."""
    before, begin, after = SCRIPT.partition('"name", [], None, {}))\n')
    looked = 'print("Timestamp" in dir(sys.modules.get("pandas")))\n'
    done = subprocess.run(
        [sys.executable, "-c", before + begin + looked + after, tmp_path],
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines()[0] == "True"
    assert len(logged_rows(tmp_path, "the-run")) == 1


MODES = [{}, {"WANDB_MODE": ""}, {"WANDB_MODE": "auto"}, {"WANDB_MODE": "offline"}]


@pytest.mark.parametrize("variables", MODES, ids=str)
@pytest.mark.slow
def test_offline_no_connection_is_attempted(tmp_path: Path, variables: dict[str, str]) -> None:
    """Every client that honours the variables of a proxy, as all of W&B's do, would call it."""
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        address = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        proxies = {f"{scheme}_PROXY": address for scheme in ("HTTP", "HTTPS", "ALL")}
        output = log_one_row(tmp_path, **proxies, **variables)
        assert "W&B is offline" in output
        proxy.setblocking(False)
        with pytest.raises(BlockingIOError):
            proxy.accept()
    assert len(logged_rows(tmp_path, "the-run")) == 1


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="no strace here")
@pytest.mark.parametrize("variables", [MODES[0], MODES[-1]], ids=str)
def test_offline_no_name_is_resolved_and_no_packet_sent(
    tmp_path: Path, variables: dict[str, str]
) -> None:
    calls = tmp_path / "calls"
    command = ["strace", "-f", "-o", calls, "-e", "trace=connect,sendto,sendmsg,sendmmsg"]
    subprocess.run(
        [*command, sys.executable, "-c", SCRIPT, tmp_path / "run"],
        env={**os.environ, **variables},
        check=True,
        capture_output=True,
    )
    lines = calls.read_text().splitlines()
    assert any("AF_UNIX" in line for line in lines)  # to W&B's own process
    assert not [line for line in lines if "sa_family=AF_INET" in line and "NETLINK" not in line]


def test_after_a_login_the_run_is_online(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Path(sys.executable).with_name("wandb")
    with WandbStub() as server:
        assert not key_is_configured()
        wandb.teardown()
        subprocess.run([client, "login", "--host", server.url, KEY], check=True)
        assert KEY in (tmp_path / "netrc").read_text()
        logger = opened(tmp_path / "run")
        logger.log_metrics({"train/loss": 1.0}, 1)
        logger.close(0)
        assert logger.mode == "online"
        assert len(server.runs["the-run"].history) == 1
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:1")
    assert not key_is_configured()  # the key is of another server


def test_a_key_that_wandb_refuses_leaves_the_run_in_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "short-secret")
    with pytest.raises(ConfigError, match="W&B refuses the configured key"):
        key_is_configured()
    opened(tmp_path).close(0)
    assert "kept in files" in caplog.text
    assert "secret" not in caplog.text


def test_online_without_a_key_asks_nothing_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    logger = opened(tmp_path)
    logger.close(0)
    assert logger.mode == "offline"
    assert "W&B has no key" in caplog.text


def test_a_mode_that_wandb_does_not_know_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_MODE", "onlin")
    opened(tmp_path).close(0)
    (message,) = caplog.messages
    assert "left out" in message and "onlin" in message


@pytest.mark.slow
def test_a_process_that_hangs_holds_no_training_and_is_gone_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    logger = opened(tmp_path / "first")
    (service,) = services()
    os.kill(service, signal.SIGSTOP)
    for step in range(2000):
        logger.log_metrics({f"train/{i}": 0.5 for i in range(40)}, step)
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "1")
    monkeypatch.setattr(tracking, "MARGIN", 1.0)
    logger.close(0)
    assert "no answer" in caplog.text
    assert services() == []
    monkeypatch.undo()
    second = opened(tmp_path / "second")
    second.log_metrics({"train/loss": 1.0}, 1)
    second.close(0)
    assert len(logged_rows(tmp_path / "second", "the-run")) == 1


@pytest.mark.slow
def test_a_process_that_hangs_is_given_up_in_mid_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    logger = opened(tmp_path)
    (service,) = services()
    os.kill(service, signal.SIGSTOP)
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "0.1")
    monkeypatch.setattr(tracking, "MARGIN", 1.0)
    step = 0
    while logger.run is not None:
        step += 1
        logger.log_metrics({f"train/{i}": 0.5 for i in range(40)}, step)
    assert services() == []
    assert [m for m in caplog.messages if "left out" in m]
    logger.log_metrics({"train/loss": 0.5}, step + 1)
    logger.close(0)
    assert logger.sentence.startswith("W&B is offline (up to where W&B was left out)")
    assert wandb.run is None  # else the next run of this process would find W&B in use


@pytest.mark.slow
def test_a_process_that_was_killed_costs_one_sentence(tmp_path: Path) -> None:
    output = log_one_row(tmp_path, "kill")
    assert "Traceback" not in output
    first, last = [line for line in output.splitlines() if not line.startswith("waiting")]
    assert first.startswith("W&B")
    assert last.startswith("W&B is offline")


@pytest.mark.parametrize(
    ("variable", "value", "right"),
    [
        ("WANDB_MODE", "nonsense", "give one of auto, online, offline"),
        ("WANDB_INIT_TIMEOUT", "soon", "give a number of seconds"),
        ("WANDB_FINISH_TIMEOUT", "late", "give a number of seconds"),
    ],
)
def test_a_variable_that_says_nothing_costs_one_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    variable: str,
    value: str,
    right: str,
) -> None:
    monkeypatch.setenv(variable, value)
    logger = opened(tmp_path / "run")
    logger.log_metrics({"train/loss": 1.0}, 1)
    logger.close(0)
    (told,) = [m for m in caplog.messages if "left out" in m]
    assert f"({variable}={value}: {right}" in told
    assert logger.sentence == "W&B is left out of this run"


@pytest.mark.parametrize("program", ["exit 1", "while true; do sleep 0.1; done"])
def test_a_process_that_does_not_start_leaves_wandb_out(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    program: str,
) -> None:
    core = tmp_path / "wandb-core"
    core.write_text(f"#!/bin/sh\n{program}\n")
    core.chmod(0o700)
    monkeypatch.setattr(service_process, "get_core_path", lambda: str(core))
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "0.5")
    monkeypatch.setattr(tracking, "MARGIN", 0.5)
    logger = opened(tmp_path / "run")
    logger.log_metrics({"train/loss": 1.0}, 1)
    logger.close(0)
    assert [m for m in caplog.messages if m.startswith("W&B is left out")]
    assert services() == []


def test_a_machine_without_threads_leaves_wandb_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(self: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("threading.Thread.start", refuse)
    logger = opened(tmp_path)
    logger.log_metrics({"train/loss": 1.0}, 1)
    logger.close(0)
    (message,) = caplog.messages
    assert "can't start new thread" in message


def test_nothing_of_wandb_is_left_after_the_last_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that stalls would hold W&B's process, and by it this one, beyond its last line."""
    left: list[list[int]] = []

    class Watch(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "has not got all" in record.getMessage():
                left.append(services())

    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "1")
    watch = Watch()
    logging.getLogger("genlab.tracking").addHandler(watch)
    with WandbStub() as server:
        for name, value in server.variables.items():
            monkeypatch.setenv(name, value)
        logger = opened(tmp_path / "stalled")
        assert services()
        server.behaviour = "stall"
        logger.log_metrics({"train/loss": 1.0}, 1)
        logger.close(0)
        assert left == [[]]
        server.behaviour = "answer"
        logger = opened(tmp_path / "answered")
        logger.close(0)
        assert services() == []
    logging.getLogger("genlab.tracking").removeHandler(watch)
