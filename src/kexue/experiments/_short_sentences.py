"""Short Chinese sentences: of topics and templates, of a grammar (both written for this package), and of corpora."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

from kexue.experiments._data import read_lines

TOPICS = ["音乐", "电影", "足球", "数学", "旅行", "咖啡", "花园", "历史"]
TEMPLATES = ["我很喜欢{}。", "你知道{}吗?", "关于{}的书在哪里?", "今天不谈{}了。", "{}让人快乐!", "谁不懂{}呢?"]
WHEN = ["今天", "明天", "昨天", "周末", "早上", "晚上"]
WHO = ["我们", "老师", "妈妈", "学生", "朋友", "医生", "邻居", "孩子"]
WHERE = ["公园", "学校", "家里", "车站", "海边", "山上"]
WHAT = ["唱歌", "跑步", "看书", "画画", "休息", "吃饭", "下棋", "拍照"]
ENDS = ["。", "吗?", "呢!"]
_CORPORA = ("corpus_zh/oppo_xiaobu_utterances.txt.gz", "corpus_zh/dialogue_utterances.txt.gz")
_TATOEBA = "parallel_en_zh/tatoeba.tsv.gz"


def write_grammar() -> list[str]:
    """All sentences, in a fixed random order."""
    every = [a + b + "在" + c + d + e for a in WHEN for b in WHO for c in WHERE for d in WHAT for e in ENDS]
    random.Random(0).shuffle(every)
    return every


def read_short(data: Path, longest: int, characters: int) -> list[str]:
    """Sentences of `longest` characters at most, all of the most frequent `characters`, in a fixed random order.

    Empty where the data folder lacks them.
    """
    texts = {text for name in _CORPORA if (data / name).is_file() for text in read_lines(data / name)}
    if (data / _TATOEBA).is_file():
        texts |= {fields[1] for line in read_lines(data / _TATOEBA) if len(fields := line.split("\t")) > 1}
    short = sorted(text for text in texts if 2 <= len(text) <= longest)
    counts = Counter("".join(short))
    frequent = {one for one, _ in counts.most_common(characters)}
    chosen = [text for text in short if set(text) <= frequent]
    random.Random(0).shuffle(chosen)
    return chosen
