"""Run one job of a sweep in a process of its own.

    python -m genlab.sweeps.job MANIFEST RUN_ID

runs one job of a manifest on its own. Lightning starts the other processes of a job on several
devices in this way, since their overrides of Hydra's own part cannot be used here.
"""

from __future__ import annotations

import hashlib
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
from genlab.errors import REFUSED, GenlabError, RunDirectoryError
from genlab.runs.files import sha256
from genlab.runs.manifest import Manifest, point_in_sweep
from genlab.runs.reading import MANIFEST, read_bytes
from genlab.runs.run import Run
from genlab.training import interrupts
from genlab.training.terminal import command_line, import_from_here

#: Where the launcher tells a job's further processes which manifest they belong to.
_MANIFEST = "GENLAB_MANIFEST_SHA256"
#: Set for the forkserver alone: programs that a job starts are run as from a terminal.
SAFE_PATH = "PYTHONSAFEPATH"


@dataclass(frozen=True)
class Examined:
    """The facts of a job's config that the launcher, which has no torch, needs.

    Attributes:
        refusal: why the config is refused, in a sentence; then the other fields are empty.
        path: its run directory.
        point, seed: as in the manifest.
        is_wanted: whether to run it even if it was completed.
        accelerator: of its trainer.
        processes: number that it starts itself, each with its own GPU, if there are any.
    """

    refusal: str | None = None
    path: str = ""
    point: Mapping[str, Any] | None = None
    seed: int = 0
    is_wanted: bool = False
    accelerator: str = "auto"
    processes: int = 1


def examine(configs: Sequence[Mapping[str, Any]], swept: Sequence[str], answer: Connection) -> None:
    """Send an `Examined` for every config, then the number of GPUs."""
    import torch

    with Path(os.devnull).open("w") as silence, redirect_stdout(silence):
        found = [_examine(config, swept) for config in configs]
    needs_gpus = any(one.accelerator != "cpu" for one in found)
    answer.send((found, torch.cuda.device_count() if needs_gpus else 0))


def _examine(config: Mapping[str, Any], swept: Sequence[str]) -> Examined:
    from genlab.training import planning
    from genlab.training.data_record import refuse_changed_since

    cfg = _use(config)
    overrides = list(config["hydra"]["overrides"]["task"])
    try:
        planned = planning.plan(cfg, overrides)
        planning.assemble(planned)
        if not planned.run_config.overwrite and Run(planned.path).is_completed:
            refuse_changed_since(planned)
    except GenlabError as error:
        return Examined(refusal=str(error))
    trainer = planned.run_config.trainer
    return Examined(
        path=str(planned.path),
        point=point_in_sweep(planned.config, config["hydra"]["runtime"]["choices"], swept),
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
    """Run a job to its end in the process that a forkserver created for it.

    The process has its own session, so that Ctrl-C at the terminal reaches only the launcher. It
    ends, with a checkpoint, when the launcher has ended.
    """
    os.setsid()
    _write_to(log)
    # Lightning starts the other processes of a job with the command line of this one.
    sys.modules["__main__"] = sys.modules[__name__]
    sys.argv = [__file__, str(manifest.absolute()), run_id]
    os.environ.pop(SAFE_PATH, None)
    os.environ.update({**environment, _MANIFEST: sha256(manifest)})
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
    """Return the config as Hydra passes it to a job, and set Hydra's global config."""
    setup_globals()
    complete = OmegaConf.create(dict(config))
    typed = OmegaConf.structured(HydraConf, flags={"struct": False})
    complete.hydra = OmegaConf.merge(typed, complete.hydra)
    HydraConfig.instance().set_config(complete)
    cfg = OmegaConf.create(dict(config))
    del cfg["hydra"]
    return cfg


def run_job(arguments: Sequence[str]) -> int:
    """Run one job of a manifest in this process, and return its exit code.

    Raises:
        RunDirectoryError: the manifest is not the one from which the launcher started this job; it
            may come from a stranger.
    """
    if len(arguments) < 2:
        print("usage: python -m genlab.sweeps.job MANIFEST RUN_ID", file=sys.stderr)
        return REFUSED
    path, run_id = Path(arguments[0]), arguments[1]
    expected = os.environ.get(_MANIFEST)
    if expected is None or expected != hashlib.sha256(read_bytes(path, MANIFEST)).hexdigest():
        raise RunDirectoryError(
            f"{path}: a job is started by the launcher of its sweep alone; run the command of the "
            "sweep again"
        )
    manifest = Manifest.read(path.parent)
    for job in () if manifest is None else manifest.jobs:
        if job.run_id == run_id:
            return _train(job.config, None)
    raise RunDirectoryError(f"{path} has no job {run_id}: start the sweep again")


if __name__ == "__main__":
    interrupts.end_at_once()
    import_from_here()
    sys.exit(command_line(lambda: run_job(sys.argv[1:])))
