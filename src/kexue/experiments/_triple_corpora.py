"""Texts with triples: sentences of templates that cover the ways in which triples overlap, and two annotated corpora.

The last function says which of the triples a sequence of tags, one for each character, can hold at all.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise, product
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kexue.experiments._data import read_lines
from kexue.extract.reading import read_triples
from kexue.extract.triples import Span, Triple, TripleExample, annotate

SKE, LITERATURE = "triples_zh/ske2019_sample", "triples_zh/literature_re"
PATTERNS = ("plain", "objects", "subjects", "pairs", "predicates", "nested", "none")
_NESTED = {"n": ("a", "文集 诗选 自传 小说集"), "m": ("p", "大学 博物馆 机场 日报")}  # a name with a suffix
_FORMS = {  # pattern: texts, and their triples as "subject predicate object"; the letters are slots for names
    "plain": (
        "{a}出生于{p}|a 出生地 p",
        "电影《{w}》的导演是{a}|w 导演 a",
        "毕业于{s}的{a}今天来访|a 毕业院校 s",
        "{a}，{p}人，作家|a 出生地 p",
        "读过《{w}》的人都记得作者{a}|w 作者 a",
    ),
    "objects": (
        "《{w}》由{a}、{b}和{c}主演|w 主演 a;w 主演 b;w 主演 c",
        "{a}导演的《{w}》由{b}主演|w 导演 a;w 主演 b",
        "{a}生于{p}，后来考入{s}|a 出生地 p;a 毕业院校 s",
        "由{a}编剧、{b}主演的《{w}》上映了|w 编剧 a;w 主演 b",
    ),
    "subjects": (
        "{a}和{b}都是{p}人|a 出生地 p;b 出生地 p",
        "{a}、{b}、{c}同年从{s}毕业|a 毕业院校 s;b 毕业院校 s;c 毕业院校 s",
        "{a}导演过《{w}》和《{v}》|w 导演 a;v 导演 a",
        "《{w}》《{v}》的作者都是{a}|w 作者 a;v 作者 a",
    ),
    "pairs": (
        "{a}出生于{p}，{b}出生于{q}|a 出生地 p;b 出生地 q",
        "《{w}》由{a}执导，《{v}》由{b}执导|w 导演 a;v 导演 b",
        "{a}写了《{w}》，{b}写了《{v}》|w 作者 a;v 作者 b",
        "{a}生于{p}，她在《{w}》里与{b}同台|a 出生地 p;w 主演 a;w 主演 b",
    ),
    "predicates": (
        "{a}自编自导了电影《{w}》|w 导演 a;w 编剧 a",
        "《{w}》由{a}作词并作曲|w 作词 a;w 作曲 a",
        "{a}自导自演的《{w}》得了奖|w 导演 a;w 主演 a",
        "《{w}》的词和曲都出自{a}之手，歌手是{b}|w 作词 a;w 作曲 a;w 歌手 b",
    ),
    "nested": (
        "书架上放着《{n}》|a 著有 n",
        "他在路上读完了《{n}》|a 著有 n",
        "{m}昨天开放参观|p 拥有 m",
        "{b}路过{m}|p 拥有 m",
    ),
    "none": ("{a}昨天去了{p}|", "{a}没有看过《{w}》|", "{a}和{b}在{s}门口见面|", "记者从{p}发来报道，{a}摄影|"),
}
_PERSON, _WORK, _PLACE, _SCHOOL = "abc", "wv", "pq", "s"
_FAMILY = "王李张刘陈杨赵黄周吴徐孙胡朱高林何郭马罗"
_GIVEN = "伟芳娜敏静丽强磊军洋勇艳杰娟涛明超秀霞平刚桂英华玉兰文斌宇浩凯鑫波辉健"
_TITLE = "风雨雪月花春夏秋冬山河海天空长夜城歌梦路归远故乡红白青黄千万里江湖星光少年往事时"
_GROUND = "东西南北安宁江河清泉石林云阳定兴昌平金龙桥口谷川"
_END_OF_SENTENCE = re.compile(r"(?<=[。！？!?；;])")


class Sentence(NamedTuple):
    """An example, and the pattern that it was written by."""

    pattern: str
    example: TripleExample


# ---- templates -----------------------------------------------------------------------------------------------------


def write_sentences(n: int, generator: np.random.Generator, *, names: int | None = None) -> list[Sentence]:
    """Return n different sentences, of all patterns in turn, in any order.

    Args:
        n: number of sentences.
        generator: of the draws.
        names: names of each kind, so that triples recur in other sentences; None: new ones for each sentence.
    """
    pools = None if names is None else {kind: _draw_names(kind, names, generator) for kind in _KINDS}
    texts: dict[str, Sentence] = {}
    while len(texts) < n:
        pattern = PATTERNS[len(texts) % len(PATTERNS)]
        form = _FORMS[pattern][generator.integers(len(_FORMS[pattern]))]
        slots: dict[str, str] = {}
        for kind in _KINDS:
            pool = _draw_names(kind, len(kind), generator) if pools is None else pools[kind]
            slots |= dict(zip(kind, generator.permutation(pool)[: len(kind)].tolist(), strict=True))
        for slot, (inner, suffixes) in _NESTED.items():
            slots[slot] = slots[inner] + str(generator.choice(suffixes.split()))
        text, _, rest = form.partition("|")
        text = text.format(**slots)
        triples = (one.split() for one in rest.split(";") if one)
        found = tuple(annotate(text, slots[s], predicate, slots[o]) for s, predicate, o in triples)
        texts.setdefault(text, Sentence(pattern, TripleExample(text, found)))
    sentences = list(texts.values())
    return [sentences[i] for i in generator.permutation(n)]


_KINDS = (_PERSON, _WORK, _PLACE, _SCHOOL)


def _draw_names(kind: str, n: int, generator: np.random.Generator) -> list[str]:
    """Return n names of a kind, none of them a part of another."""

    def draw(characters: str, least: int, most: int) -> str:
        return "".join(generator.choice(list(characters), generator.integers(least, most + 1)))

    def write() -> str:
        if kind == _PERSON:
            return draw(_FAMILY, 1, 1) + draw(_GIVEN, 1, 2)
        if kind == _WORK:
            return draw(_TITLE, 2, 5)
        if kind == _PLACE:
            return draw(_GROUND, 2, 2) + draw("市县镇", 1, 1)
        return draw(_GROUND, 2, 2) + draw("理工师范", 1, 1) + "学院"

    chosen: list[str] = []
    while len(chosen) < n:
        name = write()
        if not any(name in other or other in name for other in chosen):
            chosen.append(name)
    return chosen


# ---- annotated corpora ---------------------------------------------------------------------------------------------


def read_ske(folder: Path, split: str) -> list[TripleExample]:
    """Return the sentences of a split of the sample of SKE 2019, titles as they are."""
    return read_triples(folder / SKE / f"{split}.jsonl.gz")


def read_literature(folder: Path, split: str) -> list[TripleExample]:
    """Return the sentences of a split of the articles of literature, with the relations inside a sentence.

    A relation whose two entities are in different sentences is left out; so is one of an entity without a span.
    """
    examples = []
    for line in read_lines(folder / LITERATURE / f"{split}.jsonl.gz"):
        record = json.loads(line)
        examples += split_article(record["text"], record["entities"], record["relations"])
    return examples


def split_article(
    text: str, entities: Sequence[dict[str, object]], relations: Sequence[dict[str, object]]
) -> list[TripleExample]:
    """Return the sentences of an article, line breaks left out, with the relations between entities of a sentence."""
    places = np.cumsum([0, *(character != "\n" for character in text)])  # of each character without line breaks
    spans = {e["id"]: (int(places[e["start"]]), int(places[e["end"]])) for e in entities}  # type: ignore[call-overload]
    examples, start = [], 0
    for sentence in _END_OF_SENTENCE.split(text.replace("\n", "")):
        end, triples = start + len(sentence), dict[Triple, None]()
        for relation in relations:
            pair = [spans.get(relation[name], (-1, -1)) for name in ("arg1", "arg2")]
            if all(start <= low < high <= end for low, high in pair):
                subject, object = ((low - start, high - start) for low, high in pair)
                names = sentence[slice(*subject)], str(relation["type"]), sentence[slice(*object)]
                triples[Triple(*names, subject, object)] = None
        if sentence.strip():
            examples.append(TripleExample(sentence, tuple(triples)))
        start = end
    return examples


def choose_sentences(
    parts: Sequence[Sequence[TripleExample]], *, longest: int, predicates: int, most: int
) -> list[list[TripleExample]]:
    """Return of each part the first `most` sentences with a triple, of at most `longest` characters.

    Triples of other predicates than the `predicates` commonest ones of the first part are left out.
    """
    counts = Counter(triple.predicate for example in parts[0] for triple in example.triples)
    kept = {predicate for predicate, _ in counts.most_common(predicates)}
    chosen = []
    for part in parts:
        short = (one for one in part if len(one.text) <= longest)
        fewer = (TripleExample(one.text, tuple(t for t in one.triples if t.predicate in kept)) for one in short)
        chosen.append([one for one in fewer if one.triples][:most])
    return chosen


# ---- what tags can hold --------------------------------------------------------------------------------------------


def count_taggable(example: TripleExample) -> int:
    """Return how many triples of an example one tag for each character can hold, at most.

    A tag says predicate, role (subject or object) and place within the name; which subject belongs to which object is
    granted for nothing. Each span is given one (predicate, role) or none, spans that share a character not both one;
    a triple is held where its two spans have its predicate. All choices are tried.
    """
    choices: dict[Span, set[tuple[str, str] | None]] = {}
    needs = []
    for triple in example.triples:
        if triple.subject_span is None or triple.object_span is None:
            continue
        ends = {triple.subject_span: (triple.predicate, "subject"), triple.object_span: (triple.predicate, "object")}
        if len(ends) == 2:
            needs.append(ends)
            for span, tag in ends.items():
                choices.setdefault(span, {None}).add(tag)
    best = 0
    for tags in product(*choices.values()):
        tagged = sorted(span for span, tag in zip(choices, tags, strict=True) if tag is not None)
        if any(left[1] > right[0] for left, right in pairwise(tagged)):
            continue
        chosen = dict(zip(choices, tags, strict=True))
        best = max(best, sum(all(chosen[span] == tag for span, tag in ends.items()) for ends in needs))
    return best
