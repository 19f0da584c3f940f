import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lighttoken import LighttokenError
from lighttoken.codec.prior import Corpus, Uniform, WordFrequency, Zipf, special_tokens


def of(frequencies, tokenizer, token):
    return float(frequencies[tokenizer.convert_tokens_to_ids(token)])


def test_uniform_weighs_all_rows_alike():
    prior = Uniform()
    frequencies = prior.frequencies(None, 50)
    assert float(frequencies.sum()) == pytest.approx(1)
    assert torch.equal(prior.row_weights(frequencies), torch.ones(50))


def test_zipf_falls_with_the_id_and_needs_no_tokenizer():
    prior = Zipf(exponent=1.0, floor=1e-7)
    weights = prior.row_weights(prior.frequencies(None, 1000))
    assert float(weights.mean()) == pytest.approx(1)
    assert bool((weights.diff() < 0).all())
    assert float(weights[0] / weights[997]) == pytest.approx(1000 / 2.7 - 0.1, rel=0.01)


def test_wordfreq_knows_words_marks_and_the_tokens_around_a_text(tokenizer):
    frequencies = WordFrequency().frequencies(tokenizer, 200)
    assert float(frequencies.sum()) == pytest.approx(1)
    the, film, worst = (of(frequencies, tokenizer, word) for word in ("the", "film", "worst"))
    assert the > 10 * film > 10 * worst > 0
    assert of(frequencies, tokenizer, "[CLS]") == of(frequencies, tokenizer, "[SEP]") > film
    assert of(frequencies, tokenizer, "word7") == 0


def test_wordfreq_of_another_language_ranks_other_words(tokenizer):
    english, german = (WordFrequency(languages=[code]).frequencies(tokenizer, 200) for code in ("en", "de"))
    both = WordFrequency(languages=["en", "de"]).frequencies(tokenizer, 200)
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
    frequencies = Corpus(file=str(path)).frequencies(tokenizer, 200) * 11
    expected = {"the": 3, "film": 1, "plot": 1, "was": 1, "worst": 1, "[CLS]": 2, "[SEP]": 2}
    assert {word: round(of(frequencies, tokenizer, word)) for word in expected} == expected


def test_exponent_and_floor_temper_the_weights():
    frequencies = torch.tensor([0.9, 0.0999, 0.0001, 0.0], dtype=torch.float64)
    flat, steep = (Zipf(exponent=exponent, floor=1e-4).row_weights(frequencies) for exponent in (0.25, 1.0))
    for weights in (flat, steep):
        assert float(weights.mean()) == pytest.approx(1)
        assert float(weights[3]) > 0
    assert float(steep[0] / steep[3]) == pytest.approx(9001, rel=1e-3)
    assert float(flat[0] / flat[3]) == pytest.approx(9001**0.25, rel=1e-3)


def test_special_tokens_are_those_around_every_text(tokenizer):
    assert special_tokens(tokenizer) == ([2], [3])


def test_two_columns_of_a_corpus_are_two_priors(tmp_path):
    pd.DataFrame({"en": ["the film"], "de": ["der Film"]}).to_csv(tmp_path / "texts.csv")
    english, german = (Corpus(file=str(tmp_path / "texts.csv"), column=column) for column in ("en", "de"))
    assert english.settings() != german.settings()
    (tmp_path / "texts.txt").write_text("the film")
    first, second = (Corpus(file=str(tmp_path / "texts.txt"), column=column) for column in ("en", "de"))
    assert first.settings() == second.settings()  # a column of no .txt file is read


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"exponent": -1.0}, "prior.exponent is -1.0; it must be 0 or above"),
        ({"floor": 0.0}, "prior.floor is 0.0; it must be above 0"),
        ({"file": "nowhere.txt"}, "codec.prior.file=nowhere.txt is no file; set codec.prior.file=FILE to a corpus"),
    ],
)
def test_settings_out_of_range_are_named(setting, message):
    with pytest.raises(LighttokenError, match=message):
        Corpus(**setting)


def test_what_cannot_be_counted_is_named(tokenizer, tmp_path):
    with pytest.raises(LighttokenError, match="no word frequencies of language 'tlh'; choose among ar, "):
        WordFrequency(languages=["tlh"]).frequencies(tokenizer, 200)
    (tmp_path / "corpus.doc").write_text("the film")
    with pytest.raises(LighttokenError, match=r"has no known format; choose a file in \.txt, \.parquet"):
        Corpus(file=str(tmp_path / "corpus.doc"))
    pd.DataFrame({"sentence": ["the film"]}).to_parquet(tmp_path / "corpus.parquet")
    with pytest.raises(LighttokenError, match="has no column 'text'; set codec.prior.column to one of sentence"):
        Corpus(file=str(tmp_path / "corpus.parquet")).frequencies(tokenizer, 200)


def test_wordfreq_counts_what_texts_hold_besides_words():
    """Numbers, marks after a space, line ends, words in capitals or without a space, of a byte-level tokenizer."""
    tokens = [
        ",",
        "\u010a",
        "\u0120,",
        "\u010a\u010a",
        "The",
        "\u0120The",
        "\u0120the",
        "\u0120US",
        "\u0120who",
        "\u01201999",
    ]
    backend = Tokenizer(models.WordLevel({token: i for i, token in enumerate([*tokens, "?"])}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="?")
    frequencies = WordFrequency(languages=["en"]).frequencies(tokenizer, len(tokens) + 1)
    share = dict(zip(tokens, frequencies.tolist(), strict=False))
    assert all(share[token] > 0 for token in tokens)
    assert share["\u0120the"] > share["\u0120The"] > share["The"]
