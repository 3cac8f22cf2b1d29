"""Renew the pictures of README and docs from run directories: `make pictures`."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from playwright.sync_api import sync_playwright

from genlab.runs.run import find_runs

IMAGES = Path(__file__).resolve().parent / "images"

#: Pictures by the group below runs/ whose report has them, and the file there.
COPIES = {
    "rate_distortion.png": ("vae-kl_weight", "rate_distortion.png"),
    "kl_weights.webp": ("vae-kl_weight", "videos/interpolation.webp"),
    "bound_by_log_snr.png": ("ddpm-noise_schedule", "bound_by_log_snr.png"),
    "plane.png": ("rate_distortion", "rate_distortion.png"),
    "latent_kl_weight.png": ("which_kl_weight", "models.png"),
}
#: Samples by the group below runs/ of their run, and how they are drawn.
SAMPLES = {
    "ddpm_samples.png": ("ddpm-mnist_mini", "--n 64 --sampler ancestral --steps 100"),
    "gan_samples.png": ("gan-mnist_mini", "--n 80"),
}
#: The group whose page is photographed.
PAGE = ("report.png", "vae-kl_weight")


def genlab(*arguments: str) -> None:
    """Run a command of genlab; its failure ends the program."""
    subprocess.run([sys.executable, "-m", "genlab", *arguments], check=True)


def photograph(page: Path, picture: Path) -> None:
    """Save the first screens of a page as a PNG."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        opened = playwright.chromium.launch(executable_path=browser, args=arguments)
        view = opened.new_page(viewport={"width": 900, "height": 1170})
        view.goto(page.resolve().as_uri())
        view.wait_for_timeout(2000)  # charts are drawn after the page is loaded
        view.screenshot(path=picture)
        opened.close()


def main() -> None:
    """Report and film the sweeps that are there, and copy their pictures."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("runs", nargs="?", type=Path, default=Path("runs"), help="runs_dir")
    runs = parser.parse_args().runs
    for group in sorted({group for group, _ in COPIES.values()}):
        if (runs / group).is_dir():
            genlab("report", str(runs / group))
    picture, group = PAGE
    if (runs / group).is_dir():
        genlab("video", str(runs / group), "data=mnist_mini", "--kind", "interpolation")
        photograph(runs / group / "report.html", IMAGES / picture)
        print(f"{picture}: {group}/report.html")
    for picture, (group, options) in SAMPLES.items():
        for run in find_runs(runs / group)[:1]:
            with TemporaryDirectory() as folder:
                genlab("sample", str(run.path), *options.split(), "--out", f"{folder}/drawn")
                shutil.copyfile(f"{folder}/drawn/grid.png", IMAGES / picture)
        left = "" if (runs / group).is_dir() else " is not there: left"
        print(f"{picture}: a run of {group}{left}")
    for picture, (group, file) in COPIES.items():
        source = runs / group / file
        if source.is_file():
            shutil.copyfile(source, IMAGES / picture)
        print(f"{picture}: {group}/{file}" + ("" if source.is_file() else " is not there: left"))


if __name__ == "__main__":
    main()
