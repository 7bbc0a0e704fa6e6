"""Small trainings behind the page of CLUE: spans by two heads or by one softmax, and segments never trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from kexue._optional import import_optional
from kexue.experiments._training import fit, shuffled_rows, torch_seed

_WIDTH, _BATCH = 64, 32
_MASK, _CLS, _SEP, _FIRST = 1, 2, 3, 4  # tokens; words begin with the last of them
# questions: a key of 8, and the two spans of its 3 words that answer it, among 40 other words
_KEYS, _WORDS_OF_KEY, _OTHERS, _CONTEXT = 8, 3, 40, 30
# sentences: 8 words of one of 20 topics, which has 10 words
_TOPICS, _WORDS_OF_TOPIC, _SENTENCE = 20, 10, 8


def _build_encoder(words: int) -> Any:
    """A Transformer of two layers with two segments, whose table starts at random."""
    from kexue.nn import Transformer, TransformerConfig

    return Transformer(TransformerConfig(words, _WIDTH, num_layers=2, norm="pre"))


# ---- spans ---------------------------------------------------------------------------------------------------------


def measure_spans(seed: int, steps: int) -> dict[str, float]:
    """Train two heads, and one softmax over all spans, on questions with two right answers.

    Returns:
        ``illegal_heads``, ``illegal_joint``: share of 2,000 test questions whose answer ends before it starts;
        ``em_heads``, ``em_legal`` (the best legal pair of the two heads), ``em_joint``: share answered exactly.
    """
    torch = import_optional("torch", extra="train")
    from kexue.nn import GlobalPointer

    rng = np.random.default_rng(seed)
    ids, spans = map(torch.from_numpy, draw_questions(rng, 8000))
    test_ids, test_spans = map(torch.from_numpy, draw_questions(rng, 2000))
    cross_entropy = torch.nn.functional.cross_entropy
    length = ids.shape[1]
    gold = spans[torch.arange(len(spans)), torch.from_numpy(rng.integers(0, 2, len(spans)))]  # either of the two

    def train(head: Any, loss: Callable[[Any, Any], Any]) -> Any:
        with torch_seed(seed):
            encoder = _build_encoder(_FIRST + _KEYS * (1 + _WORDS_OF_KEY) + _OTHERS)
        optimizer = torch.optim.Adam([*encoder.parameters(), *head.parameters()], 1e-3)
        rows = shuffled_rows(len(ids), _BATCH, -(-steps * _BATCH // len(ids)), np.random.default_rng(seed))[:steps]
        fit(
            [encoder, head],
            lambda r: loss(head(encoder(ids[r]).last_hidden_state), gold[r]),
            rows,
            optimizer,
        )
        with torch.no_grad():
            return head(encoder(test_ids).last_hidden_state)

    with torch_seed(seed):
        heads, joint = torch.nn.Linear(_WIDTH, 2), GlobalPointer(_WIDTH, 1, upper_only=False)
    edges = train(heads, lambda scores, g: cross_entropy(scores, g) * 2)  # (B, T, 2): a softmax for each edge
    cells = train(joint, lambda scores, g: cross_entropy(scores.flatten(1), g[:, 0] * length + g[:, 1]))
    pairs = edges[:, :, None, 0] + edges[:, None, :, 1]
    guesses = {
        "heads": edges.argmax(1),
        "legal": _best_cell(pairs.masked_fill(~torch.ones(length, length, dtype=torch.bool).triu(), -torch.inf)),
        "joint": _best_cell(cells[:, 0]),
    }
    right = {name: (guess[:, None] == test_spans).all(2).any(1).double().mean() for name, guess in guesses.items()}
    illegal = {name: (guess[:, 1] < guess[:, 0]).double().mean() for name, guess in guesses.items()}
    return {f"em_{name}": float(x) for name, x in right.items()} | {
        f"illegal_{name}": float(x) for name, x in illegal.items()
    }


def _best_cell(scores: Any) -> Any:
    """(start, end) (B, 2) of the largest score of (B, T, T)."""
    torch = import_optional("torch", extra="train")
    best = scores.flatten(1).argmax(1)
    return torch.stack([best // scores.shape[2], best % scores.shape[2]], 1)


def draw_questions(rng: np.random.Generator, n: int) -> tuple[Any, Any]:
    """Token ids (n, 1 + context) that begin with a key, and the (start, end) of both answers, (n, 2, 2)."""
    first_other = _FIRST + _KEYS * (1 + _WORDS_OF_KEY)
    ids = rng.integers(first_other, first_other + _OTHERS, (n, 1 + _CONTEXT))
    spans = np.zeros((n, 2, 2), np.int64)
    half = _CONTEXT // 2
    for row in range(n):
        key = int(rng.integers(_KEYS))
        ids[row, 0] = _FIRST + key
        for answer in range(2):
            size = int(rng.integers(2, 6))
            start = 1 + answer * half + int(rng.integers(0, half - size))  # a word at least between the two
            words = _FIRST + _KEYS + key * _WORDS_OF_KEY
            ids[row, start : start + size] = rng.integers(words, words + _WORDS_OF_KEY, size)
            spans[row, answer] = start, start + size - 1
    return ids, spans


# ---- segments ------------------------------------------------------------------------------------------------------


def measure_segments(seed: int, pretraining: int, steps: int) -> dict[str, float]:
    """Pretrain on single sentences, then tell pairs of one topic from others, with segments 0/0 and 0/1.

    Segment 1 is never trained before. Returns ``zeros`` and ``ones``, the accuracy on 2,000 pairs.
    """
    torch = import_optional("torch", extra="train")
    rng = np.random.default_rng(seed)
    words = _FIRST + _TOPICS * _WORDS_OF_TOPIC
    with torch_seed(seed):
        encoder, decoder = _build_encoder(words), torch.nn.Linear(_WIDTH, words)
    texts = torch.from_numpy(draw_sentences(rng, rng.integers(_TOPICS, size=pretraining * _BATCH)))
    hidden = torch.from_numpy(rng.random(texts.shape) < 0.2)
    hidden[:, 0] = False  # [CLS]
    rows = torch.arange(len(texts)).split(_BATCH)

    def restore(r: Any) -> Any:
        ids = texts[r].masked_fill(hidden[r], _MASK)
        states = encoder(ids).last_hidden_state[hidden[r]]
        return torch.nn.functional.cross_entropy(decoder(states), texts[r][hidden[r]])

    fit([encoder, decoder], restore, rows, torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], 1e-3))
    train, test = draw_pairs(rng, 1000), draw_pairs(rng, 2000)
    start = {name: value.clone() for name, value in encoder.state_dict().items()}
    accuracies = {}
    for name, second in (("zeros", 0), ("ones", 1)):
        encoder.load_state_dict(start)
        accuracies[name] = _tune_on_pairs(encoder, train, test, second, seed, steps)
    return accuracies


def _tune_on_pairs(encoder: Any, train: Any, test: Any, second: int, seed: int, steps: int) -> float:
    """Accuracy on test pairs after training on others; `second` is the segment of the second sentence."""
    torch = import_optional("torch", extra="train")
    with torch_seed(seed):
        head = torch.nn.Linear(_WIDTH, 2)
    segments = torch.zeros(2 * _SENTENCE + 3, dtype=torch.int64)
    segments[_SENTENCE + 2 :] = second

    def classify(ids: Any) -> Any:
        return head(encoder(ids, segment_ids=segments.expand(len(ids), -1)).last_hidden_state[:, 0])

    ids, labels = train
    rows = shuffled_rows(len(ids), _BATCH, -(-steps * _BATCH // len(ids)), np.random.default_rng(seed))[:steps]
    optimizer = torch.optim.Adam([*encoder.parameters(), *head.parameters()], 3e-4)
    fit([encoder, head], lambda r: torch.nn.functional.cross_entropy(classify(ids[r]), labels[r]), rows, optimizer)
    with torch.no_grad():
        return float((classify(test[0]).argmax(1) == test[1]).double().mean())


def draw_sentences(rng: np.random.Generator, topics: Any) -> Any:
    """Token ids (n, 2 + 8) of ``[CLS] sentence [SEP]``: words of a topic, each with chance 0.3 of any topic."""
    shape = (len(topics), _SENTENCE)
    topic = np.where(rng.random(shape) < 0.3, rng.integers(_TOPICS, size=shape), np.asarray(topics)[:, None])
    words = _FIRST + topic * _WORDS_OF_TOPIC + rng.integers(_WORDS_OF_TOPIC, size=shape)
    return np.pad(words, ((0, 0), (1, 1)), constant_values=((0, 0), (_CLS, _SEP)))


def draw_pairs(rng: np.random.Generator, n: int) -> tuple[Any, Any]:
    """``[CLS] a [SEP] b [SEP]`` (n, 19) and labels (n,): 1 where both are of one topic."""
    torch = import_optional("torch", extra="train")
    first = rng.integers(_TOPICS, size=n)
    labels = rng.integers(2, size=n)
    second = np.where(labels == 1, first, (first + rng.integers(1, _TOPICS, size=n)) % _TOPICS)
    ids = np.hstack([draw_sentences(rng, first), draw_sentences(rng, second)[:, 1:]])
    return torch.from_numpy(ids), torch.from_numpy(labels)
