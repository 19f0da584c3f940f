"""Relations: which row of a table says something about which, from the strings of the vocabulary.

A row has at most one parent: its twin without capitals ("Walk" - "walk"), its twin at the other place of a word
("##walk" - "walk", "▁walk" - "walk"), or else the longest token that it begins with ("walking" - "walk"). An artifact
stores no relation: the tokenizer has them. It stores a hash of them, so that a wrong tokenizer is refused. A checkpoint
that is written without its tokenizer has them as `links`.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int32, Int64, UInt8
from torch import Tensor

from lighttoken.artifact.packing import deflate, inflate

DEPTH = 2  # most parents above a row: parent, grandparent
LEAST_LETTERS, LEAST_SHARE = 4, 0.5  # of a token, that a shorter one must have to be its parent
ENDINGS = 8  # of tokens that are longer than their parent: so many, the most frequent ones, are kinds of their own
NONE, PLACE, CASE, LONGER = 0, 1, 2, 3  # kinds of relations; from LONGER + 1 on, one for each frequent ending
KINDS = LONGER + 1 + ENDINGS
MAPS = 2 * KINDS  # numbers of a direction: the slope over the ids, the offsets of all kinds, the gains of all but NONE
PARENT_BITS = 22  # in a relation; the kind has those above


def vocabulary(tokenizer: Any, rows: int) -> list[str]:
    """The tokens of the first rows, by id; "" for rows without one, and for added tokens, which have no relations."""
    tokens, added = [""] * rows, set(tokenizer.added_tokens_decoder)
    for token, place in tokenizer.get_vocab().items():
        if place < rows and place not in added:
            tokens[place] = token
    return tokens


def relate(tokens: Sequence[str]) -> Int32[Tensor, " V"]:
    """The relation of each row: parent + 2^22 * kind; a row without a parent has itself and `NONE`.

    A parent is shorter, or differs in case or place alone, and has fewer than `DEPTH` rows above it.
    """
    words = _words(tokens)
    places: dict[tuple[bool, str], int] = {}
    for i, word in enumerate(words):
        if word[1]:
            places.setdefault(word, i)

    # Parents come first: shorter words, small letters, starts of words.
    order = [(len(letters), letters != letters.lower(), not starts, i) for i, (starts, letters) in enumerate(words)]
    parents, levels, kinds = list(range(len(words))), [0] * len(words), dict[int, int | str]()
    for i in sorted(range(len(words)), key=order.__getitem__):
        for word, kind in _candidates(*words[i]):
            parent = places.get(word)
            if parent is not None and order[parent] < order[i] and levels[parent] < DEPTH:
                parents[i], levels[i], kinds[i] = parent, levels[parent] + 1, kind
                break
    endings = Counter(kind for kind in kinds.values() if isinstance(kind, str))
    frequent = sorted(endings, key=lambda ending: (-endings[ending], ending))[:ENDINGS]
    number = {ending: LONGER + 1 + i for i, ending in enumerate(frequent)}
    for i, kind in kinds.items():
        parents[i] += (number.get(kind, LONGER) if isinstance(kind, str) else kind) << PARENT_BITS
    return torch.tensor(parents, dtype=torch.int32)


def relations_of(tokenizer: Any, rows: int) -> Int32[Tensor, " V"]:
    """The relations of the rows of a table that a tokenizer's ids look up."""
    return relate(vocabulary(tokenizer, rows))


def pack_links(relations: Int32[Tensor, " V"]) -> UInt8[Tensor, " bytes"]:
    """Relations as bytes: kinds, then the three bytes of the parents, deflated; rows without a parent have zeros."""
    kinds = kinds_of(relations.cpu())
    parents = torch.where(kinds > 0, parents_of(relations.cpu()), 0)
    planes = [kinds] + [torch.bitwise_right_shift(parents, shift) & 255 for shift in (0, 8, 16)]
    return deflate(torch.cat(planes).to(torch.uint8))


def unpack_links(packed: UInt8[Tensor, " bytes"], rows: int) -> Int32[Tensor, " V"]:
    """Undo `pack_links`. Raises ValueError if the bytes hold no relations of so many rows."""
    kinds, *parents = inflate(packed, 4 * rows, f"links of {rows} rows").int().view(4, rows)
    ids = torch.where(kinds > 0, parents[0] + 256 * parents[1] + 65536 * parents[2], torch.arange(rows)).int()
    if int(ids.max()) >= rows or int(kinds.max()) >= KINDS:
        raise ValueError(f"links to row {int(ids.max())}, of kind {int(kinds.max())}, in a table of {rows} rows")
    return ids + (kinds << PARENT_BITS)


def check_links(packed: UInt8[Tensor, " bytes"], hashed: UInt8[Tensor, " 8"], rows: int) -> None:
    """Raise ValueError unless the bytes hold the relations of so many rows that have this `digest`."""
    if not torch.equal(digest(unpack_links(packed, rows)), hashed.cpu()):
        raise ValueError("links of another hash than the relations")


def digest(relations: Int32[Tensor, " V"]) -> UInt8[Tensor, " 8"]:
    """The first bytes of a SHA-256 of relations."""
    hashed = hashlib.sha256(relations.cpu().numpy().astype("<i4").tobytes())
    return torch.tensor(list(hashed.digest()[:8]), dtype=torch.uint8)


def parents_of(relations: Int32[Tensor, " n"]) -> Int64[Tensor, " n"]:
    """The ids of the parents."""
    return (relations & ((1 << PARENT_BITS) - 1)).long()


def kinds_of(relations: Int32[Tensor, " n"]) -> Int64[Tensor, " n"]:
    """The kinds."""
    return torch.bitwise_right_shift(relations, PARENT_BITS).long()


def place_in_vocabulary(ids: Int64[Tensor, " n"]) -> Float[Tensor, " n"]:
    """A number that grows with the id, about 1 from end to end: most vocabularies begin with their frequent tokens."""
    return (ids.float() + 200).log() / 4 - 2


def predict(
    ids: Int64[Tensor, " n"], kinds: Int64[Tensor, " n"], parents: Float[Tensor, "n m"], maps: Float[Tensor, "m MAPS"]
) -> Float[Tensor, "n m"]:
    """The coefficients of rows, predicted from their ids, their kinds and the coefficients of their parents."""
    slope, offsets, gains = maps_by_kind(maps)
    return place_in_vocabulary(ids).unsqueeze(1) * slope + offsets[kinds] + gains[kinds] * parents


def maps_by_kind(maps: Float[Tensor, "m MAPS"]) -> tuple[Tensor, Tensor, Tensor]:
    """The slope (1, m), and offsets and gains (KINDS, m); rows without a parent have a gain of 0."""
    slope, offsets, gains = maps.T.split([1, KINDS, KINDS - 1])
    return slope, offsets, torch.nn.functional.pad(gains, (0, 0, 1, 0))


def chain_of(ids: Int64[Tensor, " n"], relations: Int32[Tensor, " V"]) -> list[Int64[Tensor, " n"]]:
    """The rows, their parents and so on, up to `DEPTH`; a row without a parent is its own."""
    chain = [ids]
    for _ in range(DEPTH):
        chain.append(parents_of(relations[chain[-1]]))
    return chain


def read_related(
    ids: Int64[Tensor, " n"],
    relations: Int32[Tensor, " V"],
    maps: Float[Tensor, "m MAPS"],
    decode: Callable[[Int64[Tensor, " k"]], Float[Tensor, "k m"]],
) -> Float[Tensor, "n m"]:
    """Coefficients of rows: what their codes decode to, and what is predicted of them from the rows above."""
    chain = chain_of(ids, relations)
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # the number of different rows is not known then
        decoded = list(decode(torch.cat(chain)).tensor_split(len(chain)))  # `len(ids)` would fix their number
    else:
        rows, places = torch.cat(chain).unique(return_inverse=True)
        once = decode(rows)
        decoded = [once[part] for part in places.tensor_split(len(chain))]  # there may be no ids
    coefficients = torch.zeros_like(decoded[-1])
    for rows, values in zip(chain[::-1], decoded[::-1], strict=True):
        coefficients = values + predict(rows, kinds_of(relations[rows]), coefficients, maps)
    return coefficients


def _words(tokens: Sequence[str]) -> list[tuple[bool, str]]:
    """Whether a token starts a word, and its letters; none for tokens in brackets, which mean no text."""
    wordpiece = sum(token.startswith("##") for token in tokens) > len(tokens) / 100
    words = []
    for token in tokens:
        marked = token.startswith("##" if wordpiece else ("▁", "Ġ"))
        letters = token[(2 if wordpiece else 1) if marked else 0 :]
        bracketed = letters[:1] in ("[", "<") and letters[-1:] in ("]", ">")
        words.append((marked != wordpiece, "" if bracketed else letters))
    return words


def _candidates(starts: bool, letters: str) -> Iterator[tuple[tuple[bool, str], int | str]]:
    """The words that may be the parent of a word, the best first, with the kind or the ending."""
    if letters:
        lower = letters.lower()
        yield (starts, lower), CASE
        yield (not starts, letters), PLACE
        yield (not starts, lower), PLACE
    for n in range(len(letters) - 1, max(LEAST_LETTERS, math.ceil(len(letters) * LEAST_SHARE)) - 1, -1):
        beginning, ending = letters[:n], letters[n:]
        yield (starts, beginning), ending
        yield (not starts, beginning), ending
        yield (starts, beginning.lower()), ending
