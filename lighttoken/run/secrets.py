"""Keys and passwords, kept out of records and logs."""

import os
import re

from lighttoken.errors import LighttokenError

KEYS = ("WANDB_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN")  # variables of the environment
MIN_LENGTH = 16  # of a key; what is shorter may be a word that a record has for another reason
# A user name, with or without a password, in a URL; a path that was made of a URL has one slash.
_CREDENTIALS = re.compile(r"\b([a-zA-Z][a-zA-Z0-9+.-]+:/{1,3})[^/\s@\"']+@")


def masked(text: str) -> str:
    """Text with *** for user names and passwords in URLs, and for the keys in the environment."""
    text = _CREDENTIALS.sub(r"\1***@", text)
    for key in filter(None, map(os.environ.get, KEYS)):
        text = text.replace(key, "***") if len(key) >= MIN_LENGTH else text
    return text


def refuse_secrets(arguments: list[str]) -> None:
    """Raise LighttokenError if an argument of the command line holds what `masked` hides.

    Hydra copies the command line into files of the run before any code of this package sees it.
    """
    for argument in arguments:
        if masked(argument) != argument:
            raise LighttokenError(
                f"{masked(argument)[:120]}: the run's files would keep the secret that stands for ***; leave it out "
                "and use the environment (HF_TOKEN, WANDB_API_KEY) or ~/.netrc"
            )
