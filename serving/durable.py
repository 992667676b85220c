"""The error of a full disk, for code that writes to the model repository."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serving.errors import DiskFull


@contextmanager
def disk_full_named(path: Path) -> Iterator[None]:
    """Raises DiskFull in place of an OSError with ENOSPC or EDQUOT; the message names `path`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"no space left at {path}; no partial file remains: free some space and try again") from None
        raise
