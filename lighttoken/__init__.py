"""lighttoken: token-embedding tables made 25 to 100+ times smaller, once, for any task and any architecture."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lighttoken.artifact import CompressedTable, load_table
    from lighttoken.backbone import swap_embedding
    from lighttoken.codec import compress_table, compress_to_quality
    from lighttoken.embedding import CompressedEmbedding
    from lighttoken.errors import LighttokenError
    from lighttoken.pipeline import measure_importance

__version__ = "0.1.0"

__all__ = [
    "CompressedEmbedding",
    "CompressedTable",
    "LighttokenError",
    "compress_table",
    "compress_to_quality",
    "load_table",
    "measure_importance",
    "swap_embedding",
]

_HOMES = {
    "CompressedEmbedding": "lighttoken.embedding",
    "CompressedTable": "lighttoken.artifact",
    "LighttokenError": "lighttoken.errors",
    "compress_table": "lighttoken.codec",
    "compress_to_quality": "lighttoken.codec",
    "load_table": "lighttoken.artifact",
    "measure_importance": "lighttoken.pipeline",
    "swap_embedding": "lighttoken.backbone",
}


def __getattr__(name: str) -> Any:
    # PEP 562: `import lighttoken` stays light; Lightning and transformers load with the first name that needs them.
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'lighttoken' has no attribute {name!r}")
