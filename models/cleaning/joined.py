"""Rows of several tables as one table that is never in memory, such as the embeddings that the folds left in files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


class JoinedRows:
    """Rows (N, d) of tables (n, d) of one width and type, which stay where they are; an index copies the rows it asks for.

    Args:
        tables: arrays, such as mapped files.
        table, row: (N,) the table of each row, and its position there.
    """

    ndim = 2

    def __init__(
        self, tables: Sequence[NDArray[np.floating]], table: NDArray[np.integer], row: NDArray[np.integer]
    ) -> None:
        self.tables, self.table, self.row = tables, table, row

    @property
    def shape(self) -> tuple[int, int]:
        """N and d."""
        return len(self.row), self.tables[0].shape[1]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the tables."""
        return self.tables[0].dtype

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, rows: NDArray[np.integer] | slice) -> NDArray[np.floating]:
        table, row = self.table[rows], self.row[rows]
        found = np.empty((len(row), self.shape[1]), self.dtype)
        for number, each in enumerate(self.tables):
            own = np.flatnonzero(table == number)
            found[own] = each[row[own]]
        return found


Table = NDArray[np.floating] | JoinedRows
