"""A W&B workspace and a W&B report of a project, as code: the score and the error of every codec at every ratio."""

from typing import Any

from lighttoken.config.schema import has_wandb_key
from lighttoken.errors import LighttokenError

TITLE = "lighttoken: codecs against ratio"
SECTIONS = ("Score against ratio", "The table", "Training")
COLUMNS = ("score", "retention", "ratio", "bytes", "nmse")


def publish(project: str) -> list[str]:
    """Save the workspace and the report of `[ENTITY/]PROJECT`; returns their addresses.

    Without an entity it is the user's default. Raises LighttokenError if the package or a key is missing, and for
    what W&B refuses.
    """
    _interfaces()
    if not has_wandb_key():
        raise LighttokenError("a W&B workspace needs a key: run wandb login, or set WANDB_API_KEY")
    import wandb

    entity, _, name = project.rpartition("/")
    try:
        entity = entity or str(wandb.Api().default_entity)
        return [make(entity, name).save().url for make in (workspace, report)]
    except (wandb.errors.Error, ValueError, OSError) as error:
        raise LighttokenError(f"W&B refuses {project}: {' '.join(str(error).split())}") from error


def workspace(entity: str, project: str) -> Any:
    """The workspace: runs grouped by task, codec and ratio, with sections for the scores, the table, the training."""
    ws, _ = _interfaces()
    sections = zip(SECTIONS, _panels(), strict=True)
    return ws.Workspace(
        entity=entity,
        project=project,
        name=TITLE,
        auto_generate_panels=True,  # the figures of single runs, below our sections
        sections=[ws.Section(name=name, panels=panels, is_open=True) for name, panels in sections],
        runset_settings=ws.RunsetSettings(
            groupby=[ws.Config("task"), ws.Config("codec"), ws.Config("ratio")],
            pinned_columns=[f"summary:{name}" for name in COLUMNS],
        ),
    )


def report(entity: str, project: str) -> Any:
    """The report: the same panels with a sentence about each section."""
    _, wr = _interfaces()
    texts = (
        "The ratio is V x d x 4 bytes over the bytes on disk. Retention is the score divided by the score of the "
        "uncompressed run with the same recipe and the same seed.",
        "nmse is the mean squared error of the table divided by its variance. A low nmse does not imply a high score.",
        "A unit is saturated when it fires for nearly every row, or for nearly none.",
    )
    blocks = []
    for title, text, panels in zip(SECTIONS, texts, _panels(), strict=True):
        groups = ["config.codec", "config.ratio"]
        runs = wr.Runset(entity=entity, project=project, name="by codec and ratio", groupby=groups)
        blocks += [wr.H1(title), wr.P(text), wr.PanelGrid(runsets=[runs], panels=panels)]
    return wr.Report(
        entity=entity,
        project=project,
        title=TITLE,
        description="Compressed token-embedding tables: the score that every codec keeps at every ratio",
        blocks=blocks,
    )


def _panels() -> tuple[list[Any], list[Any], list[Any]]:
    """The panels about the scores, the table and the training."""
    _, wr = _interfaces()

    def against_ratio(name: str, log_y: bool = False) -> Any:
        y = wr.SummaryMetric(name)
        return wr.ScatterPlot(title=name, x=wr.SummaryMetric("ratio"), y=y, log_x=True, log_y=log_y)

    scores = [
        against_ratio("score"),
        against_ratio("retention"),
        wr.ParallelCoordinatesPlot(
            title="codecs and their results",
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
    """The modules of wandb-workspaces for workspaces and for reports. Raises LighttokenError if it is missing."""
    try:
        import wandb_workspaces.reports.v2 as reports
        import wandb_workspaces.workspaces as workspaces
    except ImportError as error:
        raise LighttokenError("a W&B workspace needs wandb-workspaces; run pip install 'lighttoken[wandb]'") from error
    return workspaces, reports
