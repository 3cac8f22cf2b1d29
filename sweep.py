"""Run a study: a question, the settings that answer it, and seeds as replicates.

    python sweep.py sweep=kl_weight                        a study of conf/sweep, and its answer
    python sweep.py sweep=kl_weight dry=true               only its jobs, and what they would cost
    python sweep.py sweep=kl_weight model.kl_weight=0,30   other values of its key
    python sweep.py sweep=kl_weight seed=0,1,2,3           other seeds
    python sweep.py sweep=kl_weight launcher=joblib        started in another way

Completed jobs are not run again; interrupted ones are resumed.
"""

import sys
from typing import Any

from genlab.training import interrupts


def main(cfg: Any) -> Any:
    """Run one job of a study."""
    from genlab.training import run  # here, since --help and launchers do not need torch

    return run.train(cfg)


def start() -> None:
    """Add the overrides of the named study to the command line, and run Hydra."""
    import hydra

    import genlab.sweeps  # noqa: F401  (names what a multirun is called)
    from genlab.config import compose
    from genlab.sweeps import request

    sys.argv[1:] = request.expand(sys.argv[1:])
    hydra.main(str(compose.directory()), "sweep", "1.3")(main)()


if __name__ == "__main__":
    interrupts.end_at_once()  # a signal may come while the rest is imported

    from genlab.training import terminal

    terminal.command_line(start)
