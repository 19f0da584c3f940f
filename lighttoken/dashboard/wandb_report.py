"""A W&B workspace and a W&B report of a project, as code: how every codec stands at every ratio."""

from typing import Any

from lighttoken.config.schema import has_wandb_key
from lighttoken.errors import LighttokenError

TITLE = "lighttoken: codecs against ratio"
COLUMNS = ("score", "retention", "ratio", "bytes", "nmse")


def publish(entity: str | None, project: str) -> list[str]:
    """Save the workspace and the report of a project; returns their addresses. `entity` None: the user's default.

    Raises LighttokenError without the package, without a key and for what W&B refuses.
    """
    _interfaces()
    if not has_wandb_key():
        raise LighttokenError("a W&B workspace needs a key: run wandb login, or set WANDB_API_KEY")
    import wandb

    try:
        owner = entity or str(wandb.Api().default_entity)
        return [make(owner, project).save().url for make in (workspace, report)]
    except (wandb.errors.Error, ValueError, OSError) as error:
        raise LighttokenError(f"W&B refuses {entity}/{project}: {' '.join(str(error).split())}") from error


def workspace(entity: str, project: str) -> Any:
    """The workspace: runs grouped by codec and ratio, and sections for scores, the table's error and the training."""
    ws, _ = _interfaces()
    scores, errors, curves = _panels()
    sections = [("Score against ratio", scores), ("The table", errors), ("Training", curves)]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=TITLE,
        auto_generate_panels=True,  # the figures of single runs below ours
        sections=[ws.Section(name=name, panels=panels, is_open=True) for name, panels in sections],
        runset_settings=ws.RunsetSettings(
            groupby=[ws.Config("task"), ws.Config("codec"), ws.Config("ratio")],
            pinned_columns=[f"summary:{name}" for name in COLUMNS],
        ),
    )


def report(entity: str, project: str) -> Any:
    """The report: the same panels with words in between."""
    _, wr = _interfaces()
    scores, errors, curves = _panels()

    def grid(panels: list[Any]) -> Any:
        runs = wr.Runset(
            entity=entity, project=project, name="by codec and ratio", groupby=["config.codec", "config.ratio"]
        )
        return wr.PanelGrid(runsets=[runs], panels=panels)

    return wr.Report(
        entity=entity,
        project=project,
        title=TITLE,
        description="Compressed token-embedding tables: what each codec keeps of the score at each ratio",
        blocks=[
            wr.H1("Score against ratio"),
            wr.P(
                "The ratio is V x d x 4 bytes over the bytes on disk. Retention is the score over that of the run with "
                "nothing compressed, the same recipe and the same seed."
            ),
            grid(scores),
            wr.H1("The table"),
            wr.P("nmse: mean squared error of the table over its variance. A low one is not yet a high score."),
            grid(errors),
            wr.H1("Training"),
            wr.P("A unit saturates when it fires for nearly every row, or for nearly none."),
            grid(curves),
        ],
    )


def _panels() -> tuple[list[Any], list[Any], list[Any]]:
    _, wr = _interfaces()

    def against_ratio(name: str, log_y: bool = False) -> Any:
        metric = wr.SummaryMetric(name)
        return wr.ScatterPlot(title=name, x=wr.SummaryMetric("ratio"), y=metric, log_x=True, log_y=log_y)

    scores = [
        against_ratio("score"),
        against_ratio("retention"),
        wr.ParallelCoordinatesPlot(
            title="what was asked, what came out",
            columns=[
                wr.ParallelCoordinatesPlotColumn(metric=wr.Config("codec")),
                *(wr.ParallelCoordinatesPlotColumn(metric=wr.SummaryMetric(name)) for name in COLUMNS),
            ],
        ),
    ]
    errors = [
        against_ratio("nmse", log_y=True),
        against_ratio("bytes", log_y=True),
        wr.WeavePanelSummaryTable(table_name="error by frequency"),
    ]
    curves = [
        wr.LinePlot(title="training loss", x="trainer/global_step", y=["train/loss"]),
        wr.LinePlot(title="saturation by stage", x="trainer/global_step", metric_regex="stage.*/saturation"),
        wr.LinePlot(title="validation loss", x="trainer/global_step", y=["val/loss"]),
    ]
    return scores, errors, curves


def _interfaces() -> tuple[Any, Any]:
    """The two modules of wandb-workspaces."""
    try:
        import wandb_workspaces.reports.v2 as reports
        import wandb_workspaces.workspaces as workspaces
    except ImportError as error:
        raise LighttokenError("a W&B workspace needs wandb-workspaces; pip install 'lighttoken[wandb]'") from error
    return workspaces, reports
