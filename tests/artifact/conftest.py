from pathlib import Path

import pytest
import torch

from lighttoken import compress_table, load_table
from lighttoken.artifact.forms import FORMS

SAMPLES = Path(__file__).parents[1] / "samples" / "format_4"


@pytest.fixture(params=FORMS)
def compressed(request):
    """A small table of each form, (600, 16)."""
    if not (SAMPLES / request.param).is_dir():  # a form that is younger than the samples
        return compress_table(torch.randn(600, 16), {"blocks": "gguf"}[request.param], 3.0, progress=False)
    return load_table(SAMPLES / request.param)
