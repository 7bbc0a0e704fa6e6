"""Snapshots beside the file of a store: what it searches in memory, written so that opening is fast."""

from __future__ import annotations

import logging
import os
import sqlite3
import stat
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Protocol

from kexue.search.engine import Position, read_position
from kexue.search.store.sqlite import tables
from kexue.search.store.sqlite.transactions import Transactions, Version

_LOG = logging.getLogger("kexue.search")
_DRIFT = 0.1  # share of the vectors; after more changes, closing writes a new snapshot


class Saved(Protocol):
    """What a snapshot holds."""

    def save(self, path: str | os.PathLike[str], *, mode: int | None = None) -> None:
        """Write the file atomically."""


class Follower(ABC):
    """Something searched in memory that follows the file of a store, and its snapshot. A snapshot only saves time.

    Attributes:
        snapshot_path: of the snapshot.
    """

    def __init__(self, transactions: Transactions, suffix: str) -> None:
        self.snapshot_path = Path(f"{transactions.file}{suffix}")
        self._transactions = transactions
        self._version: Version | None = None
        self._stale = False

    @abstractmethod
    def follow(self, connection: sqlite3.Connection) -> Saved | None:
        """Return what is searched in the state that this transaction sees; None where there is nothing."""

    def save_snapshot(self) -> None:
        """Write the snapshot. A failure is logged."""
        with self._transactions.lock:
            with self._transactions.read() as connection:
                searched = self.follow(connection)
            try:
                if searched is not None:
                    searched.save(self.snapshot_path, mode=stat.S_IMODE(os.stat(self._transactions.file).st_mode))
                    self._stale = False
            except OSError as error:
                _LOG.warning("%s was not written, the first search will take longer: %s", self.snapshot_path, error)

    def save_stale_snapshot(self) -> None:
        """Write a snapshot if much has changed since the last one."""
        with self._transactions.read() as connection:
            position = None if self._stale else read_position(self.snapshot_path)
            changed = _changed_much(connection, self._transactions, position)
        if changed:
            self.save_snapshot()


def _changed_much(connection: sqlite3.Connection, transactions: Transactions, position: Position | None) -> bool:
    """Return whether more than a tenth of the vectors have changed since a state; None: the empty one."""
    epoch, n = transactions.metadata(connection)["epoch"], transactions.state(connection).vector_count
    if position is None or position.epoch != epoch:
        return n > 0
    changes = tables.scalar(connection, "SELECT count(*) FROM vectors WHERE key > ?", [position.last_key])
    changes += tables.scalar(connection, "SELECT count(*) FROM tombstones WHERE n > ?", [position.last_removal])
    return int(changes) > _DRIFT * n
