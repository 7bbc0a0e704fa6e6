"""The choice of a model by the writing of the first texts: English is read by a small model, all else by another.

Without that other one, Chinese is read by the model that is a part of kexue.

A text that English would not write has a letter other than A to Z in many of its words: another script, or the accents
of other languages in Latin script. Plain letters alone cannot tell (Indonesian has few accents): name a model there.
"""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

from kexue.errors import ModelNotFoundError
from kexue.text.models import DEFAULT_MODEL, MULTILINGUAL, find_model, named_default, tiny_chinese_folder

FOREIGN_SHARE = 0.05  # of the words, from which on texts are not all English
_MOSTLY = 0.5  # from which on the English model would be of no use
_SAMPLE = 1000  # texts that are looked at
_CHARACTERS = 2000  # of each text
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W\d_{_UNSPACED}]+")

_HAN = re.compile("[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_KANA = re.compile("[\u3041-\u30ff]")


def foreign_share(texts: Iterable[str]) -> float:
    """Return the share of words with a letter other than A to Z, as a mean over the texts that have words.

    In scripts without spaces each character counts as a word.

    >>> foreign_share(["How long does a refund take?", "退货要多久?"])
    0.5
    >>> foreign_share(["Wie lange dauert die Rückerstattung?"]), foreign_share(["42", ""])
    (0.2, 0.0)
    """
    shares = []
    for text in texts:
        words = _WORD.findall(unicodedata.normalize("NFC", text[:_CHARACTERS]))
        if words:
            shares.append(sum(not word.isascii() for word in words) / len(words))
    return sum(shares) / len(shares) if shares else 0.0


def chinese_share(texts: Iterable[str]) -> float:
    """Return the share of words that are Chinese characters, as a mean over the texts that have words.

    A text with kana is Japanese, and counts as one without Chinese.

    >>> chinese_share(["退货要多久?", "返品には", "How long?", "iPhone 坏"])
    0.375
    """
    shares = []
    for text in texts:
        words = _WORD.findall(unicodedata.normalize("NFC", text[:_CHARACTERS]))
        if words:
            japanese = any(_KANA.match(word) for word in words)
            shares.append(0.0 if japanese else sum(_HAN.match(word) is not None for word in words) / len(words))
    return sum(shares) / len(shares) if shares else 0.0


def sample_texts(texts: Sequence[str]) -> list[str]:
    """Return at most 1,000 of the texts, evenly spread."""
    return [texts[i * len(texts) // _SAMPLE] for i in range(_SAMPLE)] if len(texts) > _SAMPLE else list(texts)


def find_model_for(texts: Sequence[str]) -> Path:
    """Return the folder of the default model for texts: `KEXUE_MODEL`, else by `foreign_share` of a sample of them.

    Up to 5 % the English all-MiniLM-L6-v2, above it multilingual-e5-small. Where the latter is missing, mostly Chinese
    texts get roformer-sim-tiny-zh, where it is a part of this kexue; texts that are at least half English get the
    English model, with a warning.

    Args:
        texts: the texts, or the first of them.

    Raises:
        ModelNotFoundError: the model is neither on this machine nor on the hub.

    Example:
        >>> find_model_for(["A dog runs.", "It rains."]).name  # doctest: +SKIP
        'model'
    """
    if named_default() is not None:
        return find_model("auto")
    sample = sample_texts(texts)
    share = foreign_share(sample)
    if share <= FOREIGN_SHARE:
        return find_model(DEFAULT_MODEL)
    try:
        return find_model(MULTILINGUAL)
    except ModelNotFoundError as error:
        if chinese_share(sample) > _MOSTLY and (own := tiny_chinese_folder()) is not None:
            return own
        if share > _MOSTLY:
            error.message = f"{share:.0%} of the words are not English, and {error.message}"
            raise
        reason = str(error)
    folder = find_model(DEFAULT_MODEL)
    warnings.warn(
        f"{share:.0%} of the words are not English; {DEFAULT_MODEL}, which says little about them, is used, because "
        f"{reason}",
        UserWarning,
        stacklevel=2,
    )
    return folder
