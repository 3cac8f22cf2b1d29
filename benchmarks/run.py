"""Compare the training speed of genlab with a bare PyTorch loop, in CPU time per image.

    python benchmarks/run.py                                  genlab and the bare loop
    python benchmarks/run.py --peers DIR --peers-python PY    also pythae and Lightning, per item

Every variant runs in a fresh process with one thread; rounds are interleaved (A B C, A B C, ...),
so that a machine that slows down slows all of them. genlab is measured through `train.py`, with its
record and W&B (offline) on. The result is the ratio of the medians. `--peers` names a folder with
the `a_vae.py` of the peers' benchmarks, `--peers-python` an interpreter that has them installed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

from rounds import HERE, Job, interleaved, peer, save, script, spread, train, written_by

IMAGES, BATCH, EPOCHS = 8960, 128, 4

NETS = {"mlp": "mlp", "conv": "conv_plain"}
MODES = {
    "fp32": [],
    "bf16": ["trainer.precision=bf16-mixed"],
    "medium": ["matmul_precision=medium"],
}


def genlab(net: str, mode: str) -> list[float]:
    """Return CPU microseconds per image of each epoch but the first, through train.py."""
    return train(
        *(f"model/net={NETS[net]}", f"data.train_images={IMAGES}", f"data.batch_size={BATCH}"),
        *(f"trainer.max_epochs={EPOCHS}", *MODES[mode]),
    )


def bare(net: str, mode: str) -> list[float]:
    """Return the same for a loop in plain PyTorch: `bare.py`."""
    epochs: list[float] = script("bare.py", NETS[net], mode, str(IMAGES), str(EPOCHS))
    return epochs[1:]


def pythae(folder: Path, python: str, net: str, variant: str) -> list[float]:
    """Return the same for one of the peers."""
    arguments = ["--net", {"conv": "small"}.get(net, net), "--variant", variant]
    return peer(
        *(folder, python, "a_vae.py", *arguments),
        *("--n", str(IMAGES), "--epochs", str(EPOCHS)),
    )


def main() -> None:
    """Measure all variants in turns, and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--nets", default="mlp,conv")
    parser.add_argument("--modes", default="fp32,bf16,medium")
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--peers-python", default=sys.executable)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "training_speed.md")
    options = parser.parse_args()

    jobs: dict[str, Job] = {}
    for net in options.nets.split(","):
        for mode in options.modes.split(","):
            jobs[f"{net} {mode} genlab"] = lambda n=net, m=mode: genlab(n, m)
            jobs[f"{net} {mode} bare loop"] = lambda n=net, m=mode: bare(n, m)
        if options.peers:
            for variant in ("pythae", "lit_tpl_w0"):
                jobs[f"{net} fp32 {variant}"] = lambda n=net, v=variant: pythae(
                    options.peers, options.peers_python, n, v
                )
    measured = interleaved(jobs, options.rounds)

    lines = [
        "# Training speed: CPU microseconds per image, one thread, batch 128",
        "",
        written_by(
            f"python benchmarks/run.py --rounds {options.rounds}"
            f"{' --peers DIR --peers-python PY' if options.peers else ''}"
        ),
        f"Median (lowest to highest) of {options.rounds} interleaved rounds of {EPOCHS - 1} epochs "
        f"of {IMAGES:,} images.",
        "`bf16` is autocast; `medium` lets float32 matrix products run in bf16 inside the library.",
        "",
        "| network | mode | variant | us/image | genlab / variant |",
        "|---|---|---|---|---|",
    ]
    for name, values in measured.items():
        net, mode, variant = name.split(" ", 2)
        ratios = []
        for own in options.modes.split(",") if variant in ("pythae", "lit_tpl_w0") else [mode]:
            ratio = statistics.median(measured[f"{net} {own} genlab"]) / statistics.median(values)
            ratios.append(f"{ratio:.2f}" + (f" ({own})" if own != mode else ""))
        lines.append(
            f"| {net} | {mode} | {variant} | {spread(values)} | "
            f"{'' if variant == 'genlab' else ', '.join(ratios)} |"
        )
    save(options.out, lines)


if __name__ == "__main__":
    main()
