"""The notebooks run from top to bottom, and hold no outputs."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.test_docs import ROOT

# The small random BERT of `saved_model` in place of MiniLM-L6; its table is too small for 103x.
SMALL = {
    'Path(package.origin).parent / "model"': "Path({checkpoint!r})",
    "ratio=103,": "ratio=10,",
    "[25, 103]": "[6, 10]",
    "103x": "10x",
}
# MiniLM-L6 with the same steps, cheaper: fewer states of the trellis and fewer texts for the error metric.
CHEAPER = {
    "ratio=103,": "ratio=103, codec=LightToken(state_bits=6, error_metric_sequences=32),",
    "import lighttoken\n": "import lighttoken\nfrom lighttoken.codec.lighttoken.method import LightToken\n",
    "LightToken()": "LightToken(state_bits=6, error_metric_sequences=32)",
    '"published form": LightTokenPaper(), ': "",
}
LAST_LINE = {"search": "4 of 4 answers are the same", "compare_codecs": "lighttoken at 103x"}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a notebook with some of its text replaced; returns what it printed."""

    def call(file: Path, changes: dict[str, str]) -> str:
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        notebook = nbformat.read(file, as_version=4)
        cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert not any(cell.outputs or cell.execution_count for cell in cells), "strip the outputs"
        for cell in cells:
            for text, other in changes.items():
                cell.source = cell.source.replace(text, other)
        NotebookClient(notebook, timeout=800, resources={"metadata": {"path": str(tmp_path)}}).execute()
        return "".join(output.get("text", "") for cell in cells for output in cell.outputs)

    return call


NOTEBOOKS = pytest.mark.parametrize("file", sorted((ROOT / "examples").glob("*.ipynb")), ids=lambda file: file.stem)


@NOTEBOOKS
def test_notebook_runs_on_a_small_model(file, run, saved_model):
    folder = str(Path("CHECKPOINT").resolve())
    assert run(file, SMALL | {key: value.format(checkpoint=folder) for key, value in SMALL.items() if "{" in value})


@pytest.mark.slow
@pytest.mark.timeout(900)
@NOTEBOOKS
def test_notebook_says_what_it_promises(file, run):
    assert LAST_LINE[file.stem] in run(file, CHEAPER)
