"""`--help`: the values of a command with the comments that stand beside them in the YAML files."""

import re
from collections.abc import Iterator
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

KEY = re.compile(r"(?P<indent> *)(?P<key>\w+):(?:.*?\s# (?P<comment>.*))?")
COLUMN = 40  # where comments start


def explained_values(folder: str, *, _root_: DictConfig) -> str:
    """The composed config as YAML: comments on the right, the comment at the head of a group's file above the group.

    A resolver for `hydra.help.template`. Hydra fills dollar signs of that template in, so they are doubled here.
    """
    keys = [str(key) for key in _root_ if key != "hydra"]
    groups = [key for key in keys if isinstance(_root_._get_node(key), DictConfig)]
    values = [key for key in keys if key not in groups]
    heads, comments = _read_comments(folder, _root_)
    lines = []
    for part in (values, groups):
        for path, line in _with_paths(OmegaConf.to_yaml(OmegaConf.masked_copy(_root_, part))):
            indent = " " * (len(line) - len(line.lstrip()))
            if path in groups:
                lines.append("")
            lines += [f"{indent}{head}" for head in heads.get(path, ())]
            lines.append(f"{line:<{COLUMN}}# {comments[path]}" if path in comments else line)
    return "\n".join(lines).replace("$", "$$")


def _read_comments(folder: str, config: DictConfig) -> tuple[dict[str, list[str]], dict[str, str]]:
    """The comments of all YAML files that a config is composed of: at the head of files, and beside keys by path."""
    loader = GlobalHydra.instance().config_loader()
    overrides = list(config.hydra.overrides.task)
    heads: dict[str, list[str]] = {}
    comments: dict[str, str] = {}
    for part in loader.compute_defaults_list(config.hydra.job.config_name, overrides, RunMode.RUN).defaults:
        file = Path(folder, f"{part.config_path}.yaml")
        if not file.is_file():  # a schema, or a config of Hydra itself
            continue
        text, package = file.read_text(), part.package or ""
        head = [line for line in text.split("\n\n")[0].splitlines() if line.startswith("# ")]
        heads[package or str(part.config_path).partition("/")[0]] = [line for line in head if "@package" not in line]
        for path, line in _with_paths(text):
            match = KEY.match(line)
            if path and match and match["comment"]:
                comments[f"{package}.{path}" if package else path] = match["comment"]
    return heads, comments


def _with_paths(text: str) -> Iterator[tuple[str, str]]:
    """The lines of a YAML text with the dotted path of their key; the path is empty for a line without a key."""
    parents: list[str] = []
    for line in text.rstrip("\n").split("\n"):
        if match := KEY.match(line):
            parents = [*parents[: len(match["indent"]) // 2], match["key"]]
        yield ".".join(parents) if match else "", line
