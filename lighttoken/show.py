"""python -m lighttoken.show FOLDER [--verify SOURCE]: the content of an artifact or of a compressed checkpoint."""

import argparse
import sys
from pathlib import Path

from lighttoken.errors import LighttokenError
from lighttoken.run.interruption import interruptible
from lighttoken.run.libraries import prepare_imports
from lighttoken.version import __version__


def main() -> None:
    """Entry point. Exit code 1: the table does not match the source; 2: something cannot be read."""
    parser = argparse.ArgumentParser(
        prog="python -m lighttoken.show", description="Show the content of an artifact or of a compressed checkpoint."
    )
    parser.add_argument("folder", type=Path, help="folder that lighttoken.compress has written")
    parser.add_argument(
        "--verify", metavar="SOURCE", help="compare with the original table: a checkpoint's folder or a model= name"
    )
    parser.add_argument("--version", action="version", version=f"lighttoken {__version__}")
    arguments = parser.parse_args()
    with interruptible():
        prepare_imports()
        from lighttoken.config.schema import load_backbone
        from lighttoken.run.inspection import show

        try:
            source = load_backbone(arguments.verify) if arguments.verify else None
            same = show(arguments.folder, source)
        except LighttokenError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
