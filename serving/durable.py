"""Bytes that are on the disk when a function returns."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serving.errors import DiskFull


@contextmanager
def disk_full_named(path: Path) -> Iterator[None]:
    """Say DiskFull where the system says ENOSPC, or EDQUOT, for writes to `path`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"no space left at {path}; nothing half-written remains: free some and try again") from None
        raise
