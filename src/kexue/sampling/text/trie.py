"""Counts of n-grams in a trie of flat arrays, and the probabilities of interpolated Kneser-Ney smoothing.

Node 0 is the root. The nodes below are sorted by (parent, token), so a whole trie is one sorted array of keys
``parent · V + token``; its first V nodes are the tokens. The context of an n-gram is its parent; what it is smoothed
with is its `suffix`, the n-gram without its first token. For an n-gram h w of the context h:

    p(w | h) = (a(h w) - D_n) / c(h) + gamma(h) p(w | h'),   h' = h without its first token,
    gamma(h) = 1 - sum over the w kept of (a(h w) - D_n) / c(h),   D_n = n_1 / (n_1 + 2 n_2),

where a is the number of occurrences for the longest n-grams and those at the beginning of a text, otherwise the number
of distinct tokens before; c(h) = sum over w of a(h w); n_k is the number of n-grams with a = k. Unigrams are smoothed
with 1 / (V - 1). D_n is held between 0.1 and 0.9, as small corpora give 0 or 1.

Source: Kneser and Ney 1995; Chen and Goodman 1999, "An empirical study of smoothing techniques for language modeling".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kexue._arrays import Array

BEGIN, END, UNKNOWN = 0, 1, 2  # tokens that are no text
_SPECIAL = 3
_LEAST_DISCOUNT, _LARGEST_DISCOUNT = 0.1, 0.9


@dataclass(frozen=True)
class Counts:
    """Adjusted counts of n-grams.

    Attributes:
        keys: (M,) int64, ``parent · V + token`` of nodes 1 to M, ascending.
        counts: (M,) int64, a of each.
        totals: (M + 1,) int64, c of each node as a context, pruned n-grams included; 0 for no context.
        discounts: (order,), D_1 to D_order.
        vocabulary: V, number of tokens with the special ones.
    """

    keys: Array
    counts: Array
    totals: Array
    discounts: Array
    vocabulary: int


@dataclass(frozen=True)
class Trie:
    """Probabilities of n-grams.

    Attributes:
        keys: as of `Counts`.
        log_prob: (M + 1,) log p(w | h) of each node; 0 of the root.
        backoff: (M + 1,) log gamma(h) of each node as a context.
        suffix: (M + 1,) node without its first token.
        first_child: (M + 2,) the children of node i are ``first_child[i]`` to ``first_child[i + 1] - 1``.
        vocabulary: V.
    """

    keys: Array
    log_prob: Array
    backoff: Array
    suffix: Array
    first_child: Array
    vocabulary: int

    def child(self, nodes: Array, tokens: Array | int) -> Array:
        """Return the nodes of n-grams (context node, token), -1 where there is none."""
        return find_child(self.keys, nodes * self.vocabulary + tokens)


def find_child(keys: Array, wanted: Array) -> Array:
    """Return the node of each key, -1 where there is none."""
    place = np.searchsorted(keys, wanted)
    hit = keys[np.minimum(place, len(keys) - 1)] == wanted
    return np.where(hit, place + 1, -1)


def wrap_texts(ids: Array, lengths: Array) -> tuple[Array, Array]:
    """Put BEGIN and END around each text; return the tokens and the place of each in its text, from 0 on."""
    whole = lengths + 2
    starts = np.cumsum(whole) - whole
    tokens = np.empty(int(whole.sum()), dtype=np.int64)
    inside = np.ones(len(tokens), dtype=bool)
    inside[starts] = inside[starts + whole - 1] = False
    tokens[inside] = ids
    tokens[starts], tokens[starts + whole - 1] = BEGIN, END
    return tokens, np.arange(len(tokens)) - np.repeat(starts, whole)


def count_ngrams(tokens: Array, places: Array, vocabulary: int, order: int, min_count: int = 1) -> Counts:
    """Count the n-grams of texts.

    Args:
        tokens: (N,) of `wrap_texts`.
        places: (N,) of `wrap_texts`.
        vocabulary: V.
        order: longest n-gram.
        min_count: n-grams of three tokens and more that occur fewer times are left out; their mass is smoothed.
    """
    node = tokens + 1
    raw = [np.bincount(tokens, minlength=vocabulary)]
    keys = [np.arange(vocabulary, dtype=np.int64)]
    suffix = [np.zeros(vocabulary, dtype=np.int64)]
    begins = [np.arange(vocabulary) == BEGIN]
    first = 1  # of the nodes of this depth
    for depth in range(2, order + 1):
        ends = np.flatnonzero(places >= depth - 1)
        key, index, inverse, times = np.unique(
            node[ends - 1] * vocabulary + tokens[ends], return_index=True, return_inverse=True, return_counts=True
        )
        begins.append(begins[-1][key // vocabulary - first])
        first += len(keys[-1])
        suffix.append(node[ends[index]])
        keys.append(key)
        raw.append(times)
        node = np.full(len(tokens), -1, dtype=np.int64)
        node[ends] = first + inverse
    return _prune(_adjust(raw, suffix, begins), keys, raw, vocabulary, min_count)


def _adjust(raw: list[Array], suffix: list[Array], begins: list[Array]) -> list[Array]:
    """Return a(.) of every depth: occurrences, or the number of distinct tokens before."""
    adjusted, first = [], 1
    for depth in range(len(raw) - 1):
        before = np.bincount(suffix[depth + 1] - first, minlength=len(raw[depth]))
        adjusted.append(np.where(begins[depth], raw[depth], before))
        first += len(raw[depth])
    adjusted.append(raw[-1])
    adjusted[0] = np.where(np.arange(len(raw[0])) == BEGIN, 0, adjusted[0])  # nothing is followed by BEGIN
    return adjusted


def _prune(adjusted: list[Array], keys: list[Array], raw: list[Array], vocabulary: int, min_count: int) -> Counts:
    """Leave out rare n-grams; discounts and totals are those before."""
    discounts = np.array([_discount(a) for a in adjusted])
    key, count = np.concatenate(keys), np.concatenate(adjusted)
    parents = key // vocabulary
    totals = np.bincount(parents, weights=count, minlength=len(key) + 1).astype(np.int64)
    keep = np.concatenate([np.ones_like(r, dtype=bool) if d < 2 else r >= min_count for d, r in enumerate(raw)])
    renumbered = np.concatenate([[0], np.cumsum(keep)])
    kept = np.concatenate([[True], keep])
    new_keys = renumbered[parents[keep]] * vocabulary + key[keep] % vocabulary
    new_totals = totals[kept]
    has_children = np.zeros(len(new_totals), dtype=bool)
    has_children[new_keys // vocabulary] = True
    return Counts(new_keys, count[keep], np.where(has_children, new_totals, 0), discounts, vocabulary)


def _discount(counts: Array) -> float:
    """Return D of one depth."""
    ones, twos = int((counts == 1).sum()), int((counts == 2).sum())
    discount = ones / (ones + 2 * twos) if ones else 0.0
    return min(max(discount, _LEAST_DISCOUNT), _LARGEST_DISCOUNT)


def smooth(counts: Counts) -> Trie:
    """Return the probabilities of counted n-grams, by the formulas of the module."""
    keys, V = counts.keys, counts.vocabulary
    size = len(keys) + 1
    first_child = np.searchsorted(keys, np.arange(size + 1, dtype=np.int64) * V) + 1
    parent = np.concatenate([[0], keys // V])
    token = np.concatenate([[0], keys % V])
    suffix = np.zeros(size, dtype=np.int64)
    probability = np.ones(size)
    gamma = np.ones(size)
    count = np.concatenate([[0], counts.counts])
    start, stop = 1, int(first_child[1])
    for discount in counts.discounts:
        nodes = np.arange(start, stop)
        above = parent[nodes]
        explicit = np.maximum(count[nodes] - discount, 0) / np.maximum(counts.totals[above], 1)
        rest = 1 - np.bincount(above, weights=explicit, minlength=stop)[:stop]
        gamma[np.unique(above)] = rest[np.unique(above)]
        if start == 1:
            shorter = np.where(token[nodes] == BEGIN, 0.0, 1 / (V - 1))
        else:
            suffix[nodes] = find_child(keys, suffix[above] * V + token[nodes])
            shorter = probability[suffix[nodes]]
        probability[nodes] = explicit + gamma[above] * shorter
        start, stop = stop, int(first_child[stop])
    probability[1 + BEGIN] = 0
    with np.errstate(divide="ignore"):
        return Trie(keys, np.log(probability), np.log(gamma), suffix, first_child, V)
