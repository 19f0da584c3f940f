"""The languages of a tokenizer, from its vocabulary."""

import logging
from dataclasses import replace
from itertools import islice

import pytest
import torch
import wordfreq
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lighttoken import LighttokenError, measure_importance
from lighttoken.backbone.loaded import LoadedBackbone
from lighttoken.codec.baselines.svd import SVD
from lighttoken.codec.languages import frequent_words, known_languages, numbers, served_languages
from lighttoken.codec.prior import WordFrequency


@pytest.fixture(autouse=True)
def _fewer_words(monkeypatch):
    monkeypatch.setattr("lighttoken.codec.prior.WORDS", 3_000)
    monkeypatch.setattr("lighttoken.codec.prior.MIXED_WORDS", 3_000)


@pytest.fixture
def tokenizer_of():
    """A tokenizer whose vocabulary is the frequent words of some languages."""

    def make(*languages: str) -> PreTrainedTokenizerFast:
        words = {word: None for language in languages for word, _ in islice(frequent_words(language), 3_000)}
        backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["[UNK]", *words])}, unk_token="[UNK]"))
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")

    return make


@pytest.mark.parametrize("languages", [["en"], ["de"], ["zh"], ["de", "en"], ["ar", "en", "ja", "ko", "ru"]])
def test_languages_with_words_in_the_vocabulary_are_served_and_no_others(tokenizer_of, languages):
    assert served_languages(tokenizer_of(*languages)) == languages


@pytest.mark.parametrize("language", ["en", "de", "ru"])
def test_frequent_words_are_those_of_wordfreq(language):
    expected = [(word, wordfreq.word_frequency(word, language)) for word in wordfreq.top_n_list(language, 2_000)]
    assert list(islice(frequent_words(language), 2_000)) == expected


@pytest.mark.parametrize("language", ["en", "de"])
def test_numbers_have_the_shares_of_wordfreq(language):
    shares = dict(numbers(language))
    for number in ("10", "99", "123", "1990", "2015"):
        assert shares[number] == pytest.approx(wordfreq.word_frequency(number, language), rel=0.02)
    assert {"11th": "en", "80er": "de"}[next(word for word in ("11th", "80er") if word in shares)] == language


def test_every_language_is_read_without_a_package_that_segments(tokenizer_of):
    tokenizer = tokenizer_of("en", "zh")
    assert {"ja", "ko", "zh"} < set(known_languages())
    for language in ("ja", "ko", "zh"):
        assert list(islice(frequent_words(language), 100))
    frequencies = WordFrequency(languages=["zh"]).frequencies(tokenizer, len(tokenizer))
    assert frequencies[tokenizer.convert_tokens_to_ids("\u7684")] > 0.01


def test_without_languages_the_prior_takes_those_of_the_tokenizer_and_says_so(tokenizer_of, caplog):
    caplog.set_level(logging.INFO)
    tokenizer = tokenizer_of("de", "en")
    prior = WordFrequency().resolved(tokenizer)
    assert prior == WordFrequency(languages=["de", "en"])
    assert "word frequencies of the 2 languages of this tokenizer: de, en" in caplog.text
    rows = len(tokenizer)
    assert torch.equal(WordFrequency().frequencies(tokenizer, rows), prior.frequencies(tokenizer, rows))


def test_no_language_starves(tokenizer_of):
    tokenizer = tokenizer_of("de", "en", "ru")
    prior = WordFrequency().resolved(tokenizer)
    mixed = prior.row_weights(prior.frequencies(tokenizer, len(tokenizer)))
    english = replace(prior, languages=["en"])
    alone = english.row_weights(english.frequencies(tokenizer, len(tokenizer)))
    russian = tokenizer.convert_tokens_to_ids([word for word, _ in islice(frequent_words("ru"), 500)])
    english_words = tokenizer.convert_tokens_to_ids([word for word, _ in islice(frequent_words("en"), 500)])
    assert float(mixed[russian].mean() / mixed[english_words].mean()) == pytest.approx(1, abs=0.3)
    assert float(alone[russian].mean() / alone[english_words].mean()) < 0.3


def test_languages_that_are_left_out_are_named(tokenizer_of, caplog):
    WordFrequency(languages=["en"]).resolved(tokenizer_of("de", "en"))
    assert "codec.prior.languages=[en] leaves out 1 languages of this tokenizer, which lose most: de" in caplog.text
    caplog.clear()
    WordFrequency(languages=["en"]).resolved(tokenizer_of("en"))
    WordFrequency().resolved(tokenizer_of("en"))
    assert not caplog.text


def test_an_english_model_has_the_importance_of_english(make_model, tokenizer):
    backbone = LoadedBackbone(make_model(), tokenizer)
    auto, english = (
        measure_importance(backbone, SVD(prior=prior), 200)
        for prior in (WordFrequency(), WordFrequency(languages=["en"]))
    )
    assert torch.equal(auto.weights, english.weights)
    assert auto.settings == english.settings
    assert auto.settings["languages"] == ["en"]


def test_rows_beyond_the_tokenizer_have_the_smallest_weight_and_take_nothing_from_others(make_model, tokenizer):
    codec = SVD(prior=WordFrequency())
    padded, exact = (
        measure_importance(LoadedBackbone(make_model(vocab_size=rows), tokenizer), codec, rows).weights
        for rows in (264, 200)
    )
    assert torch.equal(padded[200:], padded.min().expand(64))
    torch.testing.assert_close(padded[:200] / padded[4], exact / exact[4])


def test_an_empty_list_is_refused():
    with pytest.raises(LighttokenError, match=r"prior.languages is empty; set codec.prior.languages=\[en\], or null"):
        WordFrequency(languages=[])
