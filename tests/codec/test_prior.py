import pandas as pd
import pytest
import torch

from lighttoken import LighttokenError
from lighttoken.codec.prior import Prior, special_tokens


def of(frequencies, tokenizer, token):
    return float(frequencies[tokenizer.convert_tokens_to_ids(token)])


def test_uniform_weighs_all_rows_alike():
    prior = Prior()
    frequencies = prior.frequencies(None, 50)
    assert float(frequencies.sum()) == pytest.approx(1)
    assert torch.equal(prior.row_weights(frequencies), torch.ones(50))


def test_zipf_falls_with_the_id_and_needs_no_tokenizer():
    prior = Prior(prior="zipf", prior_exponent=1.0, prior_floor=1e-7)
    weights = prior.row_weights(prior.frequencies(None, 1000))
    assert float(weights.mean()) == pytest.approx(1)
    assert bool((weights.diff() < 0).all())
    assert float(weights[0] / weights[997]) == pytest.approx(1000 / 2.7 - 0.1, rel=0.01)


def test_wordfreq_knows_words_marks_and_the_tokens_around_a_text(tokenizer):
    frequencies = Prior(prior="wordfreq").frequencies(tokenizer, 200)
    assert float(frequencies.sum()) == pytest.approx(1)
    the, film, worst = (of(frequencies, tokenizer, word) for word in ("the", "film", "worst"))
    assert the > 10 * film > 10 * worst > 0
    assert of(frequencies, tokenizer, "[CLS]") == of(frequencies, tokenizer, "[SEP]") > film
    assert of(frequencies, tokenizer, "word7") == 0


def test_wordfreq_of_another_language_ranks_other_words(tokenizer):
    english, german = (Prior(prior="wordfreq", languages=[code]).frequencies(tokenizer, 200) for code in ("en", "de"))
    both = Prior(prior="wordfreq", languages=["en", "de"]).frequencies(tokenizer, 200)
    the = [of(frequencies, tokenizer, "the") for frequencies in (english, german, both)]
    assert the[0] > the[2] > the[1]


@pytest.mark.parametrize("suffix", ["txt", "parquet", "csv", "jsonl"])
def test_a_corpus_is_counted(tokenizer, tmp_path, suffix):
    texts, path = ["the film", "the plot was the worst"], tmp_path / f"corpus.{suffix}"
    frame = pd.DataFrame({"text": texts})
    match suffix:
        case "txt":
            path.write_text("\n".join(texts))
        case "parquet":
            frame.to_parquet(path)
        case "csv":
            frame.to_csv(path, index=False)
        case "jsonl":
            frame.to_json(path, orient="records", lines=True)
    frequencies = Prior(prior="corpus", corpus=str(path)).frequencies(tokenizer, 200) * 11
    expected = {"the": 3, "film": 1, "plot": 1, "was": 1, "worst": 1, "[CLS]": 2, "[SEP]": 2}
    assert {word: round(of(frequencies, tokenizer, word)) for word in expected} == expected


def test_exponent_and_floor_temper_the_weights():
    frequencies = torch.tensor([0.9, 0.0999, 0.0001, 0.0], dtype=torch.float64)
    flat, steep = (
        Prior(prior="zipf", prior_exponent=exponent, prior_floor=1e-4).row_weights(frequencies)
        for exponent in (0.25, 1.0)
    )
    for weights in (flat, steep):
        assert float(weights.mean()) == pytest.approx(1)
        assert float(weights[3]) > 0
    assert float(steep[0] / steep[3]) == pytest.approx(9001, rel=1e-3)
    assert float(flat[0] / flat[3]) == pytest.approx(9001**0.25, rel=1e-3)


def test_special_tokens_are_those_around_every_text(tokenizer):
    assert special_tokens(tokenizer) == ([2], [3])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"prior": "books"}, "unknown prior 'books'; choose one of uniform, zipf, wordfreq, corpus"),
        ({"prior_exponent": -1.0}, "prior_exponent -1.0 is not 0 or more"),
        ({"prior_floor": 0.0}, "prior_floor 0.0 is not above 0"),
        ({"prior": "corpus"}, "prior=corpus counts tokens in a file and corpus=None is none; set corpus=FILE"),
    ],
)
def test_settings_out_of_range_are_named(setting, message):
    with pytest.raises(LighttokenError, match=message):
        Prior(**setting)


def test_what_cannot_be_counted_is_named(tokenizer, tmp_path):
    with pytest.raises(LighttokenError, match="no word frequencies of language 'tlh'; choose among ar, "):
        Prior(prior="wordfreq", languages=["tlh"]).frequencies(tokenizer, 200)
    (tmp_path / "corpus.doc").write_text("the film")
    with pytest.raises(LighttokenError, match=r"has no known format; choose a file in \.txt, \.parquet"):
        Prior(prior="corpus", corpus=str(tmp_path / "corpus.doc")).frequencies(tokenizer, 200)
    pd.DataFrame({"sentence": ["the film"]}).to_parquet(tmp_path / "corpus.parquet")
    with pytest.raises(LighttokenError, match="has no column 'text'; set corpus_column to one of sentence"):
        Prior(prior="corpus", corpus=str(tmp_path / "corpus.parquet")).frequencies(tokenizer, 200)
