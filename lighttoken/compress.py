"""python -m lighttoken.compress: compress a table and write the artifact. See conf/compress.yaml."""

from lighttoken.run.interruption import interruptible
from lighttoken.run.libraries import prepare_imports


def main() -> None:
    """Entry point."""
    with interruptible():  # from here on, as the imports take seconds
        prepare_imports()
        from lighttoken.config.command import run_command

        run_command("compress", "lighttoken.run.compression.compress")


if __name__ == "__main__":
    main()
