"""python -m lighttoken: the commands of the package."""

import sys

from lighttoken.version import __version__

COMMANDS = """lighttoken makes the token-embedding table of a pretrained language model 25 to 100+ times smaller.

  lighttoken-compress  a table to an artifact, or a model to a checkpoint   python -m lighttoken.compress
  lighttoken-train     compress, fine-tune on a task, score, record         python -m lighttoken.train
  lighttoken-inspect   what an artifact or a checkpoint holds               python -m lighttoken.show
  lighttoken-report    records as a dashboard, figures and tables           python -m lighttoken.report

COMMAND --help says more. In Python: lighttoken.compress_model(model, tokenizer, ratio=25)"""


def main() -> None:
    """Entry point. Exit code 2 for a command that is written as an argument."""
    if (word := "".join(sys.argv[1:2])) and not word.startswith("-"):
        print(f"error: lighttoken has no argument {word}; write python -m lighttoken.{word}", file=sys.stderr)
        sys.exit(2)
    print(f"lighttoken {__version__}" if "--version" in sys.argv[1:] else COMMANDS)


if __name__ == "__main__":
    main()
