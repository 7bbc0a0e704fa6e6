"""Sentences about any word: the Chinese pieces of the teacher's vocabulary in general forms, and in rows of words.

The texts of the other sources are about few things. The teacher knows far more words, and scores any text, so a row of
words that is no sentence is a lesson, too: it says what each word means beside the others.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence

FORMS = (
    # forms that mean the same, about a word w, or two
    ("什么是{w}", "{w}是什么", "{w}是什么意思", "{w}指的是什么", "谁能解释一下{w}", "{w}是啥"),
    ("{w}怎么样", "{w}好不好", "{w}如何", "大家觉得{w}怎么样", "{w}到底好不好"),
    ("{w}在哪里", "哪里有{w}", "{w}在什么地方", "在哪能找到{w}", "哪儿有{w}"),
    ("{w}多少钱", "{w}的价格是多少", "{w}要花多少钱", "{w}贵吗"),
    ("怎么{w}", "如何{w}", "{w}的方法", "怎样才能{w}", "{w}应该怎么做"),
    ("为什么{w}", "{w}的原因是什么", "为何{w}", "{w}是什么原因"),
    ("{w}是谁", "谁是{w}", "{w}是什么人", "介绍一下{w}这个人"),
    ("{w}什么时候", "什么时候{w}", "{w}是哪天", "{w}的时间"),
    ("{w}有哪些", "有哪些{w}", "{w}都有什么", "常见的{w}"),
    ("{w}和{v}有什么区别", "{w}与{v}的不同", "{w}跟{v}的区别是什么"),
    ("{w}和{v}哪个好", "{w}好还是{v}好", "选{w}还是选{v}"),
    ("{w}的{v}", "{w}的{v}是什么", "{w}有什么{v}", "关于{w}的{v}"),
    ("{w}里有{v}", "{v}在{w}里", "{w}里面的{v}"),
    ("我想要{w}", "我要{w}", "给我{w}", "我需要{w}"),
    ("我喜欢{w}", "我很喜欢{w}", "我爱{w}"),
    ("我不喜欢{w}", "我讨厌{w}", "我一点也不喜欢{w}"),
    ("他在{w}", "他正在{w}", "一个人在{w}"),
    ("没有{w}", "这里没有{w}", "不是{w}", "别的地方没有{w}"),
    ("{w}能{v}吗", "{w}可以{v}吗", "{w}是否能{v}"),
    ("关于{w}的电影", "{w}的小说", "{w}的歌", "{w}的图片", "{w}的故事"),
)


def list_words(tokens: Sequence[str]) -> list[str]:
    """Return the Chinese pieces of two to five characters of a SentencePiece vocabulary, in its order."""
    pieces = (token.removeprefix("▁") for token in tokens)
    return list(dict.fromkeys(piece for piece in pieces if re.fullmatch(r"[\u4e00-\u9fff]{2,5}", piece)))


def write_forms(words: Sequence[str], count: int, *, seed: int) -> Iterator[list[str]]:
    """Yield `count` groups of two or three sentences of one meaning."""
    rng = random.Random(seed)
    for _ in range(count):
        forms = rng.choice(FORMS)
        w, v = rng.choice(words), rng.choice(words)
        yield [form.format(w=w, v=v) for form in rng.sample(forms, min(len(forms), rng.randint(2, 3)))]


def write_rows(words: Sequence[str], count: int, *, seed: int) -> Iterator[str]:
    """Yield `count` rows of two to five words."""
    rng = random.Random(seed)
    for _ in range(count):
        yield "".join(rng.choice(words) for _ in range(rng.randint(2, 5)))
