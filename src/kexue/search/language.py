"""Language of a text, guessed from its letters and, in Latin script, from common words."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

_CHARACTERS = 1000  # of a text that are looked at
_SCRIPTS = {"CJK": "zh", "HIRAGANA": "ja", "KATAKANA": "ja", "HANGUL": "ko", "CYRILLIC": "ru"}
_WORD = re.compile("[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\\W\\d_\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")
_KANA_SHARE = 0.1  # of the letters of a text that is Japanese, not Chinese
_FOREIGN_WORDS = 2  # common words that a text in Latin script needs to count as other than English
# Words of these languages that none of the others has, as a rule.
_COMMON = {
    "en": "the of and is are how what which does do to with from that this for not when where why who can my your",
    "de": "der die das und ist sind wie was welche nicht mit von zu den dem ein eine einen für auf wann wo warum wer",
    "fr": "le les des et est sont comment quelle pas avec du une pour sur quand où pourquoi qui je mon dans au",
    "es": "el los las y es son cómo qué cuál no con del una para cuándo dónde por quién mi se lo al su en",
}
COMMON_WORDS: dict[str, set[str]] = {name: set(words.split()) for name, words in _COMMON.items()}


def guess_language(text: str) -> str | None:
    """Return the language of a text as a code such as ``"en"``; None where its letters do not tell.

    Scripts that one well-known language writes stand for it (Cyrillic: ``"ru"``); others give the name of the script,
    such as ``"thai"``. Each Chinese character counts as much as a word. Latin script is English, German, French or
    Spanish by its common words, and None without any (without two, for other languages than English).

    >>> [guess_language(text) for text in ("How long does it take?", "退货要多久", "какая погода", "3.10", "AB-12")]
    ['en', 'zh', 'ru', None, None]
    """
    counts: Counter[str] = Counter()
    words = _WORD.findall(text[:_CHARACTERS])
    for word in words:
        counts[unicodedata.name(word[0], "UNKNOWN").split()[0]] += 1
    if not counts:
        return None
    kana = counts.pop("HIRAGANA", 0) + counts.pop("KATAKANA", 0)
    if kana:
        chinese = counts.pop("CJK", 0)
        counts["CJK" if kana < _KANA_SHARE * (kana + chinese) else "HIRAGANA"] += kana + chinese
    script = counts.most_common(1)[0][0]
    if script != "LATIN":
        return _SCRIPTS.get(script, script.lower())
    lower = [word.lower() for word in words]
    common = {name: sum(word in known for word in lower) for name, known in COMMON_WORDS.items()}
    best = max(common, key=lambda name: common[name])
    return best if common[best] >= (1 if best == "en" else _FOREIGN_WORDS) else None


def guess_main_language(texts: Iterable[str]) -> str:
    """Return the language of most texts; English where none tells.

    >>> guess_main_language(["退货要多久", "怎么付款", "iPhone"])
    'zh'
    """
    counts = Counter(language for text in texts if (language := guess_language(text)) is not None)
    return counts.most_common(1)[0][0] if counts else "en"


_NAMES = {
    "en": "English", "zh": "Chinese", "ja": "Japanese", "ko": "Korean", "ru": "Russian", "de": "German",
    "fr": "French", "es": "Spanish",
}  # fmt: skip


def name_language(language: str) -> str:
    """Return the English name of a language or script that `guess_language` returns."""
    return _NAMES.get(language, language.capitalize())
