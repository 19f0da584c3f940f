"""python -m lighttoken.train: compress, fine-tune, evaluate, record. See conf/train.yaml."""

from lighttoken.configs import door


def main() -> None:
    """Entry point."""
    from lighttoken.pipeline import train

    door("train", train)


if __name__ == "__main__":
    main()
