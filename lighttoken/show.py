"""python -m lighttoken.show FOLDER [--verify SOURCE]: what is in an artifact or a compressed checkpoint."""

import argparse
import sys
from pathlib import Path

from lighttoken.errors import LighttokenError


def main() -> None:
    """Entry point. Exit code 1: the table is not what it says it is; 2: something cannot be read."""
    parser = argparse.ArgumentParser(
        prog="python -m lighttoken.show", description="What is in an artifact or a compressed checkpoint."
    )
    parser.add_argument("folder", type=Path, help="what lighttoken.compress wrote")
    parser.add_argument("--verify", metavar="SOURCE", help="compare with this: a checkpoint's folder or a model= name")
    arguments = parser.parse_args()
    from lighttoken.run.inspection import show

    try:
        same = show(arguments.folder, arguments.verify)
    except LighttokenError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
