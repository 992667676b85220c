"""Names of classes as sparse vectors: how much two of them have in common.

Products whose names have much in common are confused more often than others: `Milk Oat 1 l` and `Milk Oat 0.5 l` rather
than milk and soap. `models.cleaning.tilt` learns how much more often.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

# A number, or letters with the combining marks of any script. Other punctuation than ASCII counts as such marks.
WORD = re.compile(r"\d+(?:[.,]\d+)?|[^\W\d_](?:[^\W\d_]|[^\w\s!-/:-@\[-`{-~])*")
MOST_CHARS = 200  # of a name that are read
GRAM = 3  # letters
ROWS_AT_ONCE, PAIRS_AT_ONCE = 64, 1 << 15


def parts(name: str) -> set[str]:
    """Words and numbers of a name, and all runs of three letters of its words; case and width of letters do not count."""
    words = WORD.findall(unicodedata.normalize("NFKC", name[:MOST_CHARS]).casefold())
    found = set(words)
    for word in words:
        if not word[0].isdigit():
            padded = f" {word} "
            found.update(padded[start : start + GRAM] for start in range(len(padded) - GRAM + 1))
    return found


class Names:
    """Names of C classes as unit vectors of their parts, weighed by how rare these are (TF-IDF).

    A part that all names share weighs nothing. A name without parts is like no other.
    """

    def __init__(self, names: Sequence[str]) -> None:
        number: dict[str, int] = {}
        ids = [
            np.array([number.setdefault(part, len(number)) for part in sorted(parts(name))], np.int32) for name in names
        ]
        lengths = np.array([len(each) for each in ids], np.int64)
        self.ids: NDArray[np.int32] = np.concatenate([*ids, np.zeros(0, np.int32)])
        self.num_parts, row = len(number), np.repeat(np.arange(len(names)), lengths)
        rare = np.log(len(names) / np.bincount(self.ids, minlength=self.num_parts))[self.ids]
        norm = np.sqrt(np.bincount(row, rare**2, minlength=len(names)))
        self.weight: NDArray[np.float32] = (rare / np.maximum(norm, 1e-9)[row]).astype(np.float32)
        self.starts = np.concatenate([[0], np.cumsum(lengths)])

    def __len__(self) -> int:
        return len(self.starts) - 1

    def likeness(self, left: NDArray[np.integer], right: NDArray[np.integer]) -> NDArray[np.float32]:
        """(E,) cosine of the names of two classes each, in [0, 1]; `left` ascends. Time O(E) times the parts of a name."""
        found = np.empty(len(left), np.float32)
        start = 0
        while start < len(left):
            classes, row = np.unique(left[start : start + PAIRS_AT_ONCE], return_inverse=True)
            size = int(np.searchsorted(row, ROWS_AT_ONCE))
            table, column = self._table(classes[:ROWS_AT_ONCE])
            pair, place = self._entries(right[start : start + size])
            values = table[row[pair], column[self.ids[place]]] * self.weight[place]
            found[start : start + size] = np.bincount(pair, values, minlength=size)
            start += size
        return found

    def to_all(self, sample: NDArray[np.integer]) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Blocks of classes, and the likeness (n, M) of each of them to every class of the sample (M,)."""
        table, column = self._table(sample)
        by_part = np.ascontiguousarray(table.T)
        for start in range(0, len(self), ROWS_AT_ONCE):
            rows = slice(start, min(start + ROWS_AT_ONCE, len(self)))
            own = slice(self.starts[rows.start], self.starts[rows.stop])
            known = column[self.ids[own]]
            shared = known < len(by_part) - 1
            ends = np.concatenate([[0], np.cumsum(shared)])[self.starts[start : rows.stop + 1] - self.starts[start]]
            values = by_part[known[shared]] * self.weight[own][shared][:, None]
            sums = np.add.reduceat(np.concatenate([values, by_part[-1:]]), ends[:-1], axis=0)
            sums[ends[1:] == ends[:-1]] = 0  # reduceat returns the next value where there is none
            yield rows, sums

    def _entries(self, classes: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(n,) position in `classes` of the class that has each part, and (n,) the place of the part in `ids` and `weight`."""
        lengths = self.starts[classes + 1] - self.starts[classes]
        row = np.repeat(np.arange(len(classes)), lengths)
        return row, np.arange(len(row)) + (self.starts[classes] - (np.cumsum(lengths) - lengths))[row]

    def _table(self, classes: NDArray[np.integer]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """(n, S + 1) vectors of these classes in their own S parts, and the column of every part; S if it is none of them."""
        row, place = self._entries(classes)
        seen = np.unique(self.ids[place])
        column = np.full(self.num_parts, len(seen))
        column[seen] = np.arange(len(seen))
        table = np.zeros((len(classes), len(seen) + 1), np.float32)
        table[row, column[self.ids[place]]] = self.weight[place]
        return table, column
