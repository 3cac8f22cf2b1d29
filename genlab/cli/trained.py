"""What the commands that load trained models ask alike."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which noise, and which weights."""
    parser.add_argument("--seed", type=int, default=0, help="of the noise (%(default)s)")
    parser.add_argument(
        "--checkpoint",
        choices=("best", "last"),
        default="best",
        help="by validation loss, or as it stands (%(default)s)",
    )
