"""What happens in the process of one job.

    python -m genlab.sweeps.job MANIFEST RUN_ID

runs one job of a sweep by itself; so Lightning starts the further processes of a job on several
devices, whose overrides of Hydra's own part are of no use here.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import setup_globals
from omegaconf import DictConfig, OmegaConf

import genlab.sweeps  # noqa: F401  (names what references to the sweep's group mean)
from genlab.config.compose import command_line
from genlab.errors import REFUSED, GenlabError, RunDirectoryError
from genlab.runs.manifest import Manifest
from genlab.runs.points import point_of


@dataclass(frozen=True)
class Examined:
    """What the launcher, which has no torch, asks of a job's config.

    Attributes:
        refusal: why it is none, in a sentence; the rest is empty then.
        path: its run directory.
        point, seed: as in the manifest.
        is_wanted: whether it is to be run even if it was completed.
        accelerator: of its trainer.
        processes: how many it starts itself; each has a GPU of its own, if it has any.
    """

    refusal: str | None = None
    path: str = ""
    point: Mapping[str, Any] | None = None
    seed: int = 0
    is_wanted: bool = False
    accelerator: str = "auto"
    processes: int = 1


def examine(configs: Sequence[Mapping[str, Any]], swept: Sequence[str], answer: Connection) -> None:
    """Send what is to be known of every config, then the number of GPUs."""
    import torch

    with Path(os.devnull).open("w") as silence, redirect_stdout(silence):
        found = [_examine(config, swept) for config in configs]
    needs_gpus = any(one.accelerator != "cpu" for one in found)
    answer.send((found, torch.cuda.device_count() if needs_gpus else 0))


def _examine(config: Mapping[str, Any], swept: Sequence[str]) -> Examined:
    from genlab.training import run

    cfg = _use(config)
    overrides = list(config["hydra"]["overrides"]["task"])
    try:
        planned = run.plan(cfg, overrides)
        run.assemble(planned)
    except GenlabError as error:
        return Examined(refusal=str(error))
    trainer = planned.run_config.trainer
    return Examined(
        path=str(planned.path),
        point=point_of(planned.config, config["hydra"]["runtime"]["choices"], swept),
        seed=planned.run_config.seed,
        is_wanted=planned.run_config.overwrite,
        accelerator=str(trainer.get("accelerator", "auto")),
        processes=planned.processes,
    )


def start(
    manifest: Path,
    run_id: str,
    config: Mapping[str, Any],
    log: Path,
    environment: Mapping[str, str],
    threads: int,
) -> None:
    """The whole life of a job's process, which a forkserver has made.

    It has a session of its own, so that Ctrl-C at the terminal reaches the launcher alone, and
    ends, with a checkpoint, when the launcher is no more.
    """
    os.setsid()
    _write_to(log)
    # Lightning starts further processes of a job as it finds this one to be started.
    sys.modules["__main__"] = sys.modules[__name__]
    sys.argv = [__file__, str(manifest.absolute()), run_id]
    os.environ.update(environment)
    threading.Thread(target=_end_with_the_launcher, daemon=True).start()
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    sys.exit(_train(config, threads))


def _write_to(log: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    sys.stdout = os.fdopen(1, "w", buffering=1, encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, encoding="utf-8", closefd=False)


def _end_with_the_launcher() -> None:
    launcher = multiprocessing.parent_process()
    if launcher is not None:
        launcher.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _train(config: Mapping[str, Any], threads: int | None) -> int:
    import torch

    from genlab.training import run

    if threads is not None:
        torch.set_num_threads(threads)
    cfg = _use(config)
    outcome = run.train(cfg)
    return outcome.exit_code


def _use(config: Mapping[str, Any]) -> DictConfig:
    """The config as a job gets it from Hydra, and Hydra's own part where it is looked up."""
    setup_globals()
    whole = OmegaConf.create(dict(config))
    typed = OmegaConf.structured(HydraConf, flags={"struct": False})
    whole.hydra = OmegaConf.merge(typed, whole.hydra)
    HydraConfig.instance().set_config(whole)
    cfg = OmegaConf.create(dict(config))
    del cfg["hydra"]
    return cfg


def main(arguments: Sequence[str]) -> int:
    """Run one job of a manifest in this process; returns its exit code."""
    if len(arguments) < 2:
        print("usage: python -m genlab.sweeps.job MANIFEST RUN_ID", file=sys.stderr)
        return REFUSED
    path, run_id = Path(arguments[0]), arguments[1]
    manifest = Manifest.read(path.parent)
    for job in () if manifest is None else manifest.jobs:
        if job.run_id == run_id:
            return _train(job.config, None)
    raise RunDirectoryError(f"{path} has no job {run_id}: start the sweep again")


if __name__ == "__main__":
    command_line(lambda: sys.exit(main(sys.argv[1:])))
