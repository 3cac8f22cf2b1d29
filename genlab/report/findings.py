"""The runs of one setting, averaged over their seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, variance

from genlab.metrics.names import describe
from genlab.report.collect import Record
from genlab.report.naming import number_text

LIKELIHOOD = "model.likelihood._target_"


@dataclass(frozen=True)
class Finding:
    """The runs of one setting, averaged over seeds."""

    label: str
    records: list[Record]

    def metric(self, name: str) -> float | None:
        values = [value for r in self.records if (value := r.metric(name)) is not None]
        return fmean(values) if values else None

    def by_seed(self, name: str) -> dict[str, float]:
        """Return a metric by the seed of its run, of the first run of each seed."""
        found: dict[str, float] = {}
        for record in self.records:
            value = record.metric(name)
            if value is not None:
                found.setdefault(str(record.flat.get("seed", record.run_id)), value)
        return found

    def text(self, name: str) -> str:
        return number_text(self.metric(name), describe(name).decimals)

    @property
    def family(self) -> str:
        return self.records[0].family

    @property
    def error(self) -> float | None:
        """Standard error of neg_elbo in nats, over test images and, if several, over runs."""
        found = [(r.metric("test/neg_elbo"), r.metric("test/neg_elbo_se")) for r in self.records]
        known = [(nats, error) for nats, error in found if nats is not None and error is not None]
        if len(known) < len(found):
            return None
        # All seeds are tested on the same images, so that more seeds do not reduce this part.
        over_images = fmean(error**2 for _, error in known)
        over_seeds = variance(nats for nats, _ in known) / len(known) if len(known) > 1 else 0.0
        return math.sqrt(over_images + over_seeds)

    @property
    def bits_per_nat(self) -> float | None:
        return next((b for r in self.records if (b := r.bits_per_nat) is not None), None)

    @property
    def is_gaussian(self) -> bool:
        """Return whether the likelihood is a Gaussian of fixed scale."""
        flat = self.records[0].flat
        name = str(flat.get(LIKELIHOOD) or "").rpartition(".")[2]
        return name == "GaussianLikelihood" and self._scale > 0

    @property
    def _scale(self) -> float:
        scale = self.records[0].flat.get("model.likelihood.scale")
        return float(scale) if isinstance(scale, int | float) else 0.0

    def squared_error(self, nats: float) -> float | None:
        """Compute the squared error in -log N(x; x_hat, sigma^2), summed over pixels."""
        if self.bits_per_nat is None:
            return None
        variance_of_pixels = self._scale**2
        dims = round(1 / (self.bits_per_nat * math.log(2)))
        constant = 0.5 * dims * math.log(2 * math.pi * variance_of_pixels)
        return 2 * variance_of_pixels * (nats - constant)

    def bits(self, name: str) -> float:
        return (self.metric(f"test/{name}") or 0.0) * (self.bits_per_nat or 0.0)


def best(findings: Sequence[Finding]) -> Finding:
    """Return the finding with the lowest neg_elbo, or the first if none has one."""
    known = [f for f in findings if f.metric("test/neg_elbo") is not None]
    return min(known or findings, key=lambda f: f.metric("test/neg_elbo") or 0.0)
