"""python -m lighttoken.compress: compress a table and write the artifact. See conf/compress.yaml."""

from lighttoken.configs import door
from lighttoken.screen import quiet_imports


def main() -> None:
    """Entry point."""
    quiet_imports()
    from lighttoken.compression import compress

    door("compress", compress)


if __name__ == "__main__":
    main()
