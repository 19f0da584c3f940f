"""Own rows in files: columns by name, kinds of labels, splits."""

import json
import math
from pathlib import Path

import pandas as pd
import pytest
from datasets import Dataset

from lighttoken import LighttokenError
from lighttoken.tasks.classification import Classification

TEXTS = [f"{'very ' * (i % 4)}{'good' if i % 3 else 'bad'} film number{i}" for i in range(60)]
NAMES = ["bad", "good", "great"]


@pytest.fixture
def own(tokenizer, tmp_path):
    """Writes train.csv, unless there are other files, and makes the task."""

    def make(labels=None, files: dict[str, pd.DataFrame] | None = None, **settings) -> Classification:
        folder = tmp_path / "own"
        folder.mkdir(exist_ok=True)
        for name, frame in (files or {"train.csv": pd.DataFrame({"text": TEXTS, "label": labels})}).items():
            if name.endswith(".parquet"):
                frame.to_parquet(folder / name)
            elif name.endswith(".jsonl"):
                frame.to_json(folder / name, orient="records", lines=True)
            else:
                frame.to_csv(folder / name, index=False, sep="\t" if name.endswith(".tsv") else ",")
        columns = settings.pop("text_columns", ["text"])
        data = Classification(tokenizer, "own", columns, {}, str(folder), submission={"test": "test"}, **settings)
        data.setup()
        return data

    return make


def test_names_are_classes_in_alphabetical_order(own):
    data = own([NAMES[i % 3] for i in range(60)])
    assert (data.num_labels, data.label_names) == (3, NAMES)
    assert data.metrics.keys() == {"accuracy", "f1"}
    for split in data.splits.values():
        assert {*split["labels"]} <= {0, 1, 2}
    assert len(data.splits["train"]) + len(data.splits["validation"]) == 60
    assert 0 < len(data.splits["validation"]) < 15


def test_whole_numbers_are_classes_and_others_are_predicted(own):
    assert own([i % 4 for i in range(60)]).num_labels == 4
    data = own([i / 7 for i in range(60)])
    assert data.num_labels == 1
    assert data.metrics.keys() == {"pearson", "spearman"}
    assert own([float(i % 4) for i in range(60)], num_labels=1).num_labels == 1


@pytest.mark.parametrize("suffix", ["tsv", "parquet", "jsonl"])
def test_columns_have_any_name_and_a_validation_file_is_scored(own, suffix):
    frame = pd.DataFrame({"review": TEXTS, "stars": [NAMES[i % 3] for i in range(60)], "other": 1})
    files = {f"train.{suffix}": frame, f"dev.{suffix}": frame[:20], f"test.{suffix}": frame[["review"]]}
    data = own(files=files, text_columns=["review"], label_column="stars", label_names=NAMES[::-1])
    assert [len(data.splits[name]) for name in ("train", "validation", "test")] == [60, 20, 60]
    assert data.splits["validation"]["labels"][:3] == [2, 1, 0]  # in the order that was given


def test_a_quotation_mark_in_a_tsv_is_text(own, tmp_path):
    texts = [*TEXTS[:3], '"so sad', '"great" film', 'a "b" c', *TEXTS[6:]]
    (tmp_path / "own").mkdir()
    for name in ("train.tsv", "validation.tsv"):
        rows = "".join(f"{text}\t{NAMES[i % 3]}\n" for i, text in enumerate(texts))
        (tmp_path / "own" / name).write_text(f"text\tlabel\n{rows}")
    data = own(files={"nothing.csv": pd.DataFrame()})
    assert data.read_splits()["validation"]["text"] == texts


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            {"text_columns": ["sentence"]},
            "train.csv has no column sentence; found text, label; set task.text_columns=[NAME] and "
            "task.label_column=NAME",
        ),
        ({"label_column": "stars"}, "train.csv has no column stars; found text, label; set task.text_columns=[NAME]"),
        ({"num_labels": 2}, "row 2 of the split 'train' of task=own has the label 2; it must be 0 to 1"),
        ({"label_names": ["a", "b"]}, "has the label 2; it must be 0 to 1 or a, b"),
        (
            {"label_names": ["a", "b", "c"], "num_labels": 2},
            "task.num_labels is 2 and the labels are a, b, c; set task.num_labels=3",
        ),
        ({"validation_fraction": 1.0}, "task.validation_fraction is 1; it must be between 0 and 1"),
    ],
)
def test_what_does_not_fit_is_named(own, settings, line):
    with pytest.raises(LighttokenError) as caught:
        own([i % 3 for i in range(60)], **settings)
    assert line in str(caught.value)


def test_numbers_that_are_stored_as_texts_are_no_numbers_to_predict(own):
    with pytest.raises(
        LighttokenError, match=r"task.num_labels is 1 and the labels are 1, 10, 2; set task.num_labels=3"
    ):
        own(files={"train.jsonl": pd.DataFrame({"text": TEXTS, "label": ["1", "2", "10"] * 20})}, num_labels=1)


def test_a_third_text_is_refused(own):
    frame = pd.DataFrame({"a": TEXTS, "b": TEXTS, "c": TEXTS, "label": 1})
    with pytest.raises(LighttokenError, match="text_columns has 3 columns, a, b, c; a tokenizer takes one text or a p"):
        own(files={"train.csv": frame}, text_columns=["a", "b", "c"])


@pytest.mark.parametrize("text", [None, 7])
def test_a_row_without_a_text_is_named_also_where_no_file_is_validated(own, text):
    texts = [text, *TEXTS[1:]] if text is None else [7] * 60
    with pytest.raises(LighttokenError, match="row 0 of the split 'train' of task=own lacks a text"):
        own(files={"train.csv": pd.DataFrame({"text": texts, "label": 1})})


def test_a_label_that_is_missing_among_numbers_is_named(own, tmp_path):
    rows = Dataset.from_dict({"text": TEXTS, "label": [math.nan, *[1.0] * 59]})  # pandas would write null
    (tmp_path / "own").mkdir()
    rows.to_parquet(tmp_path / "own" / "train.parquet")
    rows.select(range(1, 60)).to_parquet(tmp_path / "own" / "validation.parquet")
    with pytest.raises(LighttokenError, match="row 0 of the split 'train' of task=own has the label nan; it must be"):
        own(files={"test.csv": pd.DataFrame({"text": TEXTS[:5]})})


def test_rows_that_are_only_answered_may_have_any_label_but_need_a_text(own):
    train = pd.DataFrame({"text": TEXTS, "label": [NAMES[i % 3] for i in range(60)]})
    test = pd.DataFrame({"text": TEXTS[:5], "label": "unknown"})
    data = own(files={"train.csv": train, "test.csv": test})
    assert data.splits["test"]["labels"][:] == [-1] * 5
    test.loc[3, "text"] = None
    with pytest.raises(LighttokenError, match="row 3 of the split 'test' of task=own lacks a text"):
        own(files={"train.csv": train, "test.csv": test})


def test_a_folder_without_training_rows_is_named(tokenizer, tmp_path):
    with pytest.raises(LighttokenError, match="train"):
        Classification(tokenizer, "own", ["text"], {}, str(tmp_path)).setup()


def test_a_run_on_own_rows_scores_and_answers_with_names(command, checkpoint, tmp_path):
    folder = tmp_path / "own"
    folder.mkdir()
    frame = pd.DataFrame({"review": TEXTS, "stars": [NAMES[i % 3] for i in range(60)]})
    frame.to_csv(folder / "train.csv", index=False)
    frame[["review"]][:7].to_csv(folder / "test.csv", index=False)
    columns = ["task.text_columns=[review]", "task.label_column=stars", "task.name=stars"]
    settings = ["codec=svd", "ratio=3", "trainer.max_epochs=1", "progress=false", "logger=none", "predict=true"]
    data = ["task=classification", f"task.data_dir={folder}", f"model.path={checkpoint()}", "trainer.accelerator=cpu"]
    code, out, err = command("train", *data, *columns, *settings)
    assert code == 0, err
    (run,) = Path("outputs/runs").iterdir()
    record = json.loads((run / "record.json").read_text())
    assert record["task"] == "stars"
    assert record["metrics"].keys() == {"val/accuracy", "val/f1", "val/loss"}
    lines = (run / "predictions/test.tsv").read_text().splitlines()
    assert len(lines) == 8
    assert {line.split("\t")[1] for line in lines[1:]} <= set(NAMES)
    assert "stars with tiny_bert" in out
