"""Build the W&B workspace and report that compare the runs of a sweep by its settings."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from genlab.errors import ConfigError, GenlabError
from genlab.metrics.names import NAMES, describe
from genlab.tracking.files import STEP

if TYPE_CHECKING:
    import wandb_workspaces.reports.v2 as reports
    import wandb_workspaces.workspaces as workspaces

#: The metrics that compare settings, in the order of the table of metrics.
COMPARED = tuple(name.name for name in NAMES if name.is_compared)

_POINT = "sweep/point"
# The client mistakes characters such as an equals sign for an emoji, and refuses them.
_NOT_IN_A_TITLE = re.compile(r"[^a-zA-Z0-9 ._:,-]")


@dataclass(frozen=True)
class Setting:
    """A swept key with its column on W&B and the kind of axis for its values."""

    column: str
    axis: Literal["linear", "logarithmic", "words"] = "linear"


@dataclass(frozen=True)
class Comparison:
    """The facts about the runs of a sweep that W&B needs to compare them.

    Attributes:
        name: the sweep's, which is the group of its runs on W&B.
        project, entity: those of the runs on W&B.
        settings: the swept keys, the seed excepted.
        metrics: those of `COMPARED` that its runs have.
        quality: measures of the quality of samples and reconstructions, as they are logged, with
            the name of the features at the end.
        pictures, videos: media keys, such as `pictures/samples`.
        has_replicates: True if several runs have the same point.
    """

    name: str
    project: str
    entity: str
    settings: Sequence[Setting]
    metrics: Sequence[str]
    pictures: Sequence[str] = ()
    videos: Sequence[str] = ()
    has_replicates: bool = False
    quality: Sequence[str] = ()


def require() -> None:
    """Check that the package that builds workspaces is installed.

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
    """Return the user or team that the configured key belongs to.

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
    """Build a view of the project that shows only this sweep's runs; it is not saved yet."""
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
    columns = [f"config:{setting.column}.value" for setting in sweep.settings]
    return ws.Workspace(
        entity=sweep.entity,
        project=sweep.project,
        name=_NOT_IN_A_TITLE.sub("-", f"{sweep.name}: comparison"),
        sections=sections,
        settings=ws.WorkspaceSettings(x_axis=STEP, max_runs=100),
        runset_settings=ws.RunsetSettings(
            filters=_of(sweep),
            groupby=[point] if sweep.has_replicates else [],
            order=[expr.Ordering(expr.Config(sweep.settings[0].column))] if sweep.settings else [],
            pinned_columns=[
                "run:state",
                *columns,
                "config:seed.value",
                *(f"summary:test/{metric}" for metric in (*sweep.metrics, *sweep.quality)),
                "summary:verdict",
            ],
        ),
    )


def build_report(sweep: Comparison, question: str | None, answer: str) -> reports.Report:
    """Build a report: the answer, then the same panels under headings; it is not saved yet."""
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
            order=[
                wr.OrderBy(wr.Config(setting.column), ascending=True)
                for setting in sweep.settings[:1]
            ],
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
    """Send a view to W&B; return its address and what happened to the earlier view.

    Args:
        view: the return value of `build_workspace` or `build_report`.
        before: the address of the view to replace, if it still exists under the same title.

    Raises:
        GenlabError: W&B cannot be reached or refuses the view.
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
    """Load the view at an address; None if there is none."""
    try:
        return kind.from_url(address)
    except (ValueError, TypeError):  # the client received an answer without a view
        return None
    except Exception as error:
        answer = getattr(error, "response", None)
        if answer is not None and answer.http_status in (0, 404):  # 0: an error within GraphQL
            return None
        raise GenlabError(f"{address} cannot be updated: {error}") from error


def _title(view: Any) -> str:
    return str(view.title if hasattr(view, "title") else view.name)


def _fill(found: Any, view: Any) -> None:
    """Copy the content of a view into the one that W&B has."""
    report, workspace = ("description", "blocks", "width"), ("sections", "settings")
    for name in report if hasattr(view, "blocks") else (*workspace, "runset_settings"):
        setattr(found, name, getattr(view, name))


def spec_of(view: workspaces.Workspace | reports.Report) -> dict[str, Any]:
    """Return the JSON that saving a view sends."""
    model = view._to_model()
    return dict(json.loads(model.model_dump_json(by_alias=True, exclude_none=True)))


def _of(sweep: Comparison) -> str:
    """Return the filter for the sweep's runs, with equals signs in its name escaped."""
    name = sweep.name.replace("=", "\\x3d")
    return f"Metric('Group') == '{name}'"


def _names(sweep: Comparison) -> str:
    return ", ".join(setting.column.removeprefix("sweep/") for setting in sweep.settings) or "run"


def _sections(sweep: Comparison) -> list[tuple[str, list[Any], int, int]]:
    """List title, panels, columns and rows of every section that is not empty."""
    pictures = [_media(key) for key in sweep.pictures]
    videos = [_media(key) for key in sweep.videos]
    sections = [
        (f"What {_names(sweep)} does", _trade_off(sweep), 2, 2),
        ("Quality of samples", [_bars(metric) for metric in sweep.quality], 3, 2),
        ("Over training", [_curve(m) for m in (*sweep.metrics, *sweep.quality)], 3, 2),
        ("Pictures", pictures, 1, len(pictures)),
        ("Videos", videos, 1, len(videos)),
    ]
    return [section for section in sections if section[1]]


def _trade_off(sweep: Comparison) -> list[Any]:
    import wandb_workspaces.reports.v2 as wr

    panels: list[Any] = []
    if {"reconstruction", "kl"} <= set(sweep.metrics):
        colour = next((setting for setting in sweep.settings if setting.axis != "words"), None)
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
        panels.append(_bars("neg_elbo"))
    columns = [
        wr.ParallelCoordinatesPlotColumn(
            wr.Config(setting.column),
            display_name=setting.column.removeprefix("sweep/"),
            log=_is_log(setting),
        )
        for setting in sweep.settings
    ]
    columns += [
        wr.ParallelCoordinatesPlotColumn(
            wr.SummaryMetric(f"test/{metric}"), display_name=describe(metric).full_title
        )
        for metric in (*sweep.metrics, *sweep.quality)
    ]
    panels.append(wr.ParallelCoordinatesPlot(title="Setting and outcome", columns=columns))
    return panels


def _is_log(setting: Setting) -> bool | None:
    return True if setting.axis == "logarithmic" else None


def _bars(metric: str) -> Any:
    """Return a bar for each point: the mean of its seeds, with its standard error."""
    import wandb_workspaces.reports.v2 as wr

    return wr.BarPlot(
        title=describe(metric).full_title,
        metrics=[wr.SummaryMetric(f"test/{metric}")],
        groupby=wr.Config(_POINT),
        groupby_aggfunc="mean",
        groupby_rangefunc="stderr",
        max_bars_to_show=100,
    )


def _curve(metric: str) -> Any:
    import wandb_workspaces.reports.v2 as wr

    return wr.LinePlot(
        title=describe(metric).full_title,
        x=STEP,
        y=[f"val/{metric}"],
        title_x="step",
        groupby=wr.Config(_POINT),
        groupby_aggfunc="mean",
        groupby_rangefunc="minmax",
        max_runs_to_show=100,
    )


def _media(key: str) -> Any:
    """Return a grid with a column per run, so that equal inputs are side by side."""
    import wandb_workspaces.reports.v2 as wr

    name = key.partition("/")[2].replace("_", " ")
    return wr.MediaBrowser(
        title=name, media_keys=[key], mode="grid", grid_x_axis="run", grid_y_axis="step"
    )


def _laid_out(panels: Sequence[Any]) -> list[Any]:
    """Place two panels in a row, and media over the whole width of 24 columns."""
    import wandb_workspaces.reports.v2 as wr

    for number, panel in enumerate(panels):
        if isinstance(panel, wr.MediaBrowser):
            panel.layout = wr.Layout(x=0, y=10 * number, w=24, h=10)
        else:
            panel.layout = wr.Layout(x=12 * (number % 2), y=8 * (number // 2), w=12, h=8)
    return list(panels)
