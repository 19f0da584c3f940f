"""The languages that a tokenizer's vocabulary serves, and their most frequent words (wordfreq, Speer 2022)."""

import math
import re
from collections.abc import Iterator
from itertools import islice
from typing import Any

WORDS = 1_000  # of each language, tokenised
REFERENCE_WORDS = 20_000
SERVED = (
    0.4  # tokens of its own, per word; two English vocabularies have up to 0.28, of two multilingual ones from 0.49 on
)
NUMBERS, RARE = 2e-5, 1e-8  # least shares of text of all numbers of one shape, and of a number that is counted
NEAR = 0.8  # English is the reference if its words are whole nearly as often as those of the best language


def known_languages() -> list[str]:
    """The codes of all languages with word frequencies."""
    import wordfreq

    return sorted(wordfreq.available_languages("best"))


def frequent_words(language: str, wordlist: str = "best") -> Iterator[tuple[str, float]]:
    """(word, share of text) by falling share, as wordfreq's `top_n_list` and `word_frequency` give them.

    Those would need jieba for Chinese, and MeCab for Japanese and Korean, to segment words that are segmented.
    """
    import wordfreq
    from wordfreq.numbers import has_digit_sequence

    for centibels, words in enumerate(wordfreq.get_frequency_list(language, wordlist)):
        share = wordfreq.cB_to_freq(-centibels)
        share = round(share, math.floor(-math.log10(share)) + 3)
        yield from ((word, share) for word in words if not has_digit_sequence(word))


def numbers(language: str) -> Iterator[tuple[str, float]]:
    """(word, share of text) of the numbers of two to four digits, with or without letters around them ("11th").

    wordfreq counts them by the number of digits ("00th"), and shares a count out by Benford's law and, of four digits,
    by years. Words have the numbers of one digit.
    """
    import wordfreq
    from wordfreq.numbers import digit_freq

    for shape, share in wordfreq.get_frequency_dict(language).items():
        if share >= NUMBERS and (parts := re.fullmatch(r"(\D*)(0{2,4})(\D*)", shape)):
            before, zeros, after = parts.groups()
            for number in map(str, range(10 ** (len(zeros) - 1), 10 ** len(zeros))):
                if (rate := share * digit_freq(number)) >= RARE:
                    yield before + number + after, rate


def served_languages(tokenizer: Any) -> list[str]:
    """Codes of the languages whose frequent words use tokens of their own, sorted; at least one.

    The language whose words are most often one token is the reference. Another one is served if its 1,000 most frequent
    words use at least 400 tokens that the 20,000 most frequent words of the reference do not use: these rows of the
    table would have no weight without it.
    """
    tokens = {language: _tokens(tokenizer, language, WORDS) for language in known_languages()}
    whole = {language: len({ids[0] for ids in words if len(ids) == 1}) for language, words in tokens.items()}
    best = max(sorted(whole), key=lambda language: whole[language])
    reference = "en" if whole["en"] >= NEAR * whole[best] else best
    common = set().union(*_tokens(tokenizer, reference, REFERENCE_WORDS))
    own = {language: len(set().union(*words) - common) for language, words in tokens.items()}
    return [language for language in own if language == reference or own[language] >= SERVED * WORDS]


def _tokens(tokenizer: Any, language: str, count: int) -> list[list[int]]:
    words = [f" {word}" for word, _ in islice(frequent_words(language, "small"), count)]
    return tokenizer(words, add_special_tokens=False)["input_ids"]
