"""Kill a training at random moments: its result equals that of an undisturbed run.

    python tests/kills.py                            50 kills of a VAE, 50 of a DDPM (make kills)
    python tests/kills.py --kills 10 --seed 1 --model vae

A checkpoint is written after every step, so that many kills come in the middle of writing one, and
of every fifth kill the newest checkpoint is torn or altered as well. Both models average their
weights. Each time the same command is given again; a run that comes to its end is compared bit for
bit with an undisturbed one, and the next one is begun.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from interruption import MODELS, assert_same, empty, finish, flip, start, truncate

from genlab.errors import RunDirectoryError
from genlab.runs.files import before
from genlab.runs.run import Run, find_runs
from genlab.training import weights

EPOCHS = 20
#: Every step writes a checkpoint; the undisturbed run writes none but at the ends of epochs.
OFTEN = ("checkpoint_every_n_steps=1",)
LONG = (f"trainer.max_epochs={EPOCHS}",)
#: A kill comes while a run goes on, or in the time in which an undisturbed one does so many epochs.
STARTING_SECONDS, WINDOW_EPOCHS = 0.6, 2
DAMAGES = (truncate, flip, empty)


def both_are_whole(last: Path) -> bool:
    try:
        weights.read(last)
        weights.read(before(last))
    except RunDirectoryError:
        return False
    return True


def killed(model: str, runs_dir: Path, delay: float) -> Run | None:
    """Start or go on, and kill so long after the training has begun; None if it ended before."""
    process = start(model, runs_dir, *LONG, *OFTEN)
    began = None
    while process.poll() is None:
        runs = find_runs(runs_dir)
        if began is None and runs and runs[0].status.get("pid") == process.pid:
            began = time.monotonic()
        if began is not None and time.monotonic() - began > delay:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.001)
    output, _ = process.communicate()
    if process.returncode == 0:
        return None
    assert process.returncode == -signal.SIGKILL, output
    return find_runs(runs_dir)[0]


def torment(model: str, kills: int, seed: int, folder: Path) -> Counter[str]:
    """Count what happened; raise AssertionError if a run differs from the undisturbed one."""
    chance = random.Random(f"{seed} {model}")
    reference = finish(model, folder / "undisturbed", *LONG)
    assert reference.result is not None
    window = STARTING_SECONDS + reference.result["wall_seconds"] * WINDOW_EPOCHS / EPOCHS
    seen: Counter[str] = Counter()
    while seen["kills"] < kills:
        seen["runs"] += 1
        runs_dir = folder / f"run-{seen['runs']}"
        while seen["kills"] < kills:
            run = killed(model, runs_dir, chance.uniform(0, window))
            if run is None:
                break
            seen["kills"] += 1
            seen["in the middle of a checkpoint"] += any(run.checkpoints.glob(".*.tmp"))
            last = run.checkpoints / "last.ckpt"
            if seen["kills"] % 5 == 0 and not run.is_completed and both_are_whole(last):
                damage = chance.choice(DAMAGES)
                damage(last)
                seen[f"checkpoints damaged thereafter ({damage.__name__})"] += 1
            steps = max((row["step"] for row in run.metrics()), default=0)
            print(f"{model}: kill {seen['kills']}, run {seen['runs']}, step {steps}", flush=True)
        assert_same(finish(model, runs_dir, *LONG, *OFTEN), reference)
        seen["runs that ended bit for bit as the undisturbed one"] += 1
    return seen


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50, help="of each model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", choices=MODELS, nargs="+", default=list(MODELS))
    options = parser.parse_args()
    for model in options.model:
        with tempfile.TemporaryDirectory() as folder:
            seen = torment(model, options.kills, options.seed, Path(folder))
        print(f"{model}: " + "; ".join(f"{count} {what}" for what, count in seen.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
