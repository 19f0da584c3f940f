"""The settings in which runs differ, as text: what tells them apart in a legend, in headings and in tables."""

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any
from zlib import crc32

from lighttoken.run.reading import MAX_NAME
from lighttoken.run.records import CUTS, UNCUT, recipe, source_of

OF_HEALED = "healed"  # settings that only runs with a healed backbone have


def codec_settings(record: dict[str, Any]) -> dict[str, Any]:
    """What a run makes of its table: the codec, what is trained of it, healing, the run that it starts or learns from,
    the output head, the version of lighttoken.
    """
    config = record["config"]
    settings: dict[str, Any] = {name: config[name] for name in ("codec", "backbone_precision") if name in config}
    finetune, heal = (config.get(name) or {} for name in ("finetune", "heal"))
    settings |= {name: finetune.get(name) for name in ("trainable", "distill_weight", "distill_temperature")}
    healed = heal.get("texts") and record["codec"] != "none"
    settings |= {"heal": heal["texts"], OF_HEALED: heal | {"texts": None}} if healed else {"heal": "none"}
    started, teacher = (source_of(config.get(name)) for name in ("init_from", "distill"))
    settings |= {"init_from": started, "distilled": teacher, "tie": record.get("tie")}
    return settings | {"version": record["versions"].get("lighttoken")}


def table_settings(record: dict[str, Any]) -> dict[str, Any]:
    """What an artifact depends on."""
    model = record["config"].get("model") or {}  # folders of one name hold different tables
    source = {name: model.get(name) for name in ("path", "hub_id", "revision")} if isinstance(model, dict) else {}
    return {"codec": record["config"]["codec"], "tie": record.get("tie")} | source


def recipe_settings(record: dict[str, Any]) -> dict[str, Any]:
    """What two runs share whose scores are compared."""
    settings = recipe(record["config"])
    settings.pop("seed", None)
    settings["finetune"] |= {"trainable": None}
    if "limit_rows" in settings and isinstance(settings.get("task"), dict):
        settings["task"].pop("limit_rows", None)  # it follows the other one
    # The same seed draws other numbers on another kind of device, so runs on both are no pairs.
    return settings | {"accelerator": record["hardware"].get("accelerator")}


def differences(settings: Sequence[dict[str, Any]]) -> list[str]:
    """For the settings of every run, those in which the runs differ, as `name=value, name=value`.

    Settings that cut a run short are among them, whether the runs differ or not.
    """
    keys = [json.dumps(config) for config in settings]
    configs = {  # of few kinds among thousands of runs
        key: {path: _text(path, value) for path, value in dotted(config).items()}
        for key, config in dict(zip(keys, settings, strict=True)).items()
    }
    # A name is shortened to its last part, unless two names end the same.
    paths = []
    for path in sorted({path for config in configs.values() for path in config}):
        others = {None} if path.startswith(OF_HEALED) else set()  # of a run that has not this setting
        values = {config.get(path) for config in configs.values()} - others
        if len(values) > 1 or (path in CUTS and not values <= {*UNCUT}):
            paths.append(path)
    short = [path.rpartition(".")[2] for path in paths]
    names = [name if short.count(name) == 1 else path for path, name in zip(paths, short, strict=True)]
    texts = {}
    for key, config in configs.items():
        named = [
            (path, name)
            for path, name in zip(paths, names, strict=True)
            if path in config or not path.startswith(OF_HEALED)
        ]
        parts = [f"{name}={config.get(path, 'null')}" for path, name in named]
        texts[key] = _shortened(", ".join(parts).replace('"', ""))
    return [texts[key] for key in keys]


def dotted(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested dictionary as a flat one: `{"a": {"b": 1}}` becomes `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            flat |= dotted(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def json_text(value: Any) -> str:
    """A value of a record as JSON. Thousands of runs have few different ones."""
    return json.dumps(value, sort_keys=True) if isinstance(value, (dict, list)) else _scalar_text(value)


@lru_cache(maxsize=10_000, typed=True)
def _scalar_text(value: Any) -> str:
    return json.dumps(value)


def _text(path: str, value: Any) -> str:
    """A setting as text; of a class its name alone, which stays the same when the class moves to another module.

    0.0 is 0, but for a cut: 1 batch is not 1.0, all of them.
    """
    value = str(value).rpartition(".")[2] if path.endswith("_target_") else value
    if type(value) is float and value.is_integer() and path not in CUTS:
        value = int(value)
    return json_text(value)


def _shortened(text: str) -> str:
    """A text that fits into a legend. Two texts that differ still do."""
    return text if len(text) <= MAX_NAME else f"{text[: MAX_NAME - 10]}… {crc32(text.encode()):08x}"
