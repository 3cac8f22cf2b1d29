"""The table of metrics: unit, title, decimals, order, and which direction is better.

Terminal, progress, result.json, W&B, workspace and report use this table. A metric that is not in
the table is logged, shown and reported under its own name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

NATS = "nats/image"


@dataclass(frozen=True)
class Name:
    """A metric and how to show it; the name has no prefix of a split.

    Attributes:
        name: the name in the logs.
        unit: the unit in result.json; empty for a number without a unit.
        title: the title of a chart or panel, without the unit.
        decimals: number of decimals in a table.
        better: "lower", "higher", or empty if neither is better.
        heading: heading of the column in the table of a sweep; empty for no column.
        is_part: whether it is a detail of another metric, left out of short tables.
        is_shown: whether a line of progress shows it.
        is_compared: whether settings are compared by it, in a separate panel.
        is_diagnostic: whether it has a small chart beside the main ones.
        is_quality: whether settings are compared by it where quality was measured.
    """

    name: str
    unit: str = ""
    title: str = ""
    decimals: int = 2
    better: Literal["lower", "higher", ""] = ""
    heading: str = ""
    is_shown: bool = False
    is_compared: bool = False
    is_diagnostic: bool = True
    is_part: bool = False
    is_quality: bool = False

    @property
    def unit_text(self) -> str:
        """The unit in words; empty if the title contains it."""
        unit = "" if self.unit in ("count", "bits", "norm") else self.unit
        return unit.replace("nats/image", "nats per image")

    @property
    def full_title(self) -> str:
        """The title, followed by the unit in words."""
        return f"{self.title} ({self.unit_text})" if self.unit_text else self.title


_MAIN: dict[str, Any] = {"is_diagnostic": False}
_PART: dict[str, Any] = {"is_part": True}
_QUALITY: dict[str, Any] = {"is_diagnostic": False, "is_quality": True}

#: All metrics, in the order in which they are shown.
NAMES: tuple[Name, ...] = (
    Name("reconstruction", NATS, "Reconstruction", 1, "lower", "reconstruction", True, True, False),
    Name("kl", NATS, "KL", 2, "", "kl", True, True, False),
    Name("kl_prior", NATS, "L_T: what the noise still tells", 2, "lower", "L_T", **_PART),
    Name("kl_diffusion", NATS, "Sum of L_t: the diffusion terms", 2, "lower", "diffusion", **_PART),
    Name("log_posterior", NATS, "log q(z|x): the codec's part of the KL", 2, **_PART),
    Name("latent_nll", NATS, "-log p(z): the bound on the latents", 2, "lower", **_PART),
    Name("neg_elbo", NATS, "Negative ELBO", 1, "lower", "neg_elbo", True, True, False),
    Name("bits_per_dim", "bits", "Bits per dimension", 3, "lower", "bits/dim", True, True, False),
    Name("neg_elbo_se", NATS, "Standard error of the negative ELBO", 2, "", "+-", **_MAIN, **_PART),
    Name("loss", NATS, "Loss", 2, "lower", "", **_MAIN),
    Name("error_loss", NATS, "Loss of the mean", 2, "lower", "", **_MAIN),
    Name("variance_loss", NATS, "Loss of the variance", 2, "lower", "", **_MAIN),
    Name("nll_iwae", NATS, "Negative log-likelihood, importance-weighted", 2, "lower", ""),
    Name("energy_score", "norm", "Energy score", 3, "lower", "energy score", True, True),
    Name("diversity", "", "Diversity of the samples", 2, "higher", "diversity", True, True),
    Name("discriminator_accuracy", "", "Accuracy of the discriminator", 2, "", "D accuracy", True),
    Name("energy_distance", "norm", "Energy distance", 2, "lower", "energy distance"),
    Name("fid", "", "FID of samples", 2, "lower", **_MAIN),
    Name("fid_infinity", "", "FID of infinitely many samples", 2, "lower", "FID∞", **_QUALITY),
    Name("rfid", "", "FID of reconstructions", 2, "lower", **_MAIN),
    Name(
        "rfid_infinity",
        "",
        "FID of infinitely many reconstructions",
        2,
        "lower",
        "rFID∞",
        **_QUALITY,
    ),
    Name("kid", "", "KID", 4, "lower", **_QUALITY),
    Name("precision", "", "Precision", 3, "higher", **_QUALITY),
    Name("recall", "", "Recall", 3, "higher", **_QUALITY),
    Name("density", "", "Density", 3, "higher", **_MAIN),
    Name("coverage", "", "Coverage", 3, "higher", **_MAIN),
    Name("class_distance", "", "Distance of the shares of classes", 3, "lower", **_MAIN),
    Name("nearest_train", "", "Distance to the nearest training image", 3, **_MAIN),
    Name("evaluations", "count", "Evaluations of the network a sample", 0, "lower", "evaluations"),
    Name("seconds_per_sample", "s", "Seconds a sample", 3, "lower", "s/sample"),
    Name("latency", "s", "Time to draw one image", 4, "lower", "latency", **_MAIN),
    Name("latency_cpu", "s", "CPU time to draw one image", 4, "lower", **_MAIN),
    Name("samples_per_second", "images/s", "Samples a second", 0, "higher", "samples/s", **_MAIN),
    Name("sampling_flops", "FLOP", "Operations to draw one image", 0, "lower", **_MAIN),
    Name("active_units", "count", "Active latent units", 1, "", "active units", False, True),
    Name("mutual_information", "nats", "Mutual information of image and latent"),
    Name("aggregate_kl", "nats", "KL of the aggregate posterior", 2, "lower"),
    Name("information_cap", "nats", "Largest mutual information that can be measured", **_MAIN),
    Name("log_var_clamped", "", "Share of the log-variances that are clamped", **_MAIN),
    Name("bound_log_snr", NATS, "Share of the bound in a bin of log-SNR", **_MAIN),
    Name("kl_weight", "", "KL weight", **_MAIN),
    Name("beta_effective", "", "Canonical KL weight", **_MAIN),
    Name("theta", "", "Water level", **_MAIN),
    Name("rate", NATS, "Rate", **_MAIN),
    Name("rate_ceiling", NATS, "Largest rate", **_MAIN),
    Name("collapse_threshold", "", "Weight of the collapse", **_MAIN),
    Name("squared_error", "summed squared error/image", "Squared error", 2, "lower", **_MAIN),
    Name("generator_loss", "", "Loss of the generator", 2, "", **_MAIN),
    Name("discriminator_loss", "", "Loss of the discriminator", 2, "", **_MAIN),
    Name("real_score", "", "Score of real images"),
    Name("fake_score", "", "Score of samples"),
    Name("r1", "", "Penalty R1", 3, "", **_MAIN),
    Name("r2", "", "Penalty R2", 3, "", **_MAIN),
    Name("gradient_penalty", "", "Gradient penalty", 3, "", **_MAIN),
    Name("learning_rate", "", "Learning rate", **_MAIN),
    Name("images_per_second", "images/s", "Images a second", 0, "higher", **_MAIN),
    Name("mfu", "", "Share of the hardware's peak (MFU)", 3, "higher", **_MAIN),
)

#: Metrics in a line of progress of a model that has none of those which are marked.
_FEW = 4

_BY_NAME = {name.name: name for name in NAMES}
_ORDER = {name.name: i for i, name in enumerate(NAMES)}
# the features that a distance is measured in: their name, and a hash of their weights
_FEATURES = re.compile(r"_([a-z0-9]+_[0-9a-f]{6})$")
_ENDS = {"_low": "lower end", "_high": "upper end"}
# a number of sampling steps before a name of the table
_STEPS = re.compile(r"(?:^|/)steps_(\d{1,6})/")
# a number of samples, or the middle of a bin, after a name of the table
_SUFFIX = re.compile(r"(_\d+|_[+-]\d+(\.\d+)?)$")


# Letters of a metric's name in a heading.
_LONGEST = 60


def describe(metric: str) -> Name:
    """Look up a metric, with or without the prefix of its split: `test/kl`, `kl`.

    `nll_iwae_200` and `bound_log_snr_-3` are found without their numbers, `fid_classifier_1a2b3c`
    without its features, and `fid_low_...` is the lower end of its interval, as `latency_low` is;
    `steps_50/kid_...` is that of another number of sampling steps. A metric that is not in the
    table gets its own name as title.
    """
    plain = metric.rpartition("/")[2]
    found = _BY_NAME.get(_stem(plain))
    if found is None:
        short = plain if len(plain) <= _LONGEST else f"{plain[: _LONGEST - 3]}..."
        return Name(plain, title=short.replace("_", " "), decimals=3, heading=short)
    features = _FEATURES.search(plain)
    without = _FEATURES.sub("", plain)
    title, heading, is_part = found.title, found.heading, found.is_part
    for end, words in _ENDS.items():
        if without == f"{found.name}{end}":
            title, heading, is_part = f"{title}, {words} of the interval", "", True
            found = replace(found, is_quality=False)
    if steps := _STEPS.search(metric):
        title, heading, is_part = f"{title}, {int(steps[1])} steps", "", True
    if features:
        title = f"{title} ({features[1]})"
        heading = heading and f"{heading} ({features[1].partition('_')[0]})"
    return replace(found, name=plain, title=title, heading=heading, is_part=is_part)


def is_listed(metric: str) -> bool:
    """Return whether the table has a metric, with or without the prefix of its split."""
    return _stem(metric.rpartition("/")[2]) in _BY_NAME


def ordered(metrics: Iterable[str]) -> list[str]:
    """Sort metrics in the order of the table, and those not in the table last, by name."""

    def place(metric: str) -> tuple[int, str]:
        plain = metric.rpartition("/")[2]
        return _ORDER.get(_stem(plain), len(_ORDER)), plain

    return sorted(metrics, key=place)


def _stem(plain: str) -> str:
    if plain in _BY_NAME:
        return plain
    without = _FEATURES.sub("", plain)
    for end in _ENDS:
        if without.removesuffix(end) in _BY_NAME:
            return without.removesuffix(end)
    return _SUFFIX.sub("", without)


def shown(values: Iterable[str]) -> list[str]:
    """Return the metrics that a line of progress shows, in the order of the table.

    Of a model that has none of those that the table marks, it shows the first few.
    """
    names = ordered(values)
    return [name for name in names if describe(name).is_shown] or names[:_FEW]
