"""lighttoken: token-embedding tables made 25 to 100+ times smaller, once, for any task and any architecture."""

import importlib
import importlib.abc
import importlib.util
import sys
from typing import TYPE_CHECKING, Any

from lighttoken.version import __version__ as __version__

if TYPE_CHECKING:
    from lighttoken.artifact.table import CompressedTable, load_table
    from lighttoken.backbone.embedding import CompressedEmbedding, set_trainable
    from lighttoken.backbone.int32 import Int32Embedding
    from lighttoken.backbone.swap import swap_embedding
    from lighttoken.codec import compress_table
    from lighttoken.codec.quality import compress_to_quality
    from lighttoken.errors import LighttokenError
    from lighttoken.run.healing import Healing
    from lighttoken.run.importance import measure_importance
    from lighttoken.run.in_memory import LighttokenConfig, compress_model

__all__ = [
    "CompressedEmbedding",
    "CompressedTable",
    "Healing",
    "Int32Embedding",
    "LighttokenConfig",
    "LighttokenError",
    "compress_model",
    "compress_table",
    "compress_to_quality",
    "load_table",
    "measure_importance",
    "set_trainable",
    "swap_embedding",
]

_HOMES = {
    "CompressedEmbedding": "lighttoken.backbone.embedding",
    "CompressedTable": "lighttoken.artifact.table",
    "Healing": "lighttoken.run.healing",
    "Int32Embedding": "lighttoken.backbone.int32",
    "LighttokenConfig": "lighttoken.run.in_memory",
    "LighttokenError": "lighttoken.errors",
    "compress_model": "lighttoken.run.in_memory",
    "compress_table": "lighttoken.codec",
    "compress_to_quality": "lighttoken.codec.quality",
    "load_table": "lighttoken.artifact.table",
    "measure_importance": "lighttoken.run.importance",
    "set_trainable": "lighttoken.backbone.embedding",
    "swap_embedding": "lighttoken.backbone.swap",
}


class _OnTransformersImport(importlib.abc.MetaPathFinder):
    """Registers our checkpoints with transformers when it is imported, be it before this package or after it."""

    AT = "transformers.modeling_utils"

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != self.AT:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: Any) -> None:
                execute(module)
                importlib.import_module("lighttoken.backbone.checkpoint")

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if _OnTransformersImport.AT in sys.modules:
    importlib.import_module("lighttoken.backbone.checkpoint")
else:
    sys.meta_path.insert(0, _OnTransformersImport())


def __getattr__(name: str) -> Any:
    # PEP 562: `import lighttoken` stays light; Lightning and transformers load with the first name that needs them.
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'lighttoken' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
