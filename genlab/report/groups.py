"""Groups of runs whose results may be compared, and the keys that tell their runs apart."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from genlab.report.collect import MODEL, Record, by_sweep, one_line, swept_keys
from genlab.report.naming import KL_WEIGHT, data_names, sort_key, sweep_names
from genlab.runs.identity import is_identity
from genlab.runs.points import without_seed

LIKELIHOOD = "model.likelihood._target_"
#: Keys of a group that have a column, the seed beside them.
MOST_COLUMNS = 4
# Values of a term that a sentence names.
_MOST_NAMED = 4


@dataclass(frozen=True)
class Group:
    """Runs whose results may be compared with one another.

    Attributes:
        title: names the group on a page, for instance `vae-kl_weight`.
        records: sorted by the values of `keys` and `others`, numbers in numeric order.
        keys: the keys that a table shows, at most `MOST_COLUMNS` and then the seed if it varies.
        others: further keys in which the runs differ, shown on request.
    """

    title: str
    records: tuple[Record, ...]
    keys: tuple[str, ...]
    others: tuple[str, ...]

    @property
    def swept(self) -> tuple[str, ...]:
        """All keys in which the runs differ, the seed last."""
        seeds = [key for key in self.keys if key == "seed"]
        return (*without_seed(self.keys), *self.others, *seeds)


class Terms(NamedTuple):
    """The facts on which it depends whether two results may be compared; None where not known.

    Attributes:
        data: the source of the images, as text that is equal for equal sources.
        shape: channels, height and width.
        binarisation: as in `data.binarisation`.
        images: the part of the test set that was measured.
        unit: the quantity that the bound is in, of `UNITS`, else the class of a likelihood.
        version: of genlab, up to the digit that changes with the definition of a metric.
    """

    data: str | None = None
    shape: tuple[int, ...] | None = None
    binarisation: str | None = None
    images: str | None = None
    unit: str | None = None
    version: str | None = None


#: The quantities of a bound in nats, by the class of the likelihood; None is a model without one.
MASS = "a probability of the stored pixels"
UNITS = {
    None: MASS,
    "Bernoulli": "a cross-entropy of grey pixels",
    "ContinuousBernoulliLikelihood": "a density on [0, 1]",
    "GaussianLikelihood": "a density on the real line",
    "LearnedGaussian": "a density on the real line",
    "CalibratedGaussian": "a density on the real line",
    "DiscretizedLogisticLikelihood": MASS,
    "DiscretizedLogisticMixtureLikelihood": MASS,
}
_NAMES = {
    "data": "the data",
    "shape": "the shape of the images",
    "binarisation": "the binarisation",
    "images": "the test images that were measured",
    "unit": "the unit of the bound",
    "version": "the version of genlab",
}


def groups(records: Sequence[Record], as_one: bool = False) -> list[Group]:
    """Divide runs into groups that may be compared.

    The runs of one directory are asked about together, and so are those of sweeps that vary the
    same keys and share all else; single runs that each have a directory of their own are too. They
    are one group if their bounds are of the same test images and in the same quantity: a Bernoulli
    likelihood of grey pixels, a density and a probability of 8-bit pixels are three, whereas a VAE
    with a discretized likelihood and a DDPM are one. A model without a bound, such as a GAN, and a
    run that has no result or no configuration, join the others of their data.

    Args:
        records: the runs, of one or several sweeps.
        as_one: True if the runs of different sweeps were asked about as one, as by naming both.
    """
    names = sweep_names(records)
    found = []
    for asked in [list(records)] if as_one else _asked(records):
        parts = _comparable(asked)
        titles = _titles(parts) if len(parts) > 1 else [""]
        for part, name in zip(parts, titles, strict=True):
            title = _directories(part, list(dict.fromkeys(names[r.sweep] for r in part)))
            found.append(_group(f"{title}: {name}" if name else title, part))
    return found


def apart(found: Sequence[Group]) -> str:
    """State in one sentence which groups are not compared and why; empty for a single group."""
    if len(found) < 2:
        return ""
    terms = [_terms_of(group.records) for group in found]
    reasons = []
    for i, name in enumerate(Terms._fields):
        if len({own[i] for own in terms if own[i] is not None}) > 1:
            texts = [
                _text(name, group.records, own) for group, own in zip(found, terms, strict=True)
            ]
            known = list(dict.fromkeys(text for text in texts if text))
            more = [f"{len(known) - _MOST_NAMED} more"] if len(known) > _MOST_NAMED else []
            reasons.append(f"{_NAMES[name]} ({', '.join([*known[:_MOST_NAMED], *more])})")
    parts = f"The {len(found)} groups of runs are reported one by one and not compared"
    if reasons:
        return f"{parts}, since they differ in {' and in '.join(reasons)}."
    return f"{parts}, since they are of different sweeps: name two sweeps to compare those."


def _text(name: str, records: Sequence[Record], terms: Terms) -> str:
    """Write one of the terms of runs in words."""
    if name == "data":
        return data_names([record for record in records if record.config])
    if name == "shape":
        return " x ".join(map(str, terms.shape or ()))
    value = getattr(terms, name)
    return {"images": f"{value} test images"}.get(name, str(value or ""))


def _directories(records: Sequence[Record], directories: Sequence[str]) -> str:
    """Name the directories of runs if they are one or two, else say how many there are."""
    if len(directories) < 3:
        return " and ".join(directories)
    is_single = len(records) == len(directories)
    return f"{len(directories)} {'single runs' if is_single else 'sweeps'}"


def _asked(records: Sequence[Record]) -> list[list[Record]]:
    """Divide runs by the question that they were made for."""
    sweeps = by_sweep(records)
    found: dict[Any, list[Record]] = {}
    for sweep, runs in sweeps.items():
        is_single = len(runs) == 1 and not runs[0].point
        found.setdefault("single" if is_single else _fixed(sweep, runs), []).extend(runs)
    return list(found.values())


def _fixed(sweep: Path, records: Sequence[Record]) -> Any:
    """Return what is equal in sweeps that vary the same keys and share all else."""
    varied = {key for record in records for key in record.point}
    if not all(record.point and record.config for record in records):
        return sweep
    fixed = set()
    for record in records:
        kept = {
            key: value
            for key, value in record.flat.items()
            if is_identity(key) and key not in ("seed", "data.seed") and not _is_below(key, varied)
        }
        fixed.add(json.dumps(kept, sort_keys=True, default=str))
    return (frozenset(varied), fixed.pop()) if len(fixed) == 1 else sweep


def _is_below(key: str, varied: set[str]) -> bool:
    return any(f"{key}.".replace("/", ".").startswith(f"{k}.".replace("/", ".")) for k in varied)


def _comparable(records: Sequence[Record]) -> list[list[Record]]:
    """Divide runs so that the known terms of those in one part are equal."""
    terms = [terms_of(record) for record in records]
    parts: dict[Terms, list[int]] = {}
    # The runs of which most is known define the parts; the others join the largest that they fit.
    for i in sorted(range(len(records)), key=lambda i: terms[i].count(None)):
        fitting = [known for known in parts if _fit(terms[i], known)]
        best = max(fitting, key=lambda known: len(parts[known]), default=terms[i])
        places = parts.pop(best, [])
        parts[_joined(best, terms[i])] = [*places, i]
    divided = sorted(sorted(places) for places in parts.values())
    return [[records[i] for i in places] for places in divided]


def _joined(one: Terms, other: Terms) -> Terms:
    """Return one's terms, and the other's where its own are not known."""
    known = {name: value for name, value in one._asdict().items() if value is not None}
    return other._replace(**known)


def _fit(one: Terms, other: Terms) -> bool:
    return all(a is None or b is None or a == b for a, b in zip(one, other, strict=True))


def terms_of(record: Record) -> Terms:
    """Return what is known of the terms of a run's result."""
    flat = record.flat
    if MODEL not in flat:
        return Terms()
    source = {
        key: value
        for key, value in flat.items()
        if key.startswith(("data.source.", "data.name", "data._target_")) and is_identity(key)
    }
    binarisation = str(flat.get("data.binarisation") or "none")
    return Terms(
        json.dumps(source, sort_keys=True, default=str),
        record.shape,
        binarisation,
        _images(flat),
        _unit(record, binarisation),
        _version(record),
    )


def _images(flat: Mapping[str, Any]) -> str:
    limit = flat.get("trainer.limit_test_batches")
    if limit is None or (isinstance(limit, float) and limit == 1):
        return "all"
    size = flat.get("data.eval_batch_size")
    if isinstance(limit, int) and isinstance(size, int):
        return f"the first {limit * size}"
    return f"a share of {limit}"


def images_text(records: Sequence[Record]) -> str:
    """Name the images that these runs were tested on: `the test set`, or its first images."""
    images = _terms_of(records).images
    if images in (None, "all"):
        return "the test set"
    counts = {record.result.get("test_images") for record in records} - {None}
    if len(counts) == 1 and isinstance(count := counts.pop(), int):
        return f"the first {count} images of the test set"
    if images.startswith("the first "):
        return f"{images} images of the test set at most"
    return f"{images} of the test set"


def is_one_kind(metric: str, records: Sequence[Record]) -> bool:
    """Return whether a metric is defined alike in all runs that have it."""
    name = metric.rpartition("/")[2]
    keys = (f"metrics.{name}.", f"callbacks.{name}.")
    kinds = {
        json.dumps({k: v for k, v in r.flat.items() if k.startswith(keys)}, default=str)
        for r in records
        if r.metric(metric) is not None
    }
    return len(kinds) < 2


def _unit(record: Record, binarisation: str) -> str | None:
    target = record.flat.get(LIKELIHOOD)
    name = str(target).rpartition(".")[2] if target else None
    has_bound = any(record.metric(f"test/{m}") is not None for m in ("neg_elbo", "bits_per_dim"))
    if name is None and not has_bound:
        return None
    if name == "Bernoulli" and binarisation != "none":
        return MASS
    return UNITS.get(name, str(target))


def _version(record: Record) -> str | None:
    versions = record.result.get("versions")
    version = versions.get("genlab") if isinstance(versions, Mapping) else None
    return ".".join(str(version).split(".")[:2]) if version else None


def _terms_of(records: Sequence[Record]) -> Terms:
    """Return the terms that the runs of a group share."""
    found = Terms()
    for terms in map(terms_of, records):
        found = _joined(found, terms)
    return found


def _titles(parts: Sequence[Sequence[Record]]) -> list[str]:
    """Name each part of one question by what was typed for it, else by the terms that differ."""
    for key in dict.fromkeys(key for part in parts for record in part for key in record.point):
        typed = [{str(record.point.get(key)) for record in part} for part in parts]
        if all(len(values) == 1 for values in typed) and len(set.union(*typed)) == len(parts):
            return [value for (value,) in typed]
    texts = [_texts(part) for part in parts]
    differing = [i for i, column in enumerate(zip(*texts, strict=True)) if len(set(column)) > 1]
    names = [", ".join(own[i] for i in differing if own[i]) for own in texts]
    repeated = Counter(names)
    return [
        f"{name}, part {names[:i].count(name) + 1}" if repeated[name] > 1 else name
        for i, name in enumerate(names)
    ]


def _texts(records: Sequence[Record]) -> list[str]:
    """Return the terms of runs as they are written in a title."""
    terms = _terms_of(records)
    texts = {name: _text(name, records, terms) for name in Terms._fields} | {
        "binarisation": f"binarisation {terms.binarisation}",
        "unit": _likelihoods(records),
        "version": f"genlab {terms.version}",
    }
    return [texts[name] for name in Terms._fields]


def _likelihoods(records: Sequence[Record]) -> str:
    """Name the likelihoods of these runs, and the class of a model that has none."""
    known = [record.flat.get("model/likelihood") or record.family for record in records]
    return " and ".join(sorted({str(name) for name in known if name}))


def columns(records: Sequence[Record]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the keys that a table of these runs shows, and the others in which they differ.

    A model and what was swept come first, then the settings of a model, of its data and of its
    training. At most `MOST_COLUMNS` are shown, and then the seed if it varies.
    """
    swept = swept_keys(records)
    settings = without_seed(swept)
    asked = {key for record in records for key in record.point}
    ranked = sorted(settings, key=lambda key: (key not in asked, _place(key)))
    shown = [key for key in settings if key in ranked[:MOST_COLUMNS]]
    shown.sort(key=lambda key: key != MODEL)
    seeds = ["seed"] if "seed" in swept else []
    return (*shown, *seeds), tuple(key for key in settings if key not in shown)


def in_order(records: Sequence[Record]) -> list[Record]:
    """Sort runs by the values of the keys that a table shows, then of the others and the seed."""
    keys, others = columns(records)
    order = [*without_seed(keys), *others, *(key for key in keys if key == "seed")]
    return sorted(
        records,
        key=lambda r: [*(sort_key(r.flat.get(key)) for key in order), sort_key(r.run_id)],
    )


def _group(title: str, records: Sequence[Record]) -> Group:
    keys, others = columns(records)
    return Group(one_line(title), tuple(in_order(records)), keys, others)


def _place(key: str) -> tuple[int, int, str]:
    """Return how early a key has a column: the model, its settings, the data, how it is trained."""
    first = (MODEL, KL_WEIGHT)
    roots = ("model", "data", "trainer")
    root = key.replace("/", ".").partition(".")[0]
    place = first.index(key) if key in first else 2 + (roots.index(root) if root in roots else 3)
    return place, key.replace("/", ".").count("."), key
