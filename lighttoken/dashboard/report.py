"""The report of runs: write it once, or again and again while runs go on, and serve it."""

import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from lighttoken.artifact.files import make_directory
from lighttoken.dashboard.gather import Run, gather
from lighttoken.dashboard.serve import serve
from lighttoken.dashboard.tables import write_tables
from lighttoken.errors import LighttokenError
from lighttoken.run.interruption import Interrupted

WATCH_SECONDS = 10.0  # between two looks at the folders, and between two reloads of the page


def report(
    folders: Sequence[Path], output: Path, watch: bool = False, port: int | None = None, paper: bool = False
) -> None:
    """Write the page, the figures and the tables; with `paper`, figures for a paper too, in `paper/` of the output.

    With `watch` or a `port` go on until Ctrl-C.

    Raises LighttokenError if a folder does not exist, if there are no records and `watch` is off, if a library is
    missing, and if the port is taken.
    """
    for folder in folders:
        if not folder.is_dir():
            raise LighttokenError(f"there is no folder {folder}; give the output_dir of your runs")
    left_out: dict[Path, str] = {}
    runs = gather(folders, left_out)
    if not runs and not watch:
        names = " and ".join(map(str, folders))
        if left_out:
            raise LighttokenError(f"every record.json under {names} is left out, {len(left_out)} in all; see above")
        raise LighttokenError(f"there is no record.json under {names}; run python -m lighttoken.train first")
    # The page links to run folders. The server shows the folder that holds both, if the page lies in the first folder.
    root = folders[0] if output.resolve().is_relative_to(folders[0].resolve()) else output
    linked = root if port is not None else None
    page, *others = write_report(runs, output, WATCH_SECONDS if watch else None, linked, left_out, paper=paper)
    size = page.stat().st_size / 1e6
    counts = Counter(run.record["status"] for run in runs)
    states = ", ".join(f"{count} {status}" for status, count in counts.most_common())
    print(f"{len(runs)} runs ({states}): {page} ({size:.1f} MB) and {len(others)} figures and tables beside it")
    if left_out:
        print(f"left out: {len(left_out)} odd records, which the page names")
    server = None if port is None else serve(root, port)
    if server:
        address = f"http://127.0.0.1:{server.server_port}/{page.resolve().relative_to(root.resolve()).as_posix()}"
        print(f"open {address}, stop with Ctrl-C", flush=True)
    try:
        changes = _changes(folders)
        while watch or server:
            time.sleep(WATCH_SECONDS)
            if watch and (now := _changes(folders)) != changes:
                changes, left_out = now, {}
                write_report(gather(folders, left_out), output, WATCH_SECONDS, linked, left_out, page_only=True)
    except (KeyboardInterrupt, Interrupted):  # the end that the printed line names
        if watch:  # the last page does not reload itself
            left_out = {}
            write_report(gather(folders, left_out), output, None, linked, left_out, paper=paper)
    finally:
        if server:
            server.shutdown()


def write_report(
    runs: Sequence[Run],
    output: Path,
    refresh: float | None,
    root: Path | None,
    left_out: Mapping[Path, str] = MappingProxyType({}),
    page_only: bool = False,
    paper: bool = False,
) -> list[Path]:
    """Write the page (see `write_page`) and, without `page_only`, the figures and tables; returns the files."""
    try:
        from lighttoken.dashboard.charts import make_charts
        from lighttoken.dashboard.figures import write_figures, write_paper_figures
        from lighttoken.dashboard.page import write_page
    except ModuleNotFoundError as error:
        library = str(error.name).partition(".")[0]
        raise LighttokenError(f"the report needs {library}; run pip install 'lighttoken[report]'") from error
    make_directory(output)
    charts = make_charts(runs)
    page = write_page(runs, charts, output, refresh, root, left_out)
    if page_only:
        return [page]
    for_paper = write_paper_figures(charts, output / "paper") if paper else []
    return [page, *write_figures(charts, output), *for_paper, *write_tables(runs, output)]


def _changes(folders: Sequence[Path]) -> dict[Path, int]:
    """When every record and every file of curves was last written, in nanoseconds."""
    times: dict[Path, int] = {}
    for folder in folders:
        for directory, _, files in os.walk(folder):
            for path in (Path(directory, name) for name in ("record.json", "metrics.csv") if name in files):
                try:
                    times[path] = path.stat().st_mtime_ns
                except FileNotFoundError:  # a run folder that was just deleted
                    continue
    return times
