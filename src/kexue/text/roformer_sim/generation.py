"""Writing of sentences, token by token, from token ids and with a cache.

The prefix ``[CLS] a [SEP]`` is read once; its keys and values serve all sentences that are written after it. Each
further step computes one token of each unfinished sentence. The result is that of the whole row, computed anew at every
step under the UniLM mask. Source: kexue.fm/archives/8454.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kexue._counts import check_counts, is_whole
from kexue._progress import Progress, ProgressCounter
from kexue._tensors import as_generator, evaluating
from kexue.nn.growing_cache import GrowingKeysValues
from kexue.nn.transformer import Cache
from kexue.text.roformer_sim.model import SentenceNetwork
from kexue.text.roformer_sim.token_sampler import TokenSampler
from kexue.text.tokenizer import TextTokenizer, list_texts

_ROWS = 512  # sentences written at a time: more need more memory and gain no speed
_LEAVE = 1 / 8  # share of finished sentences at which they leave the batch; the copy of the cache costs less from there


@dataclass(frozen=True)
class Marks:
    """Ids of the special tokens, as writing needs them.

    Attributes:
        end: [SEP], which ends a sentence.
        never: ids that are never written, such as those of [PAD], [CLS], [MASK] and [UNK].
        inside: ids that continue a word, such as that of ##a, with which no sentence begins.
    """

    end: int
    never: tuple[int, ...] = ()
    inside: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Prefix:
    """What the network knows after the prefixes of g texts, padded on the left to P tokens.

    Attributes:
        scores: (g, V), of the first token.
        cache: keys and values (g, h, P, d / h) of each layer.
        mask: (g, P) bool, True = token; None where all prefixes are equally long.
    """

    scores: Tensor
    cache: Cache
    mask: Tensor | None


def mask_places(ids: Sequence[int], places: Sequence[int], mask_id: int) -> list[int]:
    """Return the ids of ``[CLS] a [SEP]`` with [MASK] at places of a, where the sentences written may depart from it.

    Args:
        ids: all ids, with those of [CLS] and [SEP].
        places: of tokens of a, from 0 on; in a vocabulary of characters those of characters, spaces not counted.
        mask_id: id of [MASK].

    Raises:
        ValueError: a place outside the text. TypeError: a place that is not a whole number.
    """
    size = len(ids) - 2
    for place in places:
        if not is_whole(place):
            raise TypeError(f"mask_positions must be whole numbers, got {place!r}")
    wrong = [place for place in places if not 0 <= place < size]
    if wrong:
        expected = f"0 to {size - 1}" if size > 0 else "none, as the text has no token"
        raise ValueError(f"mask_positions: got {wrong[0]}, expected places of the text's {size} tokens: {expected}")
    masked = list(ids)
    for place in places:
        masked[1 + place] = mask_id
    return masked


def read_text(tokenizer: TextTokenizer, text: str, mask_positions: Iterable[int] = ()) -> tuple[list[int], Marks]:
    """Return the ids of ``[CLS] text [SEP]``, with [MASK] at `mask_positions`, and the special tokens.

    Raises:
        TypeError: not a string, or a place that is not a whole number. ValueError: a text without tokens, such as
            spaces and marks that are not seen; a place outside of it; a tokenizer without [SEP] or [MASK].
    """
    list_texts([text])  # raises TypeError
    places = list(mask_positions)
    if tokenizer.sep_id is None or (places and tokenizer.mask_id is None):
        raise ValueError(f"the tokenizer has no {'[SEP]' if tokenizer.sep_id is None else '[MASK]'}")
    ids = tokenizer.encode([text]).ids.tolist()
    if len(ids) <= tokenizer.specials:
        raise ValueError(f"the text {text!r} is blank, expected a sentence")
    special = (tokenizer.pad_id, tokenizer.unknown_id, tokenizer.cls_id, tokenizer.mask_id)
    inside = tuple(i for i, token in enumerate(tokenizer.tokens) if token.startswith("##"))
    marks = Marks(tokenizer.sep_id, tuple(one for one in special if one is not None), inside)
    return mask_places(ids, places, tokenizer.mask_id) if tokenizer.mask_id is not None else ids, marks


def write_sentences(
    network: SentenceNetwork,
    prefixes: Sequence[Sequence[int]],
    marks: Marks,
    *,
    n: int = 100,
    max_length: int = 32,
    sampler: TokenSampler | None = None,
    generator: torch.Generator | int | None = None,
    progress: Progress | None = None,
) -> list[list[list[int]]]:
    """Write n sentences after each prefix; return their token ids, without the end.

    With a seed, what is written after a prefix depends on neither the other prefixes nor n: a smaller n gives the first
    of a larger one (apart from rounding: two tokens that are equally likely up to rounding may be exchanged). A
    `torch.Generator` is read prefix by prefix. Memory grows with at most 512 sentences at a time.

    Args:
        network: put into evaluation mode while it writes.
        prefixes: ids of ``[CLS] a [SEP]`` of each text, of any lengths.
        marks: ids of the special tokens.
        n: sentences for each prefix, at least 1.
        max_length: tokens of a sentence at most, at least 1; one that has not ended by then breaks off. None is empty.
        sampler: rule that draws a token; None is ``TokenSampler()``.
        generator: random numbers, on the CPU whatever the device; an int seeds the same ones for every prefix.
        progress: called with the number of sentences done, and of all.

    Raises:
        ValueError: an empty prefix, a number out of range, or a model whose learned positions do not suffice.
    """
    _check(network, prefixes, n, max_length)
    sampler = sampler or TokenSampler()
    count = ProgressCounter(progress, n * len(prefixes))
    source = generator if isinstance(generator, int) else as_generator(generator)
    texts: list[list[list[int]]] = []
    with evaluating(network), torch.inference_mode():
        together = max(1, _ROWS // n)
        for start in range(0, len(prefixes), together):
            group = prefixes[start : start + together]
            prefix = _read(network, group)
            draws = torch.stack(
                [torch.rand(n, max_length, generator=as_generator(source), dtype=torch.float64) for _ in group]
            ).to(prefix.scores.device)
            written: list[list[list[int]]] = [[] for _ in group]
            for first in range(0, n, _ROWS):
                part = draws[:, first : first + _ROWS]
                for i, ids in enumerate(_continue(network, prefix, part, marks, sampler).tolist()):
                    written[i] += [_until(row, marks.end) for row in ids]
                count(len(group) * part.shape[1])
            texts += written
    return texts


def _check(network: SentenceNetwork, prefixes: Sequence[Sequence[int]], n: int, max_length: int) -> None:
    """Raise ValueError for numbers that do not fit."""
    check_counts(n=n, max_length=max_length)
    for i, prefix in enumerate(prefixes):
        if not len(prefix):
            raise ValueError(f"prefixes[{i}] is empty, expected the ids of [CLS], a text, and [SEP]")
        room = network.config.max_length - len(prefix)
        if network.config.position == "learned" and max_length > room:
            raise ValueError(
                f"text {i} takes {len(prefix)} of the model's {network.config.max_length} positions, which leaves room "
                f"for {room} tokens, got max_length={max_length}; shorten the text or lower max_length"
            )


def _read(network: SentenceNetwork, prefixes: Sequence[Sequence[int]]) -> _Prefix:
    """Compute the prefixes, padded on the left so that each ends in the last column."""
    device = network.head_bias.device
    longest = max(map(len, prefixes))
    lengths = torch.tensor([len(prefix) for prefix in prefixes], device=device)
    pad = network.config.pad_id
    ids = torch.tensor([[pad] * (longest - len(prefix)) + list(prefix) for prefix in prefixes], device=device)
    places = torch.arange(longest, device=device)
    mask = None if bool((lengths == longest).all()) else places >= longest - lengths[:, None]
    positions = _positions(network, mask, longest, longest)
    out = network.transformer(ids, mask=mask, positions=positions, cache=())
    assert out.cache is not None
    return _Prefix(network.score_tokens(out.last_hidden_state[:, -1]), out.cache, mask)


def _positions(network: SentenceNetwork, mask: Tensor | None, stop: int, count: int) -> Tensor | None:
    """Return the positions of the last `count` of `stop` columns; None where columns are positions.

    T5's bias depends on distances alone, which padding on the left does not change.
    """
    if mask is None or network.config.position == "t5":
        return None
    columns = torch.arange(stop - count, stop, device=mask.device)
    return (columns - (~mask).sum(-1, keepdim=True)).clamp(min=0)


def _continue(network: SentenceNetwork, prefix: _Prefix, draws: Tensor, marks: Marks, sampler: TokenSampler) -> Tensor:
    """Write a sentence for each of the random numbers `draws` (g, m, max_length); return ids of the same shape.

    A sentence stops before the first `marks.end`; what follows that means nothing.
    """
    texts, samples, steps = draws.shape
    row_of = torch.arange(texts, device=draws.device).repeat_interleave(samples)
    draws = draws.flatten(0, 1)
    written = torch.full(draws.shape, marks.end, device=draws.device)
    rows = torch.arange(len(draws), device=draws.device)  # those of `written` that are in the batch
    unfinished = torch.ones_like(rows, dtype=torch.bool)
    scores = prefix.scores[row_of]
    cache = tuple(GrowingKeysValues(past, steps, row_of) for past in prefix.cache)
    mask = None if prefix.mask is None else prefix.mask[row_of]
    for step in range(steps):
        scores[:, [*marks.never, *([] if step else [marks.end, *marks.inside])]] = -torch.inf
        tokens = sampler.draw(scores, draws[rows, step])
        written[rows, step] = tokens
        unfinished &= tokens != marks.end
        left = int(unfinished.sum())
        if not left or step == steps - 1:
            break
        if left <= (1 - _LEAVE) * len(rows):
            stay = unfinished.nonzero()[:, 0]
            rows, tokens, unfinished = rows[stay], tokens[stay], unfinished[stay]
            mask = None if mask is None else mask[stay]
            for past in cache:
                past.keep(stay)
        if mask is not None:
            mask = torch.nn.functional.pad(mask, (0, 1), value=True)
        out = network.transformer(
            tokens[:, None],
            mask=mask,
            segment_ids=torch.ones_like(tokens)[:, None],
            positions=_positions(network, mask, cache[0][0].shape[-2] + 1, 1),
            cache=cache,
        )
        scores = network.score_tokens(out.last_hidden_state[:, -1])
    return written.view(texts, samples, steps)


def _until(ids: list[int], end: int) -> list[int]:
    """Return the ids before the first `end`."""
    return ids[: ids.index(end)] if end in ids else ids
