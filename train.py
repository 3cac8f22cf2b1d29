"""Train one model, or with -m one for each value of a setting.

    python train.py                                   the defaults: a VAE on the embedded MNIST
    python train.py -m model.kl_weight=0,1,30         compare KL weights
    python train.py -m launcher=process ...           each job in its own process
    python train.py experiment=vae/mnist_nll          a named recipe
    python train.py --help                            all keys and choices

A completed run that is started again returns its result; an interrupted one is resumed.
"""

from typing import Any

from genlab.training import interrupts


def main(cfg: Any) -> Any:
    """Train one run, or return its result."""
    from genlab.training import run  # here, since --help and launchers do not need torch

    return run.train(cfg)


def start() -> None:
    """Run Hydra, whose import comes when signals and errors are attended to."""
    import hydra

    import genlab.sweeps  # noqa: F401  (names what a multirun is called)
    from genlab.config import compose

    hydra.main(str(compose.directory()), "train", "1.3")(main)()


if __name__ == "__main__":
    interrupts.end_at_once()  # a signal may come while the rest is imported

    from genlab.training import terminal

    terminal.command_line(start)
