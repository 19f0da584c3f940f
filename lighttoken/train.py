"""python -m lighttoken.train: compress, fine-tune, evaluate, record. See conf/train.yaml."""

from lighttoken.config.command import door
from lighttoken.run.screen import quiet_imports


def main() -> None:
    """Entry point."""
    quiet_imports()
    from lighttoken.run.pipeline import train

    door("train", train)


if __name__ == "__main__":
    main()
