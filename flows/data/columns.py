"""Columns of texts or bytes of equal length, from Arrow to numpy and back without an object per value."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def to_numpy(column: pa.ChunkedArray, size: int) -> NDArray[np.bytes_]:
    """(N,) values of `size` bytes each; a view of the column's memory if its type allows that."""
    fixed = column.cast(pa.binary(size)).combine_chunks()
    return np.frombuffer(fixed.buffers()[1], f"S{size}")[fixed.offset :][: len(fixed)]


def to_arrow(values: bytes | NDArray[Any], size: int) -> pa.FixedSizeBinaryArray:
    """Column of `values`, whose memory holds one value of `size` bytes after the other."""
    memory = pa.py_buffer(values)
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(size), memory.size // size, [None, memory])
