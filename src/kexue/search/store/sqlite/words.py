"""The postings of a store, kept up to date with its documents, and the search for words."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from kexue.search.engine import Position
from kexue.search.fusion import NEAREST, fuse
from kexue.search.postings import Postings, load_postings
from kexue.search.products import Keys, Scores, Vectors
from kexue.search.store.base import Words
from kexue.search.store.sqlite import tables
from kexue.search.store.sqlite.snapshots import Follower
from kexue.search.store.sqlite.tables import ChecksumCounter
from kexue.search.store.sqlite.transactions import Transactions

_BLOCK = 2_048  # documents read at a time, and fewer where
_LONGEST = 1 << 21  # their texts have so many bytes together: reading terms takes about 60 times as much memory


class WordFollower(Follower):
    """The postings of a store, and their snapshot beside the file.

    The documents are the only source: postings hold what their texts hold, and every text is compared with its checksum
    when it is read. Changes are followed as `EngineFollower` follows them.

    Attributes:
        postings: None before the first search.
    """

    def __init__(self, transactions: Transactions) -> None:
        super().__init__(transactions, "-words")
        self.postings: Postings | None = None

    def follow(self, connection: sqlite3.Connection) -> Postings:
        """Return the postings of the documents that this transaction sees."""
        version = self._transactions.version
        if self._version == version and self.postings is not None:
            return self.postings
        state = self._transactions.state(connection)
        epoch = str(self._transactions.metadata(connection)["epoch"])
        postings = self.postings or load_postings(self.snapshot_path)
        self.postings = None  # if following is interrupted, they are half changed
        if postings is not None and postings.position.epoch == epoch:
            last_key = postings.position.last_key
            gone = [key for key, _ in tables.removals(connection, postings.position.last_removal) if key <= last_key]
            postings.remove(np.array(gone, np.int64))
            postings.extend(_read_texts(connection, last_key))
            if (len(postings), postings.checksums) != (state.n, state.documents):
                postings = None
        else:
            postings = None
        if postings is None:
            postings = self.read(connection)
            self._stale = True
        last, removed = tables.last_key(connection, "documents"), tables.last_key(connection, "tombstones")
        postings.position = Position(epoch, last, removed, state.documents)
        self.postings, self._version = postings, version
        return postings

    def read(self, connection: sqlite3.Connection) -> Postings:
        """Return new postings of all documents."""
        state, postings = self._transactions.state(connection), Postings()
        postings.extend(_read_texts(connection, 0))
        tally = ChecksumCounter()
        tally.n, tally.checksums = len(postings), postings.checksums
        tally.check(state.n, state.documents, "documents")
        return postings

    def find_problems(self) -> list[str]:
        """Return a sentence if what is searched, from the snapshot on, is not what the documents hold."""
        with self._transactions.read() as connection:
            if self.follow(connection).same(self.read(connection)):
                return []
        return [f"{self.snapshot_path.name} does not hold the words of the documents: delete it, it is written again"]

    def renew(self, epoch: str) -> None:
        """Note that the store has begun a new epoch with the same documents."""
        if self.postings is not None:
            self.postings.position = self.postings.position._replace(epoch=epoch)


def _read_texts(connection: sqlite3.Connection, after: int) -> Iterator[tuple[Keys, Keys, list[str]]]:
    """Yield keys, checksums and texts of the documents with keys above `after`, in blocks."""
    block: list[tuple[int, int, bytes]] = []
    size = 0
    for row in connection.execute(f"SELECT {tables.DOCUMENT} FROM documents WHERE key > ? ORDER BY key", (after,)):
        tables.check_document(*row)
        block.append((row[0], row[1], row[3]))
        size += len(row[3])
        if len(block) == _BLOCK or size >= _LONGEST:
            yield _columns(block)
            block, size = [], 0
    if block:
        yield _columns(block)


def _columns(block: Sequence[tuple[int, int, bytes]]) -> tuple[Keys, Keys, list[str]]:
    """Return the keys, checksums and texts of rows."""
    keys, checksums, texts = zip(*block, strict=True)
    return np.array(keys, np.int64), np.array(checksums, np.int64), [text.decode() for text in texts]


def search_both(
    search_vectors: Callable[[Vectors, int, Keys | None], tuple[Scores, Keys]],
    postings: Postings,
    vectors: Vectors,
    words: Words,
    k: int,
    allowed: Keys | None,
) -> tuple[Scores, Keys]:
    """Return for each query the `k` best documents by vectors and words together, with their inner products, as (m, k).

    Each side proposes its best `k`, and at least 100; all proposed documents are then scored on both sides.

    Args:
        search_vectors: called as search_vectors(queries, k, allowed), returns inner products and keys.
        postings: of the same documents.
        vectors, words: the queries. k: answers per query, at most the number of documents allowed.
        allowed: keys (ascending); None: all.
    """
    wanted = max(k, NEAREST)
    products, near = search_vectors(vectors, wanted, allowed)  # fewer where there are fewer documents
    k = min(k, near.shape[1])
    best_products, best = np.empty((len(vectors), k), np.float32), np.empty((len(vectors), k), np.int64)
    for row, text in enumerate(words.texts):
        scored = postings.score(text, wanted, allowed)
        keys, inner = near[row], products[row]
        more = np.setdiff1d(scored.keys, keys)
        if len(more):
            [extra], [places] = search_vectors(vectors[row : row + 1], len(more), more)
            keys, inner = np.concatenate([keys, places]), np.concatenate([inner, extra])
        fused = fuse(inner, scored.at(keys), scored.coverage(keys), nearest=products[row], weight=words.weight)
        order = np.lexsort((keys, -fused))[:k]
        best_products[row], best[row] = inner[order], keys[order]
    return best_products, best
