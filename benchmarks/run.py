"""Training speed of genlab beside a bare PyTorch loop of the same networks, in CPU time per image.

    python benchmarks/run.py                                  genlab and the bare loop
    python benchmarks/run.py --peers DIR --peers-python PY    also pythae and Lightning, per item

Every variant runs in a fresh process with one thread; rounds are interleaved (A B C, A B C, ...),
so that a machine that slows down slows all of them. genlab is measured through `train.py`, with its
record and W&B (offline) on. What counts is the ratio of the medians. `--peers` names a folder with
the `a_vae.py` of the peers' benchmarks, `--peers-python` an interpreter that has them installed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
IMAGES, BATCH, EPOCHS = 8960, 128, 4

NETS = {"mlp": "mlp", "conv": "conv_plain"}
MODES = {
    "fp32": [],
    "bf16": ["trainer.precision=bf16-mixed"],
    "medium": ["matmul_precision=medium"],
}


def environment() -> dict[str, str]:
    """One thread, and the callback that reads the clock."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "WANDB_MODE": "offline",
        "GENLAB_PLUGINS": "clock",
        "PYTHONPATH": str(HERE),
    }


def genlab(net: str, mode: str) -> list[float]:
    """CPU microseconds per image of each epoch but the first, through train.py."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "clock.jsonl"
        command = [
            *(sys.executable, "train.py", f"runs_dir={folder}", f"model/net={NETS[net]}"),
            *(f"data.train_images={IMAGES}", f"data.batch_size={BATCH}"),
            *(f"trainer.max_epochs={EPOCHS}", *MODES[mode]),
            "+callbacks.clock={_target_: clock.Clock}",
        ]
        subprocess.run(
            command,
            cwd=ROOT,
            env={**environment(), "BENCH_OUT": str(out)},
            check=True,
            capture_output=True,
        )
        rows = [json.loads(line) for line in out.read_text().splitlines()]
    return [row["cpu_us_per_image"] for row in rows[1:]]


def bare(net: str, mode: str) -> list[float]:
    """The same of a loop in plain PyTorch: `bare.py`."""
    command = [sys.executable, str(HERE / "bare.py"), NETS[net], mode, str(IMAGES), str(EPOCHS)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(), check=True, capture_output=True, text=True
    )
    epochs: list[float] = json.loads(done.stdout.splitlines()[-1])
    return epochs[1:]


def peer(folder: Path, python: str, net: str, variant: str) -> list[float]:
    """The same of one of the peers."""
    command = [python, "a_vae.py", "--net", {"conv": "small"}.get(net, net), "--variant", variant]
    command += ["--n", str(IMAGES), "--epochs", str(EPOCHS), "--threads", "1"]
    done = subprocess.run(
        command, cwd=folder, env=environment(), check=True, capture_output=True, text=True
    )
    row = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    return [chunk["cpu_us_img"] for chunk in json.loads(row.removeprefix("RESULT "))["chunks"]]


def machine() -> str:
    """The processor and the number of its threads that can be used."""
    model = platform.processor()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return f"{model}, {os.cpu_count()} threads, Python {platform.python_version()}"


def main() -> None:
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

    jobs = []
    for net in options.nets.split(","):
        for mode in options.modes.split(","):
            jobs.append((f"{net} {mode} genlab", lambda n=net, m=mode: genlab(n, m)))
            jobs.append((f"{net} {mode} bare loop", lambda n=net, m=mode: bare(n, m)))
        if options.peers:
            for variant in ("pythae", "lit_tpl_w0"):
                jobs.append(
                    (
                        f"{net} fp32 {variant}",
                        lambda n=net, v=variant: peer(options.peers, options.peers_python, n, v),
                    )
                )
    measured: dict[str, list[float]] = {name: [] for name, _ in jobs}
    for turn in range(options.rounds):
        for name, job in jobs:
            measured[name] += job()
            load = os.getloadavg()[0]
            print(
                f"round {turn + 1} {name}: {measured[name][-1]:.1f} us, load {load:.1f}", flush=True
            )

    lines = [
        "# Training speed: CPU microseconds per image, one thread, batch 128",
        "",
        f"`python benchmarks/run.py --rounds {options.rounds}"
        f"{' --peers DIR --peers-python PY' if options.peers else ''}`, "
        f"{time.strftime('%Y-%m-%d')}, "
        f"{machine()}.",
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
            f"| {net} | {mode} | {variant} | {statistics.median(values):.1f} "
            f"({min(values):.1f} to {max(values):.1f}) | "
            f"{'' if variant == 'genlab' else ', '.join(ratios)} |"
        )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
