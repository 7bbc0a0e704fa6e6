"""Search for documents that match a filter; their checksums are verified before they are read."""

from __future__ import annotations

import sqlite3
from itertools import chain

import numpy as np

from kexue.search.products import Keys
from kexue.search.store.base import Filter
from kexue.search.store.sqlite import tables
from kexue.search.store.sqlite.expressions import to_sql
from kexue.search.store.sqlite.tables import ChecksumCounter
from kexue.search.store.sqlite.transactions import Transactions, Version

_FILTERS = 8  # filters whose keys are cached
_IDS_VERIFIED = 100_000  # documents; verifying them takes a tenth of a second


class Matching:
    """Keys of the documents that match recent filters, and which documents were verified for it."""

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions
        self._openings = transactions.openings
        self._verified = -1  # documents up to this key have been compared with their checksums
        self._ids_verified = False
        self._keys: dict[tuple[str, ...], Keys] = {}
        self._version: Version | None = None

    def find_keys(self, connection: sqlite3.Connection, filter: Filter) -> Keys:
        """Return the keys of the documents that match; cached until the store changes."""
        self.verify_documents(connection)
        if len(self._keys) > _FILTERS:
            self._keys = {}
        where, parameters = to_sql(filter)
        name = (where, *map(repr, parameters))
        if name not in self._keys:
            keys = connection.execute(f"SELECT key FROM documents WHERE {where} ORDER BY key", parameters)
            self._keys[name] = np.fromiter(chain.from_iterable(keys), np.int64)
        return self._keys[name]

    def verify_documents(self, connection: sqlite3.Connection) -> None:
        """Compare documents with their checksums: all of them once, then the new ones."""
        if self._version == self._transactions.version:
            return
        if self._openings != self._transactions.openings:
            self._openings, self._verified = self._transactions.openings, -1
        tally = ChecksumCounter()
        tables.verify_documents(connection, self._verified, tally)
        if self._verified < 0:
            state = self._transactions.state(connection)
            tally.check(state.n, state.documents, "documents")
        self._verified = tables.last_key(connection, "documents")
        self._keys, self._version = {}, self._transactions.version

    def verify_ids(self, connection: sqlite3.Connection) -> None:
        """Check, once, that an id that is not found does not exist; in larger files only `check` does this."""
        if not self._ids_verified and self._transactions.state(connection).n <= _IDS_VERIFIED:
            tables.verify_ids(connection)
        self._ids_verified = True
