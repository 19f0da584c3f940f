"""python -m lighttoken.train: compress, fine-tune, evaluate, record. See conf/train.yaml."""

from lighttoken.configs import door
from lighttoken.screen import quiet_imports


def main() -> None:
    """Entry point."""
    quiet_imports()
    from lighttoken.pipeline import train

    door("train", train)


if __name__ == "__main__":
    main()
