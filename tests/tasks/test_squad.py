"""SQuAD: windows, spans, scores."""

import collections
import json
import re
import string

import pytest
import torch
from datasets import Dataset, Value
from hydra.utils import instantiate
from torchmetrics.text import SQuAD

from lighttoken import LighttokenError
from lighttoken.tasks.squad import Squad, SquadScore, best_span
from tests.tasks.conftest import read_record

CONTEXT = "the film was good and the plot was bad but a great movie was not the worst film"


def question(number: int, answer: str, context: str = CONTEXT) -> dict:
    answers = {"text": [answer], "answer_start": [context.index(answer)]}
    return {"id": f"q{number}", "question": "was the plot good", "context": context, "answers": answers}


def table(rows: list[dict]) -> Dataset:
    return Dataset.from_dict({name: [row[name] for row in rows] for name in rows[0]})


ROWS = [question(i, answer) for i, answer in enumerate(["good", "the plot", "great movie", "worst film"] * 3)]


def original_layout(rows: list[dict]) -> str:
    paragraphs = []
    for row in rows:
        answers = [
            {"text": text, "answer_start": start}
            for text, start in zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True)
        ]
        qas = [{"id": row["id"], "question": row["question"], "answers": answers}]
        paragraphs.append({"context": row["context"], "qas": qas})
    return json.dumps({"version": "1.1", "data": [{"title": "films", "paragraphs": paragraphs}]})


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "squad"
    folder.mkdir()
    for split in ("train", "validation"):
        rows = table(ROWS)
        for column in ("id", "question", "context"):
            rows = rows.cast_column(column, Value("large_string"))  # as pandas writes them
        rows.to_parquet(folder / f"{split}.parquet")
    return folder


@pytest.fixture
def squad(tokenizer, folder):
    def make(**changes) -> Squad:
        sizes = {"max_length": 16, "stride": 3, "max_question_length": 6, "max_answer_length": 4}
        data = Squad(
            tokenizer,
            "squad",
            ["question", "context"],
            {"squad": SquadScore()},
            data_dir=str(folder),
            **sizes | changes,
        )
        data.setup()
        return data

    return make


@pytest.mark.parametrize("names", [("train.json", "validation.json"), ("train-v1.1.json", "dev-v1.1.json")])
def test_the_original_json_gives_the_rows_of_the_parquet(squad, folder, names):
    expected = squad().read_splits()
    for split, name in zip(("train", "validation"), names, strict=True):
        (folder / f"{split}.parquet").unlink()
        (folder / name).write_text(original_layout(ROWS))
    splits = squad().read_splits()
    for split in ("train", "validation"):
        for column in ("id", "question", "context", "answers"):
            assert list(splits[split][column]) == list(expected[split][column])


def test_windows_cover_the_context_and_their_labels_are_the_answer(squad, tokenizer):
    data = squad()
    windows = data.windows["validation"]
    assert max(collections.Counter(windows["row"]).values()) > 1
    whole, seen = set(), collections.defaultdict(set)
    for inputs, window in zip(data.splits["validation"], windows, strict=True):
        ids, answer = inputs["input_ids"], ROWS[window["row"]]["answers"]["text"][0]
        words = {(left, right) for left, right in window["offsets"] if right > left}
        seen[window["row"]] |= words
        assert len(ids) <= 16
        if inputs["end_positions"]:
            span = ids[inputs["start_positions"] : inputs["end_positions"] + 1]
            assert tokenizer.decode(span) == answer
            whole.add(window["row"])
        else:  # the window does not hold the whole answer
            assert answer not in " ".join(CONTEXT[left:right] for left, right in sorted(words))
    assert whole == set(range(len(ROWS)))  # some window of every question holds the whole answer
    words = {(match.start(), match.end()) for match in re.finditer(r"\w+", CONTEXT)}
    assert all(offsets == words for offsets in seen.values())


def test_a_tokenizer_that_pads_on_the_left_gives_the_same_labels(squad, tokenizer):
    tokenizer.padding_side = "left"
    data = squad()
    (batch,) = data.loader(data.splits["validation"].select(range(8)), 8)
    spans = [
        tokenizer.decode(ids[start : end + 1])
        for ids, start, end in zip(batch["input_ids"], batch["start_positions"], batch["end_positions"], strict=True)
        if end
    ]
    assert spans
    assert set(spans) <= {row["answers"]["text"][0] for row in ROWS}


def test_a_part_of_the_windows_is_not_scored(squad):
    with pytest.raises(LighttokenError, match=r"1 of \d+ windows of validation were answered .* limit_rows"):
        squad().best_answers("val", [(torch.zeros(1, 16), torch.zeros(1, 16))])


def test_the_best_span_is_the_best_of_all_allowed_pairs():
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        length, longest = 12, 4
        start, end = torch.randn(2, length + 3, generator=generator)  # padded
        offsets = [[0, 0]] * 4 + [[i, i + 1] for i in range(7)] + [[0, 0]]
        score, first, last = best_span(start, end, offsets, longest)
        pairs = [(i, j) for i in range(4, 11) for j in range(i, min(i + longest, 11))]
        best = max(pairs, key=lambda pair: float(start[pair[0]] + end[pair[1]]))
        assert (first, last) == best
        assert score == pytest.approx(float(start[best[0]] + end[best[1]]))


def test_answers_come_from_the_best_window_of_each_question(squad):
    """A model is always right if it points at the labels, and in windows without a label is less sure."""
    data = squad()
    starts, ends = [], []
    for window in data.splits["validation"]:
        length = len(window["input_ids"])
        sure = 10.0 if window["end_positions"] else 1.0
        for output, key in ((starts, "start_positions"), (ends, "end_positions")):
            logits = torch.zeros(length)
            logits[window[key]] = sure
            output.append(logits)
    answers, references = data.best_answers("val", [(starts, ends)])
    assert [answer["prediction_text"] for answer in answers] == [row["answers"]["text"][0] for row in ROWS]
    assert [reference["id"] for reference in references] == [row["id"] for row in ROWS]


# The scorer of SQuAD v1.1 (evaluate-v1.1.py, Rajpurkar et al. 2016), as published.


def normalize_answer(text):
    text = "".join(letter for letter in text.lower() if letter not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def f1_score(prediction, truth):
    prediction, truth = normalize_answer(prediction).split(), normalize_answer(truth).split()
    same = sum((collections.Counter(prediction) & collections.Counter(truth)).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(prediction), same / len(truth)
    return 2 * precision * recall / (precision + recall)


CRAFTED = [
    ("the Eiffel Tower", ["Eiffel Tower"]),
    ("Eiffel tower!", ["The Eiffel-Tower", "eiffel tower"]),
    ("a an the", ["the"]),
    ("", ["something"]),
    ("in 1889, Paris", ["Paris", "1889"]),
    ("Gustave  Eiffel's", ["Gustave Eiffel", "Eiffels"]),
    ("nothing alike", ["something else"]),
]


def as_squad(cases: list[tuple[str, list[str]]]) -> tuple[list[dict], list[dict]]:
    """Answers and references in SQuAD's layout."""
    answers = [{"id": str(i), "prediction_text": text} for i, (text, _) in enumerate(cases)]
    references = [
        {"id": str(i), "answers": {"text": truths, "answer_start": [0] * len(truths)}}
        for i, (_, truths) in enumerate(cases)
    ]
    return answers, references


def test_scores_are_those_of_the_official_scorer(compose):
    metric = instantiate(compose("task=squad").task.metrics.squad)
    assert isinstance(metric, SquadScore)
    metric.update(*as_squad(CRAFTED))
    exact = [max(normalize_answer(text) == normalize_answer(truth) for truth in truths) for text, truths in CRAFTED]
    f1 = [max(f1_score(text, truth) for truth in truths) for text, truths in CRAFTED]
    scores = metric.compute()
    assert float(scores["exact_match"]) == pytest.approx(100 * sum(exact) / len(exact))
    assert float(scores["f1"]) == pytest.approx(100 * sum(f1) / len(f1))


def test_scores_are_those_of_torchmetrics_but_for_answers_without_words():
    ours, theirs = SquadScore(), SQuAD()
    for metric in (ours, theirs):
        metric.update(*as_squad([(text, truths) for text, truths in CRAFTED if normalize_answer(text) or text == ""]))
    for name, value in theirs.compute().items():
        assert float(ours.compute()[name]) == pytest.approx(float(value))


def test_it_trains_scores_and_answers(train, architecture, folder):
    sizes = ["task.max_length=24", "task.stride=4", "task.max_question_length=8", "limit_rows=8"]
    code, out, err = train(
        "+experiment=squad",
        f"task.data_dir={folder}",
        *sizes,
        "predict=true",
        "trainer.num_sanity_val_steps=1",
        architecture=architecture,
    )
    assert code == 0, err
    assert "val/exact_match" in out
    directory, record = read_record()
    metrics = record["metrics"]
    assert metrics.keys() == {"val/loss", "val/exact_match", "val/f1"}
    answers = json.loads((directory / "predictions" / "squad_val.json").read_text())
    assert answers.keys() == {f"q{i}" for i in range(8)}
    assert all(answer in CONTEXT for answer in answers.values())
    metric = SquadScore()
    metric.update(
        [{"id": key, "prediction_text": text} for key, text in answers.items()],
        [{"id": row["id"], "answers": row["answers"]} for row in ROWS[:8]],
    )
    assert float(metric.compute()["f1"]) == pytest.approx(metrics["val/f1"])


def test_contexts_are_held_out_as_wholes(squad, folder):
    contexts = [" ".join([CONTEXT, f"word{i}"]) for i in range(20)]
    rows = [
        question(10 * i + j, answer, context)
        for i, context in enumerate(contexts)
        for j, answer in enumerate(["good", "bad"])
    ]
    table(rows).to_parquet(folder / "train.parquet")
    data = squad(dev_fraction=0.3)
    dev = data.questions["dev"]
    assert 0 < len(set(dev["context"])) < 20
    assert len(dev) == 2 * len(set(dev["context"]))
    assert data.eval_names == ["val", "dev"]


def test_held_out_texts_are_of_no_context_that_is_trained_on(squad, folder):
    contexts = [" ".join([f"word{i} good"] * 10) for i in range(20)]
    rows = [question(10 * i + j, "good", context) for i, context in enumerate(contexts) for j in range(4)]
    table(rows).to_parquet(folder / "train.parquet")
    data = squad()
    loaders = data.text_loaders(4, 10, seed=0)
    texts = [" ".join(data.tokenizer.batch_decode([row["input_ids"] for row in part.dataset])) for part in loaders]
    trained, held = ({word for word in text.split() if word.startswith("word")} for text in texts)
    assert len(held) < len(trained)
    assert trained | held == {f"word{i}" for i in range(20)}
    assert not trained & held


def test_a_stride_that_leaves_no_room_is_refused(squad):
    with pytest.raises(LighttokenError, match="task.stride is 9 and a window has room for 7 tokens of the context"):
        squad(stride=9)


def test_a_missing_or_foreign_file_is_named(squad, folder):
    (folder / "train.parquet").unlink()
    with pytest.raises(LighttokenError, match="no split 'train': train.parquet is missing; found validation.parquet"):
        squad()
    (folder / "train.json").write_text("[]")
    with pytest.raises(
        LighttokenError, match=r"cannot read the rows of task=squad from .*train.json: .*SQuAD's own layout"
    ):
        squad()


def test_a_question_without_an_answer_is_named_before_anything_is_trained(squad, folder):
    rows = [ROWS[0], ROWS[1] | {"answers": {"text": [], "answer_start": []}}]
    table(rows).to_parquet(folder / "validation.parquet")
    with pytest.raises(
        LighttokenError, match="1 questions of the split 'validation' .* have no answer, the first is q1"
    ):
        squad()


def test_an_answer_that_is_not_where_it_says_is_left_out_of_the_training(squad, folder, caplog):
    rows = [*ROWS, question(12, "good")]
    rows[-1]["answers"] = rows[-1]["answers"] | {"answer_start": [rows[-1]["answers"]["answer_start"][0] + 3]}
    table(rows).to_parquet(folder / "train.parquet")
    table(rows).to_parquet(folder / "validation.parquet")
    data = squad()
    assert "1 of 13 training questions of task=squad have an answer that is not at its answer_start" in caplog.text
    assert len(data.questions["validation"]) == 13  # it is scored by its text
    last = [i for i, row in enumerate(data.windows["validation"]["row"]) if row == 12]
    assert {data.splits["validation"][i]["start_positions"] for i in last} == {0}
    table(rows[-1:]).to_parquet(folder / "train.parquet")
    with pytest.raises(LighttokenError, match="1 of 1 training questions .* counts the characters of the context"):
        squad()


def test_a_tokenizer_that_truncates_on_the_left_makes_the_same_windows(squad, tokenizer):
    expected = squad().splits["train"].to_dict()
    tokenizer.truncation_side = "left"
    assert squad().splits["train"].to_dict() == expected
