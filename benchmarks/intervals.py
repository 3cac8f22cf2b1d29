"""Coverage of the 95 % intervals of the quality of samples, in simulation.

    python benchmarks/intervals.py [--draws 400]

Samples of known distributions are drawn again and again, and measured against the same real images.
The truth is the mean over all draws. The table has the percentage of the draws whose interval holds
it; from 400 draws it is known to 2.1 (95 %).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt

from genlab.metrics import distances
from genlab.metrics.intervals import Estimate, groups_of
from genlab.metrics.rows import Rows

Matrix = npt.NDArray[np.float64]

#: Samples from a standard normal z (N, d), which is the distribution of the real images.
SAMPLES: dict[str, Callable[[Matrix], Matrix]] = {
    "equal": lambda z: z,
    "wider": lambda z: 1.2 * z + 0.2,
    "narrower": lambda z: 0.6 * z,
    "far": lambda z: 0.7 * z + 1.0,
    "half of it": lambda z: np.concatenate([np.abs(z[:, :1]), z[:, 1:]], 1),
}
#: Samples, real images and features of each table.
SIZES = ((500, 500, 8), (1000, 500, 4), (300, 800, 8))


def drawn(
    change: Callable[[Matrix], Matrix], random: np.random.Generator, size: tuple[int, int]
) -> Matrix:
    """Draw samples."""
    return change(random.normal(size=size))


def measure(x: Rows, y: Rows) -> dict[str, Estimate]:
    """Return all estimates of samples x."""
    n = len(x)
    groups = groups_of(n)
    found = {"FID∞": distances.frechet_distance(x, y, groups).extrapolated(n)}
    kernels = [distances.polynomial, distances.minus_distance]
    kid, energy = distances.discrepancies(x, y, groups, kernels)
    found |= {"KID": kid.estimate(n), "energy": energy.estimate(n)}
    return found | distances.manifolds(x, y)._asdict()


def held(draw: Callable[[], Matrix], y: Matrix, draws: int) -> dict[str, tuple[float, float]]:
    """Return the expected value of each number, and the share of draws whose interval holds it."""
    real = Rows.of(y)
    found: dict[str, list[Estimate]] = {}
    for _ in range(draws):
        for name, estimate in measure(Rows.of(draw()), real).items():
            found.setdefault(name, []).append(estimate)
    shares = {}
    for name, estimates in found.items():
        expected = float(np.mean([e.value for e in estimates]))
        hits = [e.low <= expected <= e.high for e in estimates]
        shares[name] = expected, float(np.mean(hits))
    return shares


def main() -> None:
    """Print a table for each size."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--draws", type=int, default=400)
    draws = parser.parse_args().draws
    for n, m, d in SIZES:
        print(f"\n{n} samples, {m} real images, {d} features; {draws} draws\n", flush=True)
        for number, (label, change) in enumerate(SAMPLES.items()):
            random = np.random.default_rng(number)
            y = random.normal(size=(m, d))
            found = held(partial(drawn, change, random, (n, d)), y, draws)
            if number == 0:
                print("| samples | " + " | ".join(found) + " |")
                print("|" + "---|" * (len(found) + 1))
            cells = [f"{100 * share:.1f} ({value:.3g})" for value, share in found.values()]
            print(f"| {label} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
