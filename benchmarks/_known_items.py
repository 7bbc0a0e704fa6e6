"""Known-item queries: texts, and for each query the place of the one text that answers it."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kexue.demo import known_item_queries, standard_library

FIRST = ("Maria", "Jonas", "Priya", "Chen", "Aisha", "Tomasz", "Elena", "Kofi", "Yuki", "Omar", "Ingrid", "Rafael")
LAST = (
    "Kowalczyk",
    "Okafor",
    "Lindqvist",
    "Marchetti",
    "Nakamura",
    "Haddad",
    "Petrov",
    "Oyelaran",
    "Svensson",
    "Dvorak",
)
FAMILY, GIVEN = (
    "赵钱孙李周吴郑王冯陈褚卫蒋沈韩杨朱秦尤许何吕施张",
    "伟芳娜敏静丽强磊军洋勇艳杰娟涛明超霞平刚桂英建华文玉",
)


class KnownItems(NamedTuple):
    """`queries` (m,) and the place in `texts` (n,) of the answer to each; `language` chooses the encoder."""

    texts: list[str]
    queries: list[str]
    wanted: list[int]
    language: str


def stdlib(data: Path, generator: np.random.Generator, m: int) -> KnownItems:
    """Docstrings of the standard library; a query is a later sentence of one, or the words of a name."""
    entries = standard_library()
    queries, names = known_item_queries(entries, generator=generator)
    place = {entry.name: at for at, entry in enumerate(entries)}
    texts = [entry.text for entry in entries]
    return KnownItems(texts, queries[:m], [place[name] for name in names[:m]], "en")


def faq_zh(data: Path, generator: np.random.Generator, m: int) -> KnownItems:
    """Questions about insurance; a query is one half of a question, cut anywhere."""
    texts = list(_faq(data))
    some = generator.permutation([at for at, text in enumerate(texts) if len(text) >= 8])[:m].tolist()
    queries = []
    for at in some:
        half = (len(texts[at]) + 1) // 2
        start = int(generator.integers(0, len(texts[at]) - half + 1))
        queries.append(texts[at][start : start + half])
    return KnownItems(texts, queries, some, "zh")


def faq_en_zh(data: Path, generator: np.random.Generator, m: int) -> KnownItems:
    """The same questions, asked in English."""
    faq = _faq(data)
    texts = list(faq)
    some = generator.permutation(len(texts))[:m].tolist()
    return KnownItems(texts, [faq[texts[at]] for at in some], some, "zh")


def _faq(data: Path) -> dict[str, str]:
    with gzip.open(data / "faq_zh/insuranceqa_questions.jsonl.gz", "rt", encoding="utf-8") as file:
        return {row["question_zh"].strip(): row["question_en"] for row in map(json.loads, file)}


def reviews_zh(data: Path, generator: np.random.Generator, m: int) -> KnownItems:
    """Reviews of hotels: every second clause is the text, the clauses between are the query."""
    texts, halves = [], {}
    for text in _reviews(data, "chnsenticorp_hotel"):
        clauses = [one for one in re.findall(r"[^。！？!?；;.，,]+[。！？!?；;.，,]*", text) if len(one.strip()) > 1]
        if len(clauses) >= 6:
            halves[len(texts)] = "".join(clauses[1::2])
            texts.append("".join(clauses[::2]))
        else:
            texts.append(text)
    some = generator.permutation(list(halves))[:m].tolist()
    return KnownItems(texts, [halves[at] for at in some], some, "zh")


def codes_en(data: Path, generator: np.random.Generator, m: int) -> KnownItems:
    """Sentences with an order number, a model code or a name; a query asks for it, sometimes in small letters."""
    base = set()
    for path in sorted((data / "pairs_en/stsb_en").glob("*")):
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            base |= {field for line in file for field in re.split(r"\t|\"", line.rstrip("\n")) if 30 < len(field) < 300}
    return _codes(
        sorted(base),
        "en",
        generator,
        m,
        name=lambda: f"{generator.choice(FIRST)} {generator.choice(LAST)}",
        tell=("{1} wrote: {0}", "{0} Reference {1}.", "Item {1}: {0}"),
        ask=("{}", "what happened with {}", "message about {} please"),
    )


def codes_zh(data: Path, generator: np.random.Generator, m: int) -> KnownItems:
    """The same in Chinese, in reviews of meals."""
    base = [text for text in _reviews(data, "waimai_10k") if 12 < len(text) < 300]
    return _codes(
        sorted(base),
        "zh",
        generator,
        m,
        name=lambda: "".join([generator.choice(list(FAMILY)), *generator.choice(list(GIVEN), 2)]),
        tell=("{0}（顾客{1}）", "{0}，订单号{1}。", "型号{1}：{0}"),
        ask=("{}", "{}是怎么回事", "查一下{}的评价"),
    )


def _codes(
    base: list[str],
    language: str,
    generator: np.random.Generator,
    m: int,
    *,
    name: Callable[[], str],
    tell: tuple[str, str, str],
    ask: tuple[str, str, str],
) -> KnownItems:
    """Give each of 4,000 texts a name or a code, and ask for those that only one text has."""
    texts, facts = [], []
    for at in generator.permutation(len(base))[:4000]:
        named = generator.random() < 0.25
        facts.append(name() if named else _code(generator))
        form = tell[0] if named else tell[int(generator.integers(1, 3))]
        texts.append(form.format(base[at], facts[-1]))
    some = [int(at) for at in generator.permutation(len(texts)) if facts.count(facts[at]) == 1][:m]
    queries = []
    for at in some:
        fact = facts[at].lower() if generator.random() < 0.3 else facts[at]
        queries.append(ask[int(generator.integers(0, 3))].format(fact))
    return KnownItems(texts, queries, some, language)


def _code(generator: np.random.Generator) -> str:
    """Return a random order number, model code or version."""

    def letters(k: int) -> str:
        return "".join(generator.choice(list("ABCDEFGHJKLMNPQRSTUVWXYZ"), k))

    def digits(k: int) -> str:
        return "".join(map(str, generator.integers(0, 10, k)))

    version = f"v{generator.integers(1, 9)}.{generator.integers(0, 20)}.{generator.integers(0, 30)}"
    forms = [
        f"{letters(2)}-{digits(4)}",
        f"{letters(1)}{digits(3)}{letters(1)}",
        digits(8),
        f"{letters(3)}-{digits(2)}-{letters(1)}{digits(3)}",
        version,
    ]
    return str(forms[int(generator.integers(0, 5))])


def _reviews(data: Path, name: str) -> list[str]:
    """Return the different texts of a file of reviews."""
    with gzip.open(data / f"reviews_zh/{name}.tsv.gz", "rt", encoding="utf-8") as file:
        next(file)
        return [text for text in dict.fromkeys(line.rstrip("\n").split("\t", 1)[1].strip() for line in file) if text]


SETS: dict[str, Callable[[Path, np.random.Generator, int], KnownItems]] = {
    one.__name__: one for one in (stdlib, faq_zh, faq_en_zh, reviews_zh, codes_en, codes_zh)
}


def read_set(name: str, data: Path, m: int) -> KnownItems:
    """Return a set by its name; its seed is its place among all."""
    return SETS[name](data, np.random.default_rng(list(SETS).index(name)), m)
