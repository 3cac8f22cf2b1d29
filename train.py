"""Train one model, or with -m one for each value of a knob.

    python train.py                                   the defaults: a VAE on the embedded MNIST
    python train.py -m model.kl_weight=0,1,30         compare KL weights
    python train.py -m launcher=process ...           each job in a process of its own
    python train.py experiment=vae/mnist_nll          a named recipe
    python train.py --help                            all keys and choices

A run asked for again returns its result; an interrupted one goes on where it was.
"""

import hydra
from omegaconf import DictConfig

import genlab.sweeps  # noqa: F401  (names what a multirun is called)
from genlab.config import compose as composition
from genlab.training.outcome import Outcome


@hydra.main(version_base="1.3", config_path=str(composition.directory()), config_name="train")
def main(cfg: DictConfig) -> Outcome:
    from genlab.training import run  # here, since --help and a launcher have no use for torch

    return run.train(cfg)


if __name__ == "__main__":
    composition.command_line(main)
