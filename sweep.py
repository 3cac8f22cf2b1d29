"""Run a study: a question, the knobs that answer it, and seeds as replicates.

    python sweep.py sweep=kl_weight                        a study of conf/sweep, and its answer
    python sweep.py sweep=kl_weight dry=true               only its jobs, and what they would cost
    python sweep.py sweep=kl_weight model.kl_weight=0,30   other values of its knob
    python sweep.py sweep=kl_weight seed=0,1,2,3           other seeds
    python sweep.py sweep=kl_weight launcher=joblib        started in another way

What is completed is not done again; an interrupted job goes on where it was.
"""

import sys

import hydra
from omegaconf import DictConfig

import genlab.sweeps  # noqa: F401  (names what a multirun is called)
from genlab.config import compose as composition
from genlab.sweeps import request
from genlab.training.outcome import Outcome


@hydra.main(version_base="1.3", config_path=str(composition.directory()), config_name="sweep")
def main(cfg: DictConfig) -> Outcome:
    from genlab.training import run  # here, since --help and a launcher have no use for torch

    return run.train(cfg)


def start() -> None:
    sys.argv[1:] = request.command_line(sys.argv[1:])
    main()


if __name__ == "__main__":
    composition.command_line(start)
