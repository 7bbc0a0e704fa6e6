"""Chinese sentence models beside each other: five sets of pairs, pairs with a negation, sentences that are written.

    python benchmarks/chinese.py [MODEL...] [--writer MODEL] [--judge MODEL] [--pairs 20000] [--quick] [--out FILE]

Pairs: Spearman x100 between labels and scores on a random part of each set (KEXUE_DATA), with its bootstrap interval;
the test split where the folder has one, else the validation split, on which nothing was chosen. Beside the models: the
mean of random vectors of characters, TF-IDF of one and two characters, BM25. "+ tf-idf" is the mean of the standard
scores of a way and of TF-IDF. Writing: 20 sentences for each question; a judge, a model trained on labelled pairs,
accepts a sentence whose cosine to the question is above the threshold with the best mean of sensitivity and specificity
on its training set.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer

from _shared import write_record
from kexue.similarity import PairDataset, load_pairs
from kexue.similarity.bootstrap import bootstrap_spearman, percentile_interval
from kexue.similarity.metrics import spearman
from kexue.text import Encoder, RoFormerSim
from kexue.text.models import DEFAULT_MODEL, MULTILINGUAL
from models import SETS, part

TINY = "kexue/roformer-sim-tiny-zh"
NEGATIONS = (
    ("我喜欢北京", "我很喜欢北京", "我不喜欢北京"),
    ("今天天气不错", "今天天气很好", "今天天气不好"),
    ("这个可以退货", "这个能退货", "这个不可以退货"),
    ("他会说中文", "他能说中文", "他不会说中文"),
    ("我收到货了", "货我收到了", "我没收到货"),
    ("密码是对的", "密码正确", "密码不对"),
    ("这里允许停车", "这里可以停车", "这里禁止停车"),
    ("订单已经取消", "订单取消了", "订单没有取消"),
)
QUESTIONS = (
    "怎么退货", "手机屏幕碎了怎么办", "北京有什么好玩的地方", "怎么修改支付密码", "信用卡逾期了会怎么样",
    "附近有好吃的餐馆吗", "什么时候发货", "红烧肉怎么做", "如何学好英语", "为什么登录不了",
)  # fmt: skip
Scores = Callable[[PairDataset], np.ndarray]


def cosine_scores(encode: Callable[[list[str]], np.ndarray]) -> Scores:
    """Cosines of the pairs of a set."""

    def scores(data: PairDataset) -> np.ndarray:
        vectors = encode([*data.texts_a, *data.texts_b])
        n = len(data)
        return np.asarray((vectors[:n] * vectors[n:]).sum(1))

    return scores


def mean_of_characters(texts: list[str]) -> np.ndarray:
    """Unit means of fixed random vectors of the characters."""
    counts = CountVectorizer(analyzer="char").fit_transform(texts)
    vectors = counts @ np.random.default_rng(0).normal(size=(counts.shape[1], 512))
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def tfidf(data: PairDataset) -> np.ndarray:
    """Cosines of TF-IDF of one and two characters, weights from the texts of the set."""
    weights = TfidfVectorizer(analyzer="char", ngram_range=(1, 2)).fit([*data.texts_a, *data.texts_b])
    return np.asarray(weights.transform(data.texts_a).multiply(weights.transform(data.texts_b)).sum(1)).ravel()


def bm25(data: PairDataset, k1: float = 1.2, b: float = 0.75) -> np.ndarray:
    """Mean of the two BM25 scores of a pair, characters as words; statistics from the texts of the set."""
    counter = CountVectorizer(analyzer="char").fit([*data.texts_a, *data.texts_b])
    left, right = (counter.transform(texts).tocsr() for texts in (data.texts_a, data.texts_b))
    n, seen = 2 * len(data), np.asarray((left > 0).sum(0) + (right > 0).sum(0)).ravel()
    idf = np.log(1 + (n - seen + 0.5) / (seen + 0.5))
    mean = (left.sum() + right.sum()) / n

    def score(query: Any, document: Any) -> np.ndarray:
        length = np.asarray(document.sum(1)).ravel()
        weighted = document.astype(float).tocoo()
        norm = k1 * (1 - b + b * length[weighted.row] / mean)
        weighted.data = weighted.data * (k1 + 1) / (weighted.data + norm) * idf[weighted.col]
        return np.asarray((query > 0).multiply(weighted.tocsr()).sum(1)).ravel()

    return (score(left, right) + score(right, left)) / 2


def standard(scores: np.ndarray) -> np.ndarray:
    """Scores with mean 0 and standard deviation 1."""
    return (scores - scores.mean()) / max(float(scores.std()), 1e-12)


def measure_pairs(ways: dict[str, Scores], n: int, resamples: int) -> list[dict[str, Any]]:
    """Spearman of each way, alone and with TF-IDF, on each set, and the means over the sets."""
    rows, points = [], {}
    for name, split, language in SETS:
        if language != "zh":
            continue
        data = part(load_pairs(name, split), n)
        scores = {way: score(data) for way, score in ways.items()}
        words = standard(tfidf(data))
        scores |= {f"{way} + tf-idf": standard(one) + words for way, one in scores.items() if way != "tf-idf"}
        samples = bootstrap_spearman(list(scores.values()), data.labels, resamples, np.random.default_rng(0))
        for way, one, drawn in zip(scores, scores.values(), samples, strict=True):
            point = 100 * spearman(one, data.labels)
            low, high = percentile_interval(100 * np.asarray(drawn))
            points.setdefault(way, []).append((point, 100 * np.asarray(drawn)))
            print(f"{name:10s} n {len(data):5d}  {way:48s} {point:6.2f} [{low:.2f}, {high:.2f}]", flush=True)
            rows.append(
                {"set": name, "split": split, "n": len(data), "way": way, "spearman": point, "low": low, "high": high}
            )
    for way, sets in points.items():
        mean, drawn = float(np.mean([point for point, _ in sets])), np.mean([one for _, one in sets], axis=0)
        low, high = percentile_interval(drawn)
        print(f"mean       sets {len(sets)}   {way:48s} {mean:6.2f} [{low:.2f}, {high:.2f}]", flush=True)
        rows.append({"set": "mean", "way": way, "spearman": mean, "low": low, "high": high})
    return rows


def measure_negations(encoders: dict[str, Any]) -> list[dict[str, Any]]:
    """Cosine to a sentence with the same meaning and to its negation, and how often the former is larger."""
    rows = []
    for name, encoder in encoders.items():
        a, b, c = (np.asarray(encoder.encode(list(texts))) for texts in zip(*NEGATIONS, strict=True))
        same, negated = (a * b).sum(1), (a * c).sum(1)
        right = int((same > negated).sum())
        print(f"negation   {name:40s} same {same.mean():.3f}, negated {negated.mean():.3f}, right {right}/{len(same)}")
        rows.append({"model": name, "same": same.tolist(), "negated": negated.tolist()})
    return rows


def best_threshold(cosines: np.ndarray, labels: np.ndarray) -> float:
    """The threshold with the largest mean of sensitivity and specificity."""
    order = np.argsort(-cosines)
    hits = np.cumsum(labels[order]) / max(labels.sum(), 1)
    false = np.cumsum(1 - labels[order]) / max((1 - labels).sum(), 1)
    return float(cosines[order[int(np.argmax(hits - false))]])


def measure_writing(writer: str, judge: str | None, samples: int) -> dict[str, Any]:
    """Distinct characters of what is written, cosines between its sentences, and the share that a judge accepts."""
    model = RoFormerSim.from_pretrained(writer)
    record: dict[str, Any] = {"writer": writer, "samples": samples, "judge": judge}
    written = {text: [one.text for one in model.similar(text, n=samples, k=20, generator=0)] for text in QUESTIONS}
    everything = [one for texts in written.values() for one in texts]
    for size in (1, 2):
        grams = Counter(one[i : i + size] for one in everything for i in range(len(one) - size + 1))
        record[f"distinct_{size}"] = len(grams) / sum(grams.values())
    record["different"] = len(set(everything)) / (len(QUESTIONS) * 20)
    likeness = []
    for texts in written.values():
        vectors = model.encode(texts)
        cosines = vectors @ vectors.T
        likeness.append(float(cosines[~np.eye(len(texts), dtype=bool)].mean()))
    record["self_similarity"] = float(np.mean(likeness))
    if judge is not None:
        encoder, data = Encoder(judge), part(load_pairs("atec", "train"), 4000)
        threshold = best_threshold(cosine_scores(encoder.encode)(data), data.labels)
        accepted = [
            float(cosine >= threshold)
            for text, texts in written.items()
            for cosine in encoder.encode(texts) @ encoder.encode([text])[0]
        ]
        record |= {"threshold": threshold, "accepted": float(np.mean(accepted)), "judged": len(accepted)}
    print(record, flush=True)
    record["written"] = written
    for text, texts in written.items():
        print(f"{text}: {' | '.join(texts)}")
    return record


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="more models, such as the stages of a training")
    parser.add_argument("--writer", default=TINY)
    parser.add_argument("--judge", help="model trained on labelled pairs")
    parser.add_argument("--pairs", type=int, default=20_000, help="most pairs of a set, drawn at random if it has more")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that everything runs")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args(arguments)
    n, resamples, samples = (60, 20, 25) if options.quick else (options.pairs, 300, 100)
    encoders = {name: Encoder(name) for name in (DEFAULT_MODEL, MULTILINGUAL, TINY, *options.models)}
    ways: dict[str, Scores] = {"mean of characters": cosine_scores(mean_of_characters), "tf-idf": tfidf, "bm25": bm25}
    ways |= {name: cosine_scores(lambda texts, e=one: e.encode_queries(texts)) for name, one in encoders.items()}
    record = {
        "pairs": measure_pairs(ways, n, resamples),
        "negations": measure_negations(encoders),
        "writing": measure_writing(options.writer, options.judge, samples),
    }
    write_record(options.out, record, "torch", "transformers", "scikit-learn")
    return 0


if __name__ == "__main__":
    sys.exit(main())
