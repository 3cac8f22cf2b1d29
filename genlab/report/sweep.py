"""What a sweep says when it has ended: an answer in words, and the files in its directory."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from rich.console import Console
from rich.text import Text

from genlab import pictures
from genlab.errors import RunDirectoryError
from genlab.files import write_atomically
from genlab.report.collect import Record, swept_keys
from genlab.report.plots import data_name, rate_distortion_png, run_label
from genlab.report.tables import number_text, sort_key, sweep_table

_WEIGHT = "model.kl_weight"


@dataclass(frozen=True)
class _Finding:
    """The runs of one setting, averaged over seeds."""

    label: str
    records: list[Record]

    def metric(self, name: str) -> float | None:
        values = [value for r in self.records if (value := r.metric(name)) is not None]
        return fmean(values) if values else None

    def text(self, name: str, decimals: int) -> str:
        return number_text(self.metric(name), decimals)


def answer(records: Sequence[Record]) -> str:
    """What the numbers of a sweep say, in a few sentences.

    Of a sweep of KL weights: what the largest weight does to the latent units and to the
    reconstruction, and whether the linear forecast said so. Of any other: the best and the worst.
    """
    swept = [key for key in swept_keys(records) if key != "seed"]
    finished = sorted(
        (r for r in records if r.metric("test/reconstruction") is not None),
        key=lambda record: [sort_key(record.flat.get(key)) for key in swept],
    )
    counts = Counter(record.state for record in records if record not in finished)
    rest = ", ".join(f"{n} {state}" for state, n in sorted(counts.items()))
    if not finished:
        return f"No run has a result yet ({rest or 'there are no runs'})."
    groups: dict[str, list[Record]] = {}
    for record in finished:
        groups.setdefault(run_label(record, swept) or record.run_id, []).append(record)
    findings = [_Finding(label, runs) for label, runs in groups.items()]
    if len(findings) == 1:
        sentences = [_describe(findings[0])]
    elif swept == [_WEIGHT]:
        sentences = _about_weights(findings)
    else:
        sentences = _about_extremes(findings)
    if rest:
        sentences.append(f"Without a result, and so left out: {rest}.")
    return " ".join(sentences)


def _describe(finding: _Finding) -> str:
    terms = [
        f"{name} {finding.text(f'test/{name}', decimals)}"
        for name, decimals in (("reconstruction", 1), ("kl", 2), ("neg_elbo", 1))
        if finding.metric(f"test/{name}") is not None
    ]
    return f"{finding.label}: {', '.join(terms)} nats per image on {data_name(finding.records[0])}."


def _about_weights(findings: Sequence[_Finding]) -> list[str]:
    """Findings in the order of their weights."""
    highest = findings[-1]
    reference = next((f for f in findings[:-1] if _weight(f) == 1), _best(findings[:-1]))
    before = reference.metric("test/reconstruction") or 0.0
    after = highest.metric("test/reconstruction") or 0.0
    kl = highest.metric("test/kl")
    in_nats = "" if kl is None else f" (kl {number_text(kl, 2)} nats)"
    change = "raises" if after > before else "lowers"
    sentence = (
        f"{highest.label} {_units(highest)}{in_nats} and {change} the reconstruction term from "
        f"{before:.1f} ({reference.label}) to {after:.1f} nats per image"
    )
    sentences = [sentence + _forecast(highest) + "."]
    lowest = findings[0]
    rate = lowest.metric("test/kl")
    if _weight(lowest) == 0 and lowest is not reference and rate is not None:
        sentences.append(
            f"{lowest.label} reaches {lowest.text('test/reconstruction', 1)}, at the price of a "
            f"rate of {number_text(rate, 1)} nats that nothing holds down."
        )
    best = _best(findings)
    if best.metric("test/neg_elbo") is not None:
        sentences.append(
            f"The lowest neg_elbo is that of {best.label}: {best.text('test/neg_elbo', 1)} nats."
        )
    return sentences


def _about_extremes(findings: Sequence[_Finding]) -> list[str]:
    name = "neg_elbo" if all(f.metric("test/neg_elbo") is not None for f in findings) else ""
    name = name or "reconstruction"
    ranked = sorted(findings, key=lambda f: f.metric(f"test/{name}") or 0.0)
    return [
        f"The lowest {name} is that of {_describe(ranked[0])}",
        f"The highest is that of {_describe(ranked[-1])}",
    ]


def _best(findings: Sequence[_Finding]) -> _Finding:
    known = [f for f in findings if f.metric("test/neg_elbo") is not None]
    return min(known or findings, key=lambda f: f.metric("test/neg_elbo") or 0.0)


def _weight(finding: _Finding) -> float | None:
    weight = finding.records[0].flat.get(_WEIGHT)
    return float(weight) if isinstance(weight, int | float) else None


def _units(finding: _Finding) -> str:
    active = finding.metric("test/active_units")
    total = finding.records[0].flat.get("model.latent_dim")
    if active is None:
        return "holds the rate down"
    if active == 0:
        return f"switches off all {'' if total is None else f'{total} '}latent units"
    return f"leaves {active:g}{'' if total is None else f' of {total}'} latent units active"


def _forecast(finding: _Finding) -> str:
    """Whether the forecast for a setting came true, with its reason."""
    expected = finding.metric("forecast/active_units")
    active = finding.metric("test/active_units")
    if expected is None or active is None:
        return ""
    threshold = finding.metric("forecast/collapse_threshold")
    weight = finding.metric("test/beta_effective")
    weight = _weight(finding) if weight is None else weight
    reason = ""
    if threshold is not None and weight is not None:
        relation = "exceeds" if weight > threshold else "does not exceed"
        reason = f": {weight:g} {relation} {threshold:.3g}, above which a linear VAE collapses"
    if (expected == 0) == (active == 0):
        return f"; the linear forecast said so{reason}"
    outcome = "collapse" if expected == 0 else f"{expected:g} active units"
    return f"; the linear forecast had said {outcome}{reason}"


def write_sweep(records: Sequence[Record], directory: str | os.PathLike[str]) -> list[Path]:
    """Write summary.csv, summary.md and two pictures, and return those that were written.

    `rate_distortion.png` needs at least one run with both terms, `reconstructions.png` one that
    drew its reconstructions; without, a picture of an earlier time is left as it is and not named.

    Raises:
        RunDirectoryError: there are no records, or the directory cannot be written.
    """
    directory = Path(directory)
    table = sweep_table(records)
    csv, markdown = directory / "summary.csv", directory / "summary.md"
    plane, images = directory / "rate_distortion.png", directory / "reconstructions.png"
    drawn = {}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if rate_distortion_png(records, plane):
            drawn[plane] = "rate against distortion"
        order = [row["run"] for row in table.rows]
        if _reconstructions_png(sorted(records, key=lambda r: order.index(r.run_id)), images):
            drawn[images] = "reconstructions of every run"
        parts = [f"# {records[0].group}", answer(records), table.to_markdown().rstrip()]
        parts += [f"![{what}]({path.name})" for path, what in drawn.items()]
        write_atomically(csv, table.to_csv().encode())
        write_atomically(markdown, ("\n\n".join(parts) + "\n").encode())
    except OSError as error:
        raise RunDirectoryError(
            f"the comparison cannot be written to {directory} ({error.strerror}): make that "
            f"directory writable"
        ) from error
    return [csv, markdown, *drawn]


def _reconstructions_png(records: Sequence[Record], path: Path) -> bool:
    """The final reconstructions of each run, one under the other in the order of the table."""
    found = [r.path / "pictures" / "reconstructions-final.png" for r in records]
    shown = [pictures.read_png(p) for p in found if p.is_file()]
    if shown:
        pictures.save_png(path, pictures.stack(shown))
    return bool(shown)


def print_sweep(
    records: Sequence[Record],
    directory: str | os.PathLike[str],
    console: Console | None = None,
) -> None:
    """Print the table and the answer, then write both to `directory` and say where they are.

    Raises:
        RunDirectoryError: as `write_sweep`.
    """
    console = console or Console()
    sweep_table(records).print(console)
    sentences = [Text(""), Text(answer(records)), Text("")]
    console.print(*sentences, sep="\n", soft_wrap=not console.is_terminal)
    for path in write_sweep(records, directory):
        console.print(Text(f"  {path}"), soft_wrap=True)
