"""Running a command: its config, its checks, its errors, its exit code."""

import contextlib
import functools
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import hydra
import hydra.utils
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from lighttoken.config.messages import one_line, shows_config
from lighttoken.config.schema import SCHEMAS, config_dir, register
from lighttoken.errors import LighttokenError
from lighttoken.run.process import rank
from lighttoken.run.secrets import refuse_secrets
from lighttoken.version import __version__


def run_command(config_name: str, run: str) -> None:
    """Compose the config of a command, check it, call `run`, the path of a function that takes the config.

    What takes long to import is imported once the config is composed: `--help` and a misspelt key are answered at once.
    An error of the user is one line and exit code 2. With HYDRA_FULL_ERROR=1 in the environment every error comes with
    its traceback.
    """
    if "--version" in sys.argv[1:]:
        print(f"lighttoken {__version__}")
        return
    register()
    show_traceback = os.environ.get("HYDRA_FULL_ERROR", "0") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # keeps Hydra from printing errors its own way, in several lines
    message = functools.partial(one_line, config_name=config_name)

    def checked(config: DictConfig) -> Any:
        from lighttoken.config.check import check, check_sources

        check(config)
        check_sources(config)
        return hydra.utils.get_method(run)(config)

    @_one_line_errors(message, show_traceback)
    def job(config: DictConfig) -> Any:
        if HydraConfig.get().mode == RunMode.MULTIRUN and "skip_done" in config:
            from lighttoken.run.sweep import run_here

            return run_here(config, checked, message)
        return checked(config)

    with _one_line_errors(message, show_traceback):
        refuse_secrets(sys.argv[1:])
        refuse_dashes(sys.argv[1:], config_name)
        sys.argv[1:] = sweep_first(with_replay(sys.argv[1:]))
        with quiet_process() if rank() else contextlib.nullcontext():
            hydra.main(version_base="1.3", config_path=config_dir(), config_name=config_name)(job)()


def refuse_dashes(arguments: Sequence[str], config_name: str) -> None:
    """Raise LighttokenError for a key that is written as an option: --ratio 25 instead of ratio=25."""
    keys = get_type_hints(SCHEMAS[config_name])
    for word, following in zip(arguments, [*arguments, ""][1:], strict=True):
        key, _, value = word.lstrip("-").partition("=")
        if word.startswith("--") and key in keys:
            raise LighttokenError(f"{word} has dashes; write {key}={value or following or 'VALUE'}")


def sweep_first(arguments: Sequence[str]) -> list[str]:
    """The arguments with `-m` before the others: argparse refuses values on both sides of it.

    Raises LighttokenError if `--cfg` is among them.
    """
    rest = [word for word in arguments if word not in ("-m", "--multirun")]
    if len(rest) == len(arguments):
        return rest
    if shows_config(rest):
        raise LighttokenError("--cfg shows the config of one job; leave out -m")
    return ["-m", *rest]


def with_replay(arguments: Sequence[str]) -> list[str]:
    """The arguments, with those of the run's own command in the place of `replay=RUN`; what follows overrides them.

    A job of a ready-made sweep is run alone, unless `-m` is among the arguments.
    Raises LighttokenError if RUN is not the folder of a run.
    """
    replayed: list[str] = []
    for argument in arguments:
        if not argument.startswith("replay="):
            replayed.append(argument)
            continue
        file = Path(argument.removeprefix("replay=")) / ".hydra" / "overrides.yaml"
        if not file.is_file():
            raise LighttokenError(f"{argument} is not the folder of a run: it has no .hydra/overrides.yaml")
        replayed += OmegaConf.to_container(OmegaConf.load(file))  # type: ignore[arg-type]
        if not {"-m", "--multirun"} & {*arguments}:
            replayed.append("hydra.mode=RUN")
    return replayed


@contextlib.contextmanager
def quiet_process() -> Iterator[None]:
    """Inside, the command has a folder that nobody sees, and logs errors alone: one of several processes of a run."""
    with tempfile.TemporaryDirectory() as folder:
        logs = ["hydra/job_logging=stdout", "hydra.job_logging.root.level=ERROR"]
        sys.argv += [f"hydra.run.dir={folder}", "hydra.output_subdir=null", *logs]
        yield


@contextlib.contextmanager
def _one_line_errors(message: Callable[[BaseException], str | None], show_traceback: bool) -> Iterator[None]:
    """Turn errors of the user into a line and exit code 2."""
    try:
        yield
    except Exception as error:
        line = message(error)
        if show_traceback or line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        sys.exit(2)
