"""The page: one HTML file with its styles, its script, plotly.js and the data in it; nothing is fetched."""

import base64
import gzip
import html
import json
import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from plotly.offline import get_plotlyjs

from lighttoken.artifact.files import write_atomically
from lighttoken.dashboard.charts import Chart, place, retention_text, style
from lighttoken.dashboard.gather import Point, Run, flatten, points

PAGE_FILE = "index.html"
HERE = Path(__file__).parent
KEPT = (  # of a record, as it is
    *("status", "task", "model", "codec", "seed", "ratio_asked", "ratio", "started", "error", "metrics", "seconds"),
    *("table_bytes", "artifact_bytes", "model_bytes", "stored_bytes", "peak_memory_bytes", "peak_gpu_memory_bytes"),
    *("artifact", "artifact_reused", "hardware", "versions", "git_commit"),
)


def write_page(
    runs: Sequence[Run], charts: Sequence[Chart], folder: Path, refresh: float | None, root: Path | None
) -> Path:
    """Write index.html whole or not at all and return its path.

    With `refresh` the page reloads itself every so many seconds. Links to run folders are relative to `folder`; of
    those outside `root`, if given, there are none, for a server that shows nothing above it.
    """
    data = {
        "refresh": refresh,
        "runs": [run_data(run, folder, root) for run in runs],
        "points": [point_data(point) for point in sorted(points(runs), key=_order)],
        "charts": [asdict(chart) for chart in charts],
    }
    # Compressed and in base 64: small, and no character of a record can end the script element or start another.
    packed = gzip.compress(json.dumps(_finite(data), separators=(",", ":")).encode(), mtime=0)
    counts = Counter(str(run.record["status"]) for run in runs)
    told = f"{len(runs)} runs: {', '.join(f'{count} {status}' for status, count in sorted(counts.items()))}"
    parts = {
        "STYLE": (HERE / "page.css").read_text(),
        "SCRIPT": (HERE / "page.js").read_text(),
        "PLOTLY": get_plotlyjs(),
        "DATA": base64.b64encode(packed).decode(),
        "WRITTEN": html.escape(f"{told if runs else 'no runs yet'}; written {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"),
        "SECTIONS": "\n".join(_section(chart) for chart in charts),
    }
    template = (HERE / "page.html").read_text()
    pieces = template.split("@@")  # text, name, text, name, ..., text
    page = "".join(parts[piece] if i % 2 else piece for i, piece in enumerate(pieces))
    path = folder / PAGE_FILE
    write_atomically(path, page.encode())
    return path


def run_data(run: Run, folder: Path, root: Path | None) -> dict[str, Any]:
    """What the page knows of a run, as JSON values."""
    record = run.record
    directory = Path(record["directory"]).resolve()
    linked = root is None or directory.is_relative_to(root.resolve())
    return {name: record.get(name) for name in KEPT} | {
        "id": run.name,
        "label": run.label,
        "colour": style(run.codec)["colour"],
        "folder": str(directory),
        "link": quote(os.path.relpath(directory, folder.resolve())) + "/" if linked else None,
        "score": run.score,
        "retention": run.retention,
        "nmse": 0.0 if run.codec == "none" else record["compression"].get("nmse"),
        "total_seconds": sum(value for value in record["seconds"].values() if isinstance(value, (int, float))),
        "bytes_by_part": record["compression"].get("bytes_by_part") or {},
        "compression": {k: v for k, v in flatten(record["compression"]).items() if isinstance(v, (int, float, str))},
        "config": {k: json.dumps(v) for k, v in flatten(record["config"]).items()},
        "curves": run.curves,
    }


def point_data(point: Point) -> dict[str, Any]:
    """A line of the table of scores over seeds, as JSON values."""
    task, model, recipe = point.runs[0].group
    return {
        "task": ", ".join(part for part in (task, recipe) if part),
        "model": model,
        "label": point.runs[0].label,
        "colour": style(point.runs[0].codec)["colour"],
        "ratio": point.ratio,
        "n": len(point.scores),
        "score": point.mean,
        "std": point.std,
        "retention": point.retention["retention"] if point.runs[0].codec != "none" else None,
        "retention_text": retention_text(point) if point.runs[0].codec != "none" else "",
    }


def _order(point: Point) -> tuple[Any, ...]:
    run = point.runs[0]
    return *run.group, place(run.codec), run.label, point.ratio


def _section(chart: Chart) -> str:
    name, title, caption = (html.escape(text) for text in (chart.name, chart.title, chart.caption))
    body = (
        f'<div class="legend"></div><div class="panels columns-{chart.columns}"></div>'
        if chart.panels
        else _empty(chart.empty)
    )
    return (
        f'<section id="{name}" aria-labelledby="{name}-title"><h2 id="{name}-title">{title}</h2>'
        f'<p class="caption">{caption}</p>{body}</section>'
    )


def _empty(reason: str) -> str:
    return f'<p class="empty">{html.escape(reason)}</p>'


def _finite(value: Any) -> Any:
    """With null for what JSON has no word for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return value
