"""The W&B workspace, and the report, that compare the runs of a sweep by the knob that it turns."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from genlab.errors import ConfigError, GenlabError
from genlab.tracking.files import STEP

if TYPE_CHECKING:
    import wandb_workspaces.reports.v2 as reports
    import wandb_workspaces.workspaces as workspaces

#: What is compared, where a sweep has it: the name in the contract and what a panel calls it.
METRICS = {
    "reconstruction": "reconstruction, nats/image",
    "kl": "KL, nats/image",
    "neg_elbo": "negative ELBO, nats/image",
    "bits_per_dim": "bits/dim",
    "active_units": "active latent units",
    "fid": "FID",
}

_POINT = "sweep/point"
# The client takes an equals sign, for one, for an emoji, and refuses it.
_NOT_IN_A_TITLE = re.compile(r"[^a-zA-Z0-9 ._:,-]")


@dataclass(frozen=True)
class Knob:
    """A swept key: its column on W&B, and the axis that its values want."""

    column: str
    axis: Literal["linear", "logarithmic", "words"] = "linear"


@dataclass(frozen=True)
class Comparison:
    """What a sweep left to be compared on W&B.

    Attributes:
        name: the sweep's, which is the group of its runs on W&B.
        project, entity: where the runs are.
        knobs: the swept keys, the seed excepted.
        metrics: of `METRICS`, those that its runs have.
        pictures, videos: media keys, such as `pictures/samples`.
        has_replicates: whether several runs lie at one point.
    """

    name: str
    project: str
    entity: str
    knobs: Sequence[Knob]
    metrics: Sequence[str]
    pictures: Sequence[str] = ()
    videos: Sequence[str] = ()
    has_replicates: bool = False


def require() -> None:
    """Refuse to go on without the package that builds workspaces.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import wandb_workspaces  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "genlab workspace needs the package wandb-workspaces: pip install genlab[workspace]"
        ) from error


def default_entity() -> str:
    """The user or team that the configured key belongs to.

    Raises:
        GenlabError: W&B cannot be reached or does not know the key.
    """
    import wandb

    wandb.setup(wandb.Settings(silent=True))
    try:
        return str(wandb.Api().default_entity)
    except Exception as error:  # of the network or of the server
        raise GenlabError(
            f"W&B does not answer ({error}): check the key and the network, or use --dry"
        ) from error


def build_workspace(sweep: Comparison) -> workspaces.Workspace:
    """A view of the project that shows this sweep's runs alone, not yet saved."""
    import wandb_workspaces.workspaces as ws
    from wandb_workspaces import expr

    sections = [
        ws.Section(
            name=title,
            panels=panels,
            is_open=True,
            pinned=number == 0,
            layout_settings=ws.SectionLayoutSettings(columns=columns, rows=rows),
        )
        for number, (title, panels, columns, rows) in enumerate(_sections(sweep))
    ]
    point = expr.Config(_POINT)
    columns = [f"config:{knob.column}.value" for knob in sweep.knobs]
    return ws.Workspace(
        entity=sweep.entity,
        project=sweep.project,
        name=_NOT_IN_A_TITLE.sub("-", f"{sweep.name}: comparison"),
        sections=sections,
        settings=ws.WorkspaceSettings(x_axis=STEP, max_runs=100),
        runset_settings=ws.RunsetSettings(
            filters=_of(sweep),
            groupby=[point] if sweep.has_replicates else [],
            order=[expr.Ordering(expr.Config(sweep.knobs[0].column))] if sweep.knobs else [],
            pinned_columns=[
                "run:state",
                *columns,
                "config:seed.value",
                *(f"summary:test/{metric}" for metric in sweep.metrics),
                "summary:verdict",
            ],
        ),
    )


def build_report(sweep: Comparison, question: str | None, answer: str) -> reports.Report:
    """The same panels under headings, with the answer before them; not yet saved."""
    import wandb_workspaces.reports.v2 as wr

    blocks: list[Any] = [wr.P(question)] if question else []
    blocks += [wr.MarkdownBlock(answer), wr.TableOfContents()]
    for title, panels, _, _ in _sections(sweep):
        runs = wr.Runset(
            entity=sweep.entity,
            project=sweep.project,
            name=sweep.name,
            filters=_of(sweep),
            groupby=[f"config.{_POINT}"] if sweep.has_replicates else [],
            order=[wr.OrderBy(wr.Config(knob.column), ascending=True) for knob in sweep.knobs[:1]],
        )
        blocks += [wr.H2(title), wr.PanelGrid(runsets=[runs], panels=_laid_out(panels))]
    return wr.Report(
        project=sweep.project,
        entity=sweep.entity,
        title=sweep.name[:128],
        description=f"The runs of the group {sweep.name}, by {_names(sweep)}.",
        blocks=blocks,
        width="fluid",
    )


def save(view: workspaces.Workspace | reports.Report, before: str | None = None) -> tuple[str, str]:
    """Send it to W&B, and return its address and what became of the view of before.

    Args:
        view: what `build_workspace` or `build_report` gave.
        before: the address of the view that it takes the place of, if that is still there under
            the same title.

    Raises:
        GenlabError: W&B cannot be reached or does not take it.
    """
    found = None if before is None else _found(type(view), before)
    title = _title(view)
    if before is None:
        became = "new"
    elif found is None:
        became = "new: W&B no longer has the one of before"
    elif _title(found) != title:
        became = f"new: the one of before is called {_title(found)!r} now, and stays as it is"
    else:
        became = "updated"
        _fill(found, view)
        view = found
    try:
        return str(view.save().url), became
    except Exception as error:  # of the network, of the server, or of the client's own checks
        raise GenlabError(
            f"W&B did not take it ({error}): check --entity, --project and the key, or use --dry"
        ) from error


def _found(kind: Any, address: str) -> Any:
    """The view at an address, None where there is none."""
    try:
        return kind.from_url(address)
    except (ValueError, TypeError):  # the client read an answer without a view in it
        return None
    except Exception as error:
        answer = getattr(error, "response", None)
        if answer is not None and answer.http_status in (0, 404):  # 0: an error within GraphQL
            return None
        raise GenlabError(f"{address} cannot be updated: {error}") from error


def _title(view: Any) -> str:
    return str(view.title if hasattr(view, "title") else view.name)


def _fill(found: Any, view: Any) -> None:
    """Show in what W&B has what a view shows."""
    report, workspace = ("description", "blocks", "width"), ("sections", "settings")
    for name in report if hasattr(view, "blocks") else (*workspace, "runset_settings"):
        setattr(found, name, getattr(view, name))


def spec_of(view: workspaces.Workspace | reports.Report) -> dict[str, Any]:
    """What is sent when it is saved, as plain JSON."""
    model = view._to_model()
    return dict(json.loads(model.model_dump_json(by_alias=True, exclude_none=True)))


def _of(sweep: Comparison) -> str:
    """The filter of its runs; an equals sign would be taken for an operator, also in a name."""
    name = sweep.name.replace("=", "\\x3d")
    return f"Metric('Group') == '{name}'"


def _names(sweep: Comparison) -> str:
    return ", ".join(knob.column.removeprefix("sweep/") for knob in sweep.knobs) or "run"


def _sections(sweep: Comparison) -> list[tuple[str, list[Any], int, int]]:
    """Title, panels, columns and rows on a page: of every section that has something to show."""
    pictures = [_media(key) for key in sweep.pictures]
    videos = [_media(key) for key in sweep.videos]
    sections = [
        (f"What {_names(sweep)} does", _trade_off(sweep), 2, 2),
        ("Over training", [_curve(metric) for metric in sweep.metrics], 3, 2),
        ("Pictures", pictures, 1, len(pictures)),
        ("Videos", videos, 1, len(videos)),
    ]
    return [section for section in sections if section[1]]


def _trade_off(sweep: Comparison) -> list[Any]:
    import wandb_workspaces.reports.v2 as wr

    panels: list[Any] = []
    if {"reconstruction", "kl"} <= set(sweep.metrics):
        colour = next((knob for knob in sweep.knobs if knob.axis != "words"), None)
        panels.append(
            wr.ScatterPlot(
                title="Reconstruction against KL, nats/image",
                x=wr.SummaryMetric("test/kl"),
                y=wr.SummaryMetric("test/reconstruction"),
                z=wr.Config(colour.column) if colour else None,
                log_z=_is_log(colour) if colour else None,
            )
        )
    if "neg_elbo" in sweep.metrics:
        panels.append(
            wr.BarPlot(
                title=METRICS["neg_elbo"],
                metrics=[wr.SummaryMetric("test/neg_elbo")],
                groupby=wr.Config(_POINT),
                groupby_aggfunc="mean",
                groupby_rangefunc="stderr",
                max_bars_to_show=100,
            )
        )
    columns = [
        wr.ParallelCoordinatesPlotColumn(
            wr.Config(knob.column),
            display_name=knob.column.removeprefix("sweep/"),
            log=_is_log(knob),
        )
        for knob in sweep.knobs
    ]
    columns += [
        wr.ParallelCoordinatesPlotColumn(
            wr.SummaryMetric(f"test/{metric}"), display_name=METRICS[metric]
        )
        for metric in sweep.metrics
    ]
    panels.append(wr.ParallelCoordinatesPlot(title="Knob and outcome", columns=columns))
    return panels


def _is_log(knob: Knob) -> bool | None:
    return True if knob.axis == "logarithmic" else None


def _curve(metric: str) -> Any:
    import wandb_workspaces.reports.v2 as wr

    return wr.LinePlot(
        title=METRICS[metric],
        x=STEP,
        y=[f"val/{metric}"],
        title_x="step",
        groupby=wr.Config(_POINT),
        groupby_aggfunc="mean",
        groupby_rangefunc="minmax",
        max_runs_to_show=100,
    )


def _media(key: str) -> Any:
    """A grid with a column for each run, so that matched inputs stand side by side."""
    import wandb_workspaces.reports.v2 as wr

    name = key.partition("/")[2].replace("_", " ")
    return wr.MediaBrowser(
        title=name, media_keys=[key], mode="grid", grid_x_axis="run", grid_y_axis="step"
    )


def _laid_out(panels: Sequence[Any]) -> list[Any]:
    """Two beside each other, media over the whole width of 24 columns."""
    import wandb_workspaces.reports.v2 as wr

    for number, panel in enumerate(panels):
        if isinstance(panel, wr.MediaBrowser):
            panel.layout = wr.Layout(x=0, y=10 * number, w=24, h=10)
        else:
            panel.layout = wr.Layout(x=12 * (number % 2), y=8 * (number // 2), w=12, h=8)
    return list(panels)
