"""Train one model, or with -m one for each value of a setting: `genlab train`.

    python train.py                                   the defaults: a VAE on the embedded MNIST
    python train.py -m model.kl_weight=0,1,30         compare KL weights
    python train.py -m launcher=process ...           each job in its own process
    python train.py experiment=vae/mnist_nll          a named recipe
    python train.py --help                            all keys and choices

A completed run that is started again returns its result; an interrupted one is resumed.
"""

import sys

from genlab.__main__ import main

if __name__ == "__main__":  # launchers import this file again
    sys.exit(main(["train", *sys.argv[1:]]))
