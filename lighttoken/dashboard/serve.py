"""A server of files for a browser on this machine."""

import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from lighttoken.errors import LighttokenError


def serve(root: Path, port: int) -> ThreadingHTTPServer:
    """Serve a folder on 127.0.0.1 in a thread; port 0 takes a free one. Raises LighttokenError if the port is taken.

    What a symbolic link in the folder points to is served only if it lies in the folder.
    """
    try:
        server = _Server(("127.0.0.1", port), partial(_Handler, directory=str(root)))
    except (OSError, OverflowError) as error:
        raise LighttokenError(f"cannot use port {port} of 127.0.0.1 ({error}); give another: --serve PORT") from error
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Print a traceback, but not for a browser that left before it had the whole page."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(SimpleHTTPRequestHandler):
    """Files for requests to a local host name. With another name, a page elsewhere could read them (DNS rebinding)."""

    def send_head(self):  # type: ignore[no-untyped-def]
        if self.headers.get("Host", "").rpartition(":")[0] not in ("127.0.0.1", "localhost"):
            self.send_error(403, "not a local name")
            return None
        if not self._is_inside():
            self.send_error(404, "not a file or folder of the report")
            return None
        return super().send_head()

    def _is_inside(self) -> bool:
        """Whether the requested file or folder, and the page of a folder, lie in the served folder, links followed."""
        asked = Path(self.translate_path(self.path))
        try:
            paths = [path.resolve() for path in (asked, asked / "index.html", asked / "index.htm")]
            root = Path(self.directory).resolve()
            # A pipe or a device would keep the request waiting.
            readable = paths[0].is_dir() or paths[0].is_file()
        except (OSError, ValueError, RuntimeError):  # a name that no file can have, a circle of links
            return False
        return readable and all(path.is_relative_to(root) for path in paths)

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-store")
        super().end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the terminal belongs to the report."""
