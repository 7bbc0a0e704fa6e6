r"""Words of a text in the manner of the Penn Treebank, as NLTK's `word_tokenize` finds them in one sentence.

The scorer of CMRC2018 splits what is not Chinese with that function. NLTK takes seconds to load, and its function needs
data that it downloads; the rules are few. They are applied one after the other, and put spaces around what they match;
``\1`` and ``\2`` are the groups of a pattern.
"""

from __future__ import annotations

import re

_OPENING_QUOTES = (
    (r"[«“‘„]|`+", r" \g<0> "),
    (r'^"', r"``"),
    (r"``", r" `` "),
    (r"([ (\[{<])(?:\"|'')", r"\1 `` "),
    (r"(?i)(?<!\w)'(?!(?:re|ve|ll|m|t|s|d|n)\b)(?=\w)", r"' "),
)
_PUNCTUATION = (
    (r"([^.])\.([\])}>\"'»”’ ]*+)\s*$", r"\1 . \2 "),  # of all periods, the last one is a token of its own
    (r"([:,])(\D)", r" \1 \2"),  # 3,36 and 12:30 stay whole
    (r"[:,]$", r" \g<0> "),
    (r"\.{2,}|[;@#$%&\u2012-\u2015]", r" \g<0> "),
    (r"([^.])\.([\])}>\"']*)\s*$", r"\1 .\2 "),
    (r"[?!]", r" \g<0> "),
    (r"([^'])' ", r"\1 ' "),
    (r"[*()\[\]{}<>]|--", r" \g<0> "),
)
_CLOSING_QUOTES = (
    (r"[»”’]", r" \g<0> "),
    (r"''|\"", r" '' "),
    (r"\s+", r" "),
    (r"([^' ])('[sSmMdD]|') ", r"\1 \2 "),
    (r"([^' ])('ll|'LL|'re|'RE|'ve|'VE|n't|N'T) ", r"\1 \2 "),
)
_CONTRACTIONS = (
    r"\b(can)(not)\b", r"\b(d)('ye)\b", r"\b(gim)(me)\b", r"\b(gon)(na)\b", r"\b(got)(ta)\b", r"\b(lem)(me)\b",
    r"\b(more)('n)\b", r"\b(wan)(na)(?=\s)", r" ('t)(is)\b", r" ('t)(was)\b",
)  # fmt: skip
_OPEN = [(re.compile(pattern), spaced) for pattern, spaced in (*_OPENING_QUOTES, *_PUNCTUATION)]
_CLOSE = [(re.compile(pattern), spaced) for pattern, spaced in _CLOSING_QUOTES]
_CLOSE += [(re.compile(pattern, re.IGNORECASE), r" \1 \2 ") for pattern in _CONTRACTIONS]


def split_words(text: str) -> list[str]:
    """Return the words, numbers and punctuation marks of one sentence.

    >>> split_words("it rose 3.5%, he can't say why.")
    ['it', 'rose', '3.5', '%', ',', 'he', 'ca', "n't", 'say', 'why', '.']
    """
    for pattern, spaced in _OPEN:
        text = pattern.sub(spaced, text)
    text = f" {text} "
    for pattern, spaced in _CLOSE:
        text = pattern.sub(spaced, text)
    return text.split()
