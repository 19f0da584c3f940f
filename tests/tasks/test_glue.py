"""All nine tasks, in every layout of their files."""

import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from hydra.utils import instantiate
from torchmetrics.classification import BinaryMatthewsCorrCoef

from lighttoken import LighttokenError
from lighttoken.tasks.glue import MatthewsCorrCoef
from tests.conftest import WORDS
from tests.tasks.conftest import read_record

TEXTS = {
    "cola": ["sentence"],
    "sst2": ["sentence"],
    "mrpc": ["sentence1", "sentence2"],
    "stsb": ["sentence1", "sentence2"],
    "qqp": ["question1", "question2"],
    "mnli": ["premise", "hypothesis"],
    "qnli": ["question", "sentence"],
    "rte": ["sentence1", "sentence2"],
    "wnli": ["sentence1", "sentence2"],
}
NAMES = {"mnli": ["entailment", "neutral", "contradiction"], "qnli": ["entailment", "not_entailment"]}
NAMES["rte"] = NAMES["qnli"]
SPLITS = {"mnli": ["train", "validation_matched", "validation_mismatched", "test_matched", "test_mismatched", "ax"]}
TESTS = ("test", "ax", "diagnostic")  # the beginnings of the names of splits and files without labels
# Columns of the files of gluebenchmark.com. CoLA's files have no header, except test.
TSV = {
    "cola": ["source", "label", "star", "sentence"],
    "sst2": ["sentence", "label"],
    "mrpc": ["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"],
    "stsb": ["index", "genre", "sentence1", "sentence2", "score"],
    "qqp": ["id", "qid1", "qid2", "question1", "question2", "is_duplicate"],
    "mnli": ["index", "promptID", "sentence1", "sentence2", "gold_label"],
    "qnli": ["index", "question", "sentence", "label"],
    "rte": ["index", "sentence1", "sentence2", "label"],
    "wnli": ["index", "sentence1", "sentence2", "label"],
}
LABELS = ("label", "Quality", "score", "is_duplicate", "gold_label")
FILES = {"cola": ["CoLA"], "sst2": ["SST-2"], "mrpc": ["MRPC"], "stsb": ["STS-B"], "qqp": ["QQP"]}
FILES |= {"mnli": ["MNLI-m", "MNLI-mm", "AX"], "qnli": ["QNLI"], "rte": ["RTE"], "wnli": ["WNLI"]}


def rows(task: str, split: str, count: int = 12) -> dict[str, list]:
    """Rows in the hub's layout."""
    texts = {
        column: [f'{WORDS[(i + j) % 12]} {WORDS[(i * 5 + len(split)) % 12]}" film' for i in range(count)]
        for j, column in enumerate(TEXTS[task])
    }
    classes = len(NAMES.get(task, "ab"))
    label = [i % 6 * 0.9 if task == "stsb" else i % classes for i in range(count)]
    return texts | {"label": [-1] * count if split.startswith(TESTS) else label, "idx": list(range(count))}


def write(folder: Path, task: str, layout: str, count: int = 12) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for split in SPLITS.get(task, ["train", "validation", "test"]):
        table = rows(task, split, count)
        if layout == "parquet":
            Dataset.from_dict(table).to_parquet(folder / f"{split}.parquet")
        elif layout == "jsonl":
            lines = [json.dumps(dict(zip(table, row, strict=True))) for row in zip(*table.values(), strict=True)]
            (folder / f"{split}.jsonl").write_text("\n".join(lines))
        else:
            name = "diagnostic" if split == "ax" else split.replace("validation", "dev")
            write_tsv(folder / f"{name}.tsv", task, table)


def write_tsv(file: Path, task: str, table: dict[str, list]) -> None:
    texts, lines = iter(TEXTS[task]), []
    is_test = file.stem.startswith(TESTS)
    columns = [name for name in TSV[task] if not (is_test and name in LABELS)]
    if is_test and task == "cola":
        columns = ["index", "sentence"]
    values = {}
    for column in columns:
        is_text = column.startswith(("sentence", "question")) or "String" in column
        values[column] = table[next(texts)] if is_text else table["label"] if column in LABELS else table["idx"]
    if task in NAMES and not is_test:
        (label,) = set(columns) & set(LABELS)
        values[label] = [NAMES[task][number] for number in values[label]]
    if is_test or task != "cola":
        lines.append("\t".join(columns))
    lines += ["\t".join(map(str, row)) for row in zip(*values.values(), strict=True)]
    file.write_text("\n".join(lines) + "\n")


@pytest.fixture
def read_splits(tmp_path, tokenizer, compose):
    """Reads the splits of a task from the files in the temporary folder."""

    def read(task: str):
        config = compose(f"task={task}", f"task.data_dir={tmp_path}")
        return instantiate(config.task, tokenizer=tokenizer).read_splits()

    return read


@pytest.mark.parametrize("layout", ["parquet", "jsonl", "tsv"])
@pytest.mark.parametrize("task", list(TEXTS))
def test_every_layout_gives_the_same_rows(tmp_path, read_splits, task, layout):
    write(tmp_path, task, layout)
    splits = read_splits(task)
    for split in SPLITS.get(task, ["train", "validation", "test"]):
        expected = rows(task, split)
        for column in [*TEXTS[task], *([] if split.startswith(TESTS) else ["label"])]:
            assert list(splits[split][column]) == expected[column], (split, column)


def test_broken_lines_are_left_out_and_counted_in_training_and_refused_elsewhere(tmp_path, read_splits, caplog):
    write(tmp_path, "qqp", "tsv")
    broken = '7\t8\t9\tHow good\n"\tWas it bad?\t0\n7\t8\t9\ta\tb\tc\t0\n'
    train, dev = tmp_path / "train.tsv", tmp_path / "dev.tsv"
    lines = train.read_text().splitlines(keepends=True)
    train.write_text("".join([*lines[:4], broken, *lines[4:]]))
    splits = read_splits("qqp")
    for column in ("question1", "question2", "label"):
        assert list(splits["train"][column]) == rows("qqp", "train")[column]
    assert "3 of 15 rows are broken and left out; row 3 has 4 fields instead of 6" in caplog.text
    dev.write_text(dev.read_text() + broken)
    with pytest.raises(LighttokenError, match=r"dev\.tsv: row 12 has 4 fields instead of 6"):
        read_splits("qqp")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "it is empty"),
        ("id\tquestion1\tquestion2\n", "no column is_duplicate among id, question1, question2"),
        ("question1\tquestion2\tis_duplicate\na\tb\t0\na\tb\tyes\n", "row 1 has the label 'yes'"),
    ],
)
def test_a_fault_in_a_tsv_is_named(tmp_path, read_splits, content, message):
    write(tmp_path, "qqp", "tsv")
    (tmp_path / "train.tsv").write_text(content)
    with pytest.raises(LighttokenError, match=f"cannot read the rows of task=qqp from .*train.tsv: {message}"):
        read_splits("qqp")


def test_only_a_newline_ends_a_row_of_a_tsv(tmp_path, read_splits):
    write(tmp_path, "sst2", "tsv")
    text = "one\rtwo\u2028three\x85four"
    (tmp_path / "test.tsv").write_bytes(f"\ufeffindex\tsentence\r\n0\t{text}\r\n1\tbad\r\n".encode())
    assert list(read_splits("sst2")["test"]["sentence"]) == [text, "bad"]


def test_matthews_correlation_is_0_for_a_constant_answer_and_otherwise_equals_torchmetrics():
    labels = torch.tensor([0, 1, 1, 1, 0, 1])
    for answers in (torch.zeros(6), torch.ones(6)):
        assert MatthewsCorrCoef()(answers.long(), labels) == 0
        assert MatthewsCorrCoef()(labels, answers.long()) == 0
        assert MatthewsCorrCoef()(answers.long(), answers.long()) == 0
    for answers in (torch.tensor([0, 1, 0, 1, 1, 1]), labels, 1 - labels):
        assert MatthewsCorrCoef()(answers, labels) == pytest.approx(float(BinaryMatthewsCorrCoef()(answers, labels)))


@pytest.mark.parametrize(
    ("task", "architecture"),
    [(task, "bert") for task in TEXTS]
    + [(task, other) for task in ("stsb", "mnli") for other in ("roberta", "deberta")],
)
def test_every_task_trains_scores_and_predicts(train, tmp_path, task, architecture):
    write(tmp_path / "data", task, "tsv")
    code, _, err = train(
        f"+experiment=glue_{task}",
        f"task.data_dir={tmp_path / 'data'}",
        "limit_rows=8",
        "predict=true",
        architecture=architecture,
    )
    assert code == 0, err
    folder, record = read_record()
    scores = {name for name in record["metrics"] if not name.endswith("loss")}
    assert scores == {
        "cola": {"val/matthews_corrcoef"},
        "mrpc": {"val/accuracy", "val/f1"},
        "qqp": {"val/accuracy", "val/f1"},
        "stsb": {"val/pearson", "val/spearman"},
        "mnli": {"val/accuracy", "val_mm/accuracy"},
    }.get(task, {"val/accuracy"})
    for name in FILES[task]:
        lines = (folder / "predictions" / f"{name}.tsv").read_text().splitlines()
        assert lines[0] == "index\tprediction"
        assert [line.split("\t")[0] for line in lines[1:]] == [str(i) for i in range(8)]
        answers = {line.split("\t")[1] for line in lines[1:]}
        if task == "stsb":
            assert all(0 <= float(answer) <= 5 for answer in answers)
        else:
            assert answers <= set(NAMES.get(task, ["0", "1"]))


def test_predictions_without_a_test_split_name_the_missing_split(train, sst2):
    code, _, err = train("task=sst2", f"task.data_dir={sst2}", "predict=true", "codec=none")
    assert code == 2
    assert "predict=true needs the split 'test' of task=sst2; found train, validation" in err


def test_the_diagnostic_set_of_mnli_may_be_left_out(train, tmp_path):
    write(tmp_path / "data", "mnli", "tsv")
    (tmp_path / "data" / "diagnostic.tsv").unlink()
    arguments = ["+experiment=glue_mnli", f"task.data_dir={tmp_path / 'data'}", "codec=none", "predict=true"]
    code, _, err = train(*arguments)
    assert code == 2
    assert "predict=true needs the split 'ax' of task=mnli; found" in err
    code, _, err = train(*arguments, "~task.submission.ax")
    assert code == 0, err
    written = {path.name for path in Path("outputs/runs").glob("*/predictions/*.tsv")}
    assert written == {"MNLI-m.tsv", "MNLI-mm.tsv"}


def test_limit_rows_draws_rows_of_all_classes(tokenizer, compose):
    """The first rows of a file may be all of one class."""
    rows = {"sentence": [f"word{i % 20} word{i // 20}" for i in range(400)], "label": [0] * 200 + [1] * 200}
    Path("data").mkdir()
    for split in ("train", "validation", "test"):
        Dataset.from_dict(rows).to_parquet(f"data/{split}.parquet")
    data = instantiate(compose("task=sst2", "task.data_dir=data", "limit_rows=60").task, tokenizer=tokenizer)
    data.setup()
    for split in ("train", "validation"):
        labels = list(data.splits[split]["labels"])
        assert len(labels) == 60
        assert 20 < sum(labels) < 40
        assert labels == sorted(labels)  # rows keep their order
    first = tokenizer(rows["sentence"][:60])["input_ids"]
    assert list(data.splits["test"]["input_ids"]) == first  # its answers are numbered


def test_a_cache_that_cannot_be_written_is_not_a_bad_file(tokenizer, sst2, compose, monkeypatch):
    Path("file").touch()
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", Path("file/cache").absolute())
    data = instantiate(compose("task=sst2", f"task.data_dir={sst2}").task, tokenizer=tokenizer)
    with pytest.raises(LighttokenError, match="the cache of data sets: Not a directory; set HF_DATASETS_CACHE=DIR"):
        data.setup()


@pytest.mark.slow
def test_glue_all_runs_the_nine_tasks_and_writes_their_average(train, tmp_path):
    for task in TEXTS:
        write(tmp_path / "data" / task, task, "parquet")
    code, out, err = train("+experiment=glue_all", f"task.data_dir={tmp_path / 'data'}/${{task.name}}", "limit_rows=10")
    assert code == 0, err
    (path,) = Path("outputs/sweeps").rglob("glue_average.json")
    (row,) = json.loads(path.read_text())
    assert (row["codec"], row["ratio"], row["seed"]) == ("svd", 2.5, 0)
    assert row["tasks"].keys() == set(TEXTS)
    assert row["average"] == pytest.approx(sum(row["tasks"].values()) / 9, nan_ok=True)
    assert "average of 9" in out
