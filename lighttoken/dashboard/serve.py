"""Writing the report of runs, watching them, serving the page on this machine."""

import os
import sys
import threading
import time
from collections.abc import Sequence
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

from lighttoken.artifact.files import make_directory
from lighttoken.errors import LighttokenError

if TYPE_CHECKING:
    from lighttoken.dashboard.gather import Run

WATCH_SECONDS = 10.0  # between two looks, and between two reloads of the page


def report(folders: Sequence[Path], output: Path, watch: bool = False, port: int | None = None) -> None:
    """Write the page, the figures and the tables; then watch and serve until interrupted, if so asked.

    Raises LighttokenError for a folder that is not there or, unless it is watched, has no records; for a missing
    library; and for a port that is taken.
    """
    for folder in folders:
        if not folder.is_dir():
            raise LighttokenError(f"there is no folder {folder}; give the output_dir of your runs")
    try:
        from lighttoken.dashboard.charts import make_charts
        from lighttoken.dashboard.figures import write_figures
        from lighttoken.dashboard.gather import gather
        from lighttoken.dashboard.page import write_page
        from lighttoken.dashboard.tables import write_tables
    except ModuleNotFoundError as error:
        library = str(error.name).partition(".")[0]
        raise LighttokenError(f"the report needs {library}; run pip install 'lighttoken[report]'") from error
    # Run folders are linked, so the server shows what holds them, as long as the page lies in there.
    root = folders[0] if output.resolve().is_relative_to(folders[0].resolve()) else output
    shown = root if port is not None else None

    def write(runs: "list[Run]", refresh: float | None) -> Path:
        return write_page(runs, make_charts(runs), output, refresh, shown)

    runs = gather(folders)
    if not runs and not watch:
        names = " and ".join(map(str, folders))
        raise LighttokenError(f"there is no record.json under {names}; run python -m lighttoken.train first")
    make_directory(output)
    page = write(runs, WATCH_SECONDS if watch else None)
    files = [*write_figures(make_charts(runs), output), *write_tables(runs, output)]
    print(
        f"{len(runs)} runs: {page} ({page.stat().st_size / 1e6:.1f} MB) and {len(files)} figures and tables beside it"
    )
    server = None if port is None else serve(root, port)
    if server:
        place = page.resolve().relative_to(root.resolve()).as_posix()
        print(f"open http://127.0.0.1:{server.server_port}/{place}, stop with Ctrl-C", flush=True)
    try:
        seen = _stamps(folders)
        while watch or server:
            time.sleep(WATCH_SECONDS)
            if watch and (now := _stamps(folders)) != seen:
                seen, runs = now, gather(folders)
                write(runs, WATCH_SECONDS)
    except KeyboardInterrupt:
        if watch:  # a page that reloads itself no more, and figures and tables of what there is now
            runs = gather(folders)
            write(runs, None)
            write_figures(make_charts(runs), output)
            write_tables(runs, output)
    finally:
        if server:
            server.shutdown()


def serve(root: Path, port: int) -> ThreadingHTTPServer:
    """Serve a folder on 127.0.0.1 in a thread; port 0 takes any free one. Raises LighttokenError if it is taken."""
    try:
        server = _Server(("127.0.0.1", port), partial(_Handler, directory=str(root)))
    except (OSError, OverflowError) as error:
        raise LighttokenError(
            f"port {port} of 127.0.0.1 cannot be had ({error}); give another: --serve PORT"
        ) from error
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Silent about a browser that left before it had the whole page; else a traceback."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(SimpleHTTPRequestHandler):
    """Files, for those who came by a local name: a foreign one that points here is another page's trick."""

    def send_head(self):  # type: ignore[no-untyped-def]
        if self.headers.get("Host", "").rpartition(":")[0] not in ("127.0.0.1", "localhost"):
            self.send_error(403, "not a local name")
            return None
        return super().send_head()

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-store")
        super().end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Silent: the terminal belongs to the report."""


def _stamps(folders: Sequence[Path]) -> dict[Path, int]:
    """When each record and each file of curves was last written."""
    found: dict[Path, int] = {}
    for folder in folders:
        for inner, _, files in os.walk(folder):
            for path in (Path(inner, name) for name in ("record.json", "metrics.csv") if name in files):
                try:
                    found[path] = path.stat().st_mtime_ns
                except FileNotFoundError:  # a run folder that was just deleted
                    continue
    return found
