"""python -m lighttoken.report [DIR ...]: the records under folders as an HTML page, figures and tables, or in W&B."""

import argparse
import logging
import sys
from pathlib import Path

from lighttoken.errors import LighttokenError
from lighttoken.run.interruption import interruptible
from lighttoken.version import __version__

EPILOG = """example, next to a running sweep:
  python -m lighttoken.report outputs --watch --serve
"""


def main() -> None:
    """Entry point. Exit code 2: there is nothing to show or no place to write it, or a library or a key is missing."""
    parser = argparse.ArgumentParser(
        prog="python -m lighttoken.report",
        description="Gather the records under folders into one self-contained HTML page (index.html), figures (PNG "
        "and SVG) and tables (runs.csv, scores.csv, scores.md, scores.tex) in report/ of the first folder.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folders", type=Path, nargs="*", metavar="DIR", help="folders with runs (default: outputs)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where to write, instead of report/")
    parser.add_argument(
        "--style",
        choices=("page", "paper"),
        default="page",
        help="paper: figures as PDF and SVG for a column of a paper too, in paper/ (default: page)",
    )
    parser.add_argument("--watch", action="store_true", help="write the page again when a record or curve changes")
    parser.add_argument(
        "--serve", type=int, nargs="?", const=8000, metavar="PORT", help="serve it on 127.0.0.1 (default: 8000)"
    )
    parser.add_argument(
        "--wandb",
        metavar="[ENTITY/]PROJECT",
        help="instead, make a workspace and a report of the runs in this W&B project, and print their addresses",
    )
    parser.add_argument("--version", action="version", version=f"lighttoken {__version__}")
    arguments = parser.parse_args()
    logging.basicConfig(format="%(levelname)s: %(message)s")
    folders = arguments.folders or [Path("outputs")]
    with interruptible():
        try:
            if arguments.wandb:
                from lighttoken.dashboard.wandb_report import publish

                print("\n".join(publish(arguments.wandb)))
            else:
                from lighttoken.dashboard.report import report

                output = arguments.output or folders[0] / "report"
                report(folders, output, arguments.watch, arguments.serve, arguments.style == "paper")
        except LighttokenError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)


if __name__ == "__main__":
    main()
