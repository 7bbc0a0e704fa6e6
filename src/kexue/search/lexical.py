"""Terms of texts: words, codes and pairs of Chinese characters, as 64-bit hashes, for many texts at once."""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

TOKENIZER = 1  # version of the rules below; postings made by other rules are made again
Terms = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]
TermKinds = npt.NDArray[np.int8]

WORDS, CODES, PAIRS = range(3)  # kinds of terms; a code holds a digit

_WORD, _PAIRED, _JOINER, _HYPHEN = 1, 2, 3, 4  # kinds of characters; 0 is all others
_CHARACTERS = 0x32400  # no letters or digits are assigned above
_PAIRED_BLOCKS = (  # scripts written without spaces: Thai to Khmer, Chinese, Japanese, Korean, Yi
    (0x0E00, 0x0EFF),
    (0x1000, 0x109F),
    (0x1100, 0x11FF),
    (0x1780, 0x17FF),
    (0x2E80, 0x2FDF),
    (0x3005, 0x3007),
    (0x3021, 0x3029),
    (0x3040, 0x31FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xA000, 0xA4CF),
    (0xAC00, 0xD7FF),
    (0xF900, 0xFAFF),
    (0x1B000, 0x1B2FF),
    (0x20000, 0x323AF),
)
_JOINERS = ".@/:+#&"  # 3.10, name@example.org: found whole and in parts
_HYPHENS = "-_'\u2010\u2011\u2019"  # likewise; and the whole is also written without them: AB-1234 is AB1234
_BASE = 0x9E37_79B9_7F4A_7C15  # odd, so that it has an inverse modulo 2^64
_INVERSE = pow(_BASE, -1, 1 << 64)
_SINGLE, _FIRST, _SECOND = (np.uint64(salt << 32) for salt in (1, 2, 3))


class TextTerms(NamedTuple):
    """The terms of n texts.

    `terms` (t,) are hashes, `texts` (t,) the place of the text that each is in, `lengths` (n,) the words and paired
    characters of each text.
    """

    terms: Terms
    texts: Places
    lengths: Places


class QueryTerms(NamedTuple):
    """The different terms (t,) of a query, ascending, and the kind of each: `WORDS`, `CODES` or `PAIRS`."""

    terms: Terms
    kinds: TermKinds


def read_terms(texts: Sequence[str]) -> TextTerms:
    """Return the terms of documents.

    Texts are normalised (NFKC, case folded). A run of letters and digits is a term; so are the runs that one of
    ``. @ / : + # &`` or a hyphen joins, as a whole: ``AB-1234`` gives ``ab``, ``1234`` and ``ab1234``. Scripts written
    without spaces give every pair of neighbouring characters, and every character.

    >>> whole = read_terms(["AB1234"]).terms
    >>> bool(np.isin(whole, read_terms(["order ab-1234"]).terms).all())
    True
    """
    text = _join(texts)
    pairs, singles = _pairs(text), np.flatnonzero(text.kinds == _PAIRED)
    parts, wholes = _words(text)
    hashes = [*(text.hash(*spans) for spans in (parts, wholes)), _hash_pairs(text.points, pairs)]
    terms = np.concatenate([*hashes, _mix(text.points[singles] + _SINGLE)])
    counted = text.place(np.concatenate([parts[0], singles]))
    starts = np.concatenate([parts[0], wholes[0], pairs, singles])
    return TextTerms(terms, text.place(starts), np.bincount(counted, minlength=len(texts)))


def query_terms(query: str) -> Terms:
    """Return the different terms of a query, ascending; a single character counts only where it stands alone."""
    return read_query(query).terms


def read_query(query: str) -> QueryTerms:
    """Return the terms of `query_terms` with their kinds: words, codes (with a digit 0 to 9), pairs of characters."""
    text = _join([query])
    pairs, paired = _pairs(text), text.kinds == _PAIRED
    alone = paired.copy()
    alone[pairs] = alone[pairs + 1] = False
    digits = np.concatenate([[0], np.cumsum((text.points >= ord("0")) & (text.points <= ord("9")))])
    spans = _words(text)
    others = [_hash_pairs(text.points, pairs), _mix(text.points[alone] + _SINGLE)]
    kinds = [np.where(digits[stops] > digits[starts], CODES, WORDS) for starts, stops in spans]
    terms, first = np.unique(np.concatenate([*(text.hash(*span) for span in spans), *others]), return_index=True)
    return QueryTerms(terms, np.concatenate([*kinds, np.full(sum(map(len, others)), PAIRS)])[first].astype(np.int8))


class _Joined:
    """Normalised texts as one array of code points, each followed by a line end.

    Args:
        points: code points (c,). lengths: of the texts, with the line ends.
    """

    def __init__(self, points: Terms, lengths: Places) -> None:
        self.points = points
        self.kinds = _kinds()[np.minimum(points, np.uint64(_CHARACTERS))]
        self._ends = np.cumsum(lengths)
        kept = self.kinds != _HYPHEN
        self._places = np.concatenate([[0], np.cumsum(kept)])
        powers, self._inverses = _powers(len(points) + 1)
        values = np.where(kept, _mix(points) * powers[self._places[:-1]], np.uint64(0))
        self._sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(values, dtype=np.uint64)])

    def hash(self, starts: Places, stops: Places) -> Terms:
        """Return the hash of each span: a polynomial in `_BASE` modulo 2^64 of its characters without hyphens."""
        return _mix((self._sums[stops] - self._sums[starts]) * self._inverses[self._places[starts]])

    def place(self, at: Places) -> Places:
        """Return the place of the text that each character belongs to."""
        return np.searchsorted(self._ends, at, side="right")


def _join(texts: Sequence[str]) -> _Joined:
    folded = [text.lower() if text.isascii() else _fold(text) for text in texts]
    data = "".join(f"{text}\n" for text in folded).encode("utf-32-le", "surrogatepass")
    return _Joined(np.frombuffer(data, "<u4").astype(np.uint64), np.array([len(text) + 1 for text in folded], np.int64))


def _fold(text: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def _words(text: _Joined) -> tuple[tuple[Places, Places], tuple[Places, Places]]:
    """Return starts and stops of the runs of letters and digits, and of those joined by a single character."""
    starts, stops = _runs(text.kinds == _WORD)
    joined = (starts[1:] == stops[:-1] + 1) & (text.kinds[stops[:-1]] >= _JOINER)
    first, last = _runs(joined)
    return (starts, stops), (starts[first], stops[last])


def _runs(flags: npt.NDArray[np.bool_]) -> tuple[Places, Places]:
    """Return starts and stops (exclusive) of the runs of true values."""
    edges = np.flatnonzero(np.diff(flags, prepend=False, append=False))
    return edges[::2], edges[1::2]


def _pairs(text: _Joined) -> Places:
    """Return the first of each two neighbouring characters of a script without spaces."""
    paired = text.kinds == _PAIRED
    return np.flatnonzero(paired[:-1] & paired[1:])


def _hash_pairs(points: Terms, at: Places) -> Terms:
    return _mix(_mix(points[at] + _FIRST) + _mix(points[at + 1] + _SECOND) * np.uint64(_BASE))


def _mix(values: Terms) -> Terms:
    """Return well spread 64-bit hashes of numbers (the finaliser of splitmix64); a permutation."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58_476D_1CE4_E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D0_49BB_1331_11EB)
    return values ^ (values >> np.uint64(31))


@functools.cache
def _kinds() -> npt.NDArray[np.uint8]:
    """Return the kind of every character."""
    kinds = np.zeros(_CHARACTERS + 1, np.uint8)
    kinds[[code for code in range(_CHARACTERS) if unicodedata.category(chr(code))[0] in "LMN"]] = _WORD
    for first, last in _PAIRED_BLOCKS:
        block = kinds[first : last + 1]
        block[block == _WORD] = _PAIRED
    for kind, characters in ((_JOINER, _JOINERS), (_HYPHEN, _HYPHENS)):
        kinds[[ord(character) for character in characters]] = kind
    return kinds


def _powers(n: int) -> tuple[Terms, Terms]:
    """Return at least the first `n` powers of `_BASE` and of its inverse modulo 2^64."""
    return _cached_powers(max(12, n.bit_length()))


@functools.lru_cache(maxsize=2)
def _cached_powers(bits: int) -> tuple[Terms, Terms]:
    def powers(base: int) -> Terms:
        factors = np.full(1 << bits, base, np.uint64)
        factors[0] = 1
        return np.multiply.accumulate(factors)

    return powers(_BASE), powers(_INVERSE)
