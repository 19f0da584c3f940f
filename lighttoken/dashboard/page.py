"""The page: one HTML file with its styles, its scripts, plotly.js and the data in it; nothing is fetched."""

import base64
import gzip
import html
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

from plotly.offline import get_plotlyjs
from plotly.utils import PlotlyJSONEncoder

from lighttoken.artifact.files import write_atomically
from lighttoken.dashboard.charts import Chart
from lighttoken.dashboard.gather import Point, Run, best_of, constant_score, grouped, points
from lighttoken.dashboard.settings import dotted, json_text
from lighttoken.dashboard.significance import comparisons
from lighttoken.dashboard.style import CURVE_COLOURS, legend_position
from lighttoken.dashboard.tables import by_ratio
from lighttoken.run.reading import path_text, plain_text

PAGE_FILE = "index.html"
MAX_NAMED = 100  # records that are left out
WEB = Path(__file__).parent / "web"
SCRIPTS = (
    "elements.js",
    "charts.js",
    "tables.js",
    "run.js",
    "answer.js",
    "page.js",
)  # one script on the page, in this order
RECORD_FIELDS = (  # which the page has unchanged
    *("status", "task", "model", "codec", "seed", "ratio_asked", "ratio", "started", "error", "metrics", "seconds"),
    *("table_bytes", "artifact_bytes", "model_bytes", "stored_bytes", "peak_memory_bytes", "peak_gpu_memory_bytes"),
    *("artifact", "artifact_reused", "hardware", "versions", "git_commit"),
)


def write_page(
    runs: Sequence[Run],
    charts: Sequence[Chart],
    folder: Path,
    refresh: float | None = None,
    root: Path | None = None,
    left_out: Mapping[Path, str] = MappingProxyType({}),
) -> Path:
    """Write index.html whole or not at all; returns its path.

    With `refresh` the page reloads itself every `refresh` seconds. Links to run folders are relative to `folder`. With
    `root`, the folder that a server shows, there are no links to run folders outside of it. The page names the records
    that are `left_out`, with the reasons.
    """
    folder, root = folder.resolve(), root and root.resolve()
    settings = sorted(points(runs), key=_table_order)
    answers = [answer_data(group) for group in grouped(settings, lambda point: point.run.group).values()]
    data = {
        "refresh": refresh,
        "answers": [answer for answer in answers if answer["rows"]],
        "palette": CURVE_COLOURS,
        "runs": [run_data(run, folder, root) for run in runs],
        "points": [point_data(point) for point in settings],
        "charts": [asdict(chart) for chart in charts],
    }
    # The encoder writes null for NaN. Base 64 is safe: no text of a record can end the script element or start another.
    text = json.dumps(data, cls=PlotlyJSONEncoder, separators=(",", ":"))
    counts = Counter(str(run.record["status"]) for run in runs)
    summary = f"{len(runs)} runs: {', '.join(f'{count} {status}' for status, count in sorted(counts.items()))}"
    parts = {
        "STYLE": (WEB / "page.css").read_text(),
        "SCRIPT": "\n".join((WEB / name).read_text() for name in SCRIPTS),
        "PLOTLY": get_plotlyjs(),
        "DATA": base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode(),
        "WRITTEN": html.escape(
            f"{summary if runs else 'no runs yet'}; written {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
        ),
        "LEFT_OUT": _note(left_out),
        "SECTIONS": "\n".join(map(_section, charts)),
    }
    pieces = (WEB / "page.html").read_text().split("@@")  # text, name, text, name, ..., text
    page = "".join(parts[piece] if i % 2 else piece for i, piece in enumerate(pieces))
    path = folder / PAGE_FILE
    write_atomically(path, page.encode())
    return path


def run_data(run: Run, folder: Path, root: Path | None) -> dict[str, Any]:
    """A run as JSON values; of resolved paths."""
    record = run.record
    directory = Path(record["directory"])
    has_link = root is None or directory.is_relative_to(root)
    return {name: record.get(name) for name in RECORD_FIELDS} | {
        "id": run.name,
        "label": run.label,
        "recipe": run.recipe,
        "look": run.look,
        "folder": path_text(directory),
        "link": quote(os.fsencode(os.path.relpath(directory, folder))) + "/" if has_link else None,
        "score": run.score,
        "retention": run.retention,
        "nmse": 0.0 if run.codec == "none" else record["compression"].get("nmse"),
        "total_seconds": sum(record["seconds"].values()),
        "bytes_by_part": record["compression"].get("bytes_by_part") or {},
        "compression": {k: v for k, v in dotted(record["compression"]).items() if isinstance(v, (int, float, str))},
        "config": {k: plain_text(json_text(v)) for k, v in dotted(record["config"]).items()},
        "curves": run.curves,
    }


def point_data(point: Point) -> dict[str, Any]:
    """A row of the table of scores over seeds, as JSON values."""
    task, model, recipe = point.run.group
    compressed = point.run.codec != "none"
    return {
        "task": ", ".join(part for part in (task, recipe) if part),
        "model": model,
        "label": point.run.label,
        "look": point.run.look,
        "ratio": point.ratio,
        "n": len(point.scores),
        "score": point.mean,
        "std": point.std,
        "retention": point.retention["retention"] if compressed else None,
        "retention_text": point.retention_text if compressed else "",
    }


def answer_data(group: Sequence[Point]) -> dict[str, Any]:
    """The points of one task, model and recipe as a table of codec by asked ratio, as JSON values.

    `scale` is the retention at the end of a bar. A cell is null without a point.
    """
    _, table = by_ratio((point for point in group if point.run.codec != "none"), _answer_cell)
    references = [point for point in group if point.run.is_reference]
    whole = _answer_cell(best_of(references), is_best=False) if references else None
    ratios = sorted({ratio for row in table.values() for ratio in row})
    looks = {point.run.label: point.run.look for point in group}
    rows = [
        {"label": label, "look": looks[label], "cells": [row.get(ratio) for ratio in ratios]}
        for label, row in table.items()
    ]
    gaps = comparisons(group)
    for point, other, gap in gaps:
        if other is point.reference:
            table[point.run.label][point.run.ratio or 1.0]["difference"] = gap.text
    kept = [cell["retention"] or 0 for row in table.values() for cell in row.values()]
    constant = constant_score(group)
    score = whole["score"] if whole else None
    return {
        "title": group[0].run.title,
        "ratios": ratios,
        "rows": rows,
        "scale": 1.03 * max([1.0, *kept]),
        "leads": [
            f"At {point.run.ratio:g}x: {point.run.label} minus {other.run.label} is {gap.text}."
            for point, other, gap in gaps
            if other is not point.reference
        ],
        "uncompressed": whole,
        "constant": constant,
        "constant_retention": constant / score if score and constant is not None else None,
    }


def _answer_cell(point: Point, is_best: bool) -> dict[str, Any]:
    constant = point.run.constant
    return {
        "score": point.mean,
        "std": point.std,
        "n": len(point.scores),
        "retention": point.retention["retention"],
        "retention_text": point.retention_text,
        "best": is_best,
        "is_constant": constant is not None and point.mean <= constant,
        "bytes": point.run.record["artifact_bytes"],
        "seconds": fmean(sum(run.record["seconds"].values()) for run in point.runs),
    }


def _table_order(point: Point) -> tuple[Any, ...]:
    return *point.run.group, legend_position(point.run.codec), point.run.label, point.ratio


def _note(left_out: Mapping[Path, str]) -> str:
    """The records that are left out, as HTML: a line to open for the paths and reasons."""
    if not left_out:
        return ""
    lines = [html.escape(f"{path_text(path)}: {reason}") for path, reason in sorted(left_out.items())]
    more = [f"and {len(lines) - MAX_NAMED} more"] if len(lines) > MAX_NAMED else []
    items = "".join(f"<li>{line}</li>" for line in lines[:MAX_NAMED] + more)
    heading = "1 odd record is left out" if len(lines) == 1 else f"{len(lines)} odd records are left out"
    return f'<details id="left-out"><summary>{heading}</summary><ul>{items}</ul></details>'


def _section(chart: Chart) -> str:
    name, title, caption, empty = map(html.escape, (chart.name, chart.title, chart.caption, chart.empty))
    body = f'<p class="empty">{empty}</p>'
    if chart.panels:
        body = f'<div class="legend"></div><div class="panels columns-{chart.columns}"></div>'
    return (
        f'<section id="{name}" aria-labelledby="{name}-title"><h2 id="{name}-title">{title}</h2>'
        f'<p class="caption">{caption}</p>{body}</section>'
    )
