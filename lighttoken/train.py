"""python -m lighttoken.train: compress, fine-tune, evaluate, record. See conf/train.yaml."""

from lighttoken.run.interruption import interruptible
from lighttoken.run.libraries import prepare_imports


def main() -> None:
    """Entry point."""
    with interruptible():  # from here on, as the imports take seconds
        prepare_imports()
        from lighttoken.config.command import run_command

        run_command("train", "lighttoken.run.pipeline.train")


if __name__ == "__main__":
    main()
