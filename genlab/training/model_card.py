"""The model card of an export: what the model is, how to load it, its numbers, its settings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from genlab import __version__
from genlab.metrics.names import describe, ordered
from genlab.protocols import HasSetting
from genlab.report.collect import Record, collect, one_line
from genlab.report.escaping import markdown
from genlab.report.naming import data_name, number_text, setting_text
from genlab.runs.files import sha256
from genlab.tensors import parameter_count
from genlab.training.export_parts import Part, Trained

_HEAD = """\
---
library_name: genlab
tags: [image-generation]
---"""
#: Keys about the training that a card names.
_TRAINING = (
    *("model.optimizer._target_", "model.optimizer.lr", "model.lr_schedule._target_"),
    *("data.batch_size", "data.binarisation", "data.flip", "ema_decay", "trainer.precision"),
    "seed",
)
#: Letters of a text and of the names of the classes, and rows of a table.
_TEXT, _CLASSES, _ROWS = 80, 400, 60


def model_card(trained: Trained, parts: Sequence[Part]) -> str:
    """Write the model card in Markdown; what comes from the run is escaped.

    Args:
        parts: of the formats in which the model is exported.

    Raises:
        RunDirectoryError: the run cannot be read.
    """
    (record,) = collect([trained.run])
    sections = [_HEAD, f"# {_text(record.run_id)}", _summary(trained, record)]
    for part in parts:
        sections += [f"## {part.title}", f"```python\n{part.code}\n```", *part.notes]
    sections += ["## Numbers", *_numbers(trained, record)]
    sections += ["## Settings", _settings(record)]
    sections += ["## Origin", _origin(trained, record)]
    return "\n\n".join(sections) + "\n"


def _text(value: Any) -> str:
    """Shorten a text from the run to one line, and escape it."""
    return markdown(one_line(str(value), _TEXT))


def _summary(trained: Trained, record: Record) -> str:
    model, spec = trained.model, trained.spec
    parameters = parameter_count(model)
    classes = "without classes"
    if spec.classes:
        names = one_line(", ".join(spec.classes[:_CLASSES]), _CLASSES)
        classes = f"of the {len(spec.classes):,} classes {markdown(names)}"
    pixels = "real-valued pixels" if spec.levels is None else f"{spec.levels} levels a pixel"
    text = (
        f"A {_text(type(model).__name__)} with {parameters:,} parameters, trained with genlab on "
        f"{_text(data_name(record))}: images of {spec.channels} x {spec.height} x {spec.width} "
        f"(channels, height, width), {pixels}, {classes}."
    )
    if isinstance(model, HasSetting):
        text += f" Its setting: {markdown(model.describe())}."
    return text


def _numbers(trained: Trained, record: Record) -> list[str]:
    """Return the metrics of the test in result.json, and of which weights they are."""
    metrics = record.result.get("metrics")
    names = [name for name in metrics or () if name.startswith("test/")]
    rows = []
    for name in ordered(names):
        known, value = describe(name), record.metric(name)
        if value is not None and not known.name.startswith("bound_log_snr"):
            number = number_text(value, known.decimals)
            unit = _text(known.unit_text or known.unit)
            rows.append((_text(known.title), f"{number} {unit}".strip(), _text(name)))
    if not rows:
        return ["The run has no result of a test."]
    best = (
        record.flat.get("evaluate") != "last" and (record.path / "checkpoints/best.ckpt").exists()
    )
    tested = "best" if best else "last"
    sentence = f"Of the test images, with the weights of the {tested} checkpoint."
    if trained.ema is not None:
        sentence += f" The weights here are their average of relative width {trained.ema:g}."
    elif trained.checkpoint.stem not in (tested, "model"):
        sentence += f" The weights here are those of the {trained.checkpoint.stem} one."
    return [sentence, _table(("metric", "value", "name in result.json"), rows)]


def _settings(record: Record) -> str:
    """Return a table of the model's own settings, its components, and how it was trained."""
    rows = []
    for key, value in record.flat.items():
        parts = key.split(".")
        is_own = parts[0] == "model" and (len(parts) == 2 or parts[2:] == ["_target_"])
        if (is_own and parts[1] != "module" and value is not None) or key in _TRAINING:
            rows.append((_text(key.removesuffix("._target_")), _text(setting_text(key, value))))
    result = record.result
    for key in ("epochs", "steps"):
        if isinstance(result.get(key), int):
            rows.append((f"{key} trained", f"{result[key]:,}"))
    return _table(("setting", "value"), rows) if rows else "They are not known."


def _origin(trained: Trained, record: Record) -> str:
    versions = record.result.get("versions")
    versions = versions if isinstance(versions, dict) else {}
    by = ", ".join(
        _text(f"{name} {versions[name]}") for name in ("genlab", "torch") if name in versions
    )
    weights = _text(trained.checkpoint.name)
    if trained.ema is not None:
        weights += f" and its snapshots, averaged with relative width {trained.ema:g}"
    rows = [
        ("run", _text(record.run_id)),
        ("checkpoint", f"{weights}, SHA-256 {sha256(trained.checkpoint)}"),
        ("trained with", by or "unknown"),
        ("commit of genlab in training", _text(record.result.get("git_commit") or "unknown")),
        ("exported with", f"genlab {__version__}"),
    ]
    return _table(("", ""), rows)


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines: Iterable[Sequence[str]] = [heading, ["---"] * len(heading), *rows[:_ROWS]]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
