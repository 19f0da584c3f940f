"""The score of `task=sts` with any rows as the table of a backbone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
from torch import Tensor
from torchmetrics.regression import SpearmanCorrCoef
from transformers import PreTrainedModel

from lighttoken.backbone.source import Backbone
from lighttoken.run.libraries import quiet_libraries
from lighttoken.tasks.similarity import SentenceSimilarity


def spearman(
    backbone: Backbone,
    rows: Tensor,
    file: Path,
    change: Callable[[PreTrainedModel], None] | None = None,
    **settings: Any,
) -> float:
    """Zero-shot, on the pairs of a file with the columns of STS-B. `settings` are those of the task.

    `change` is called with the model before it is scored.
    """
    quiet_libraries(progress=False)
    columns, metrics = ["sentence1", "sentence2"], {"spearman": SpearmanCorrCoef()}
    data = SentenceSimilarity(backbone.tokenizer(), "sts", columns, metrics, file=str(file), **settings)
    data.setup()
    model = data.make_model(backbone)
    model.get_input_embeddings().weight.data.copy_(rows)
    if change is not None:
        change(model)
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    (scores,) = L.Trainer(accelerator="cpu", **quiet).validate(data.scorer(model, model), data, verbose=False)
    return scores["val/spearman"]
