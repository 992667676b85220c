"""A version under another model name, where it has to prove itself before anybody's request meets it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serving.durable import disk_full_named
from serving.repository.repository import ModelRepository


@contextmanager
def candidate_files(repository: ModelRepository, version: int) -> Iterator[ModelRepository]:
    """The candidate's directory with the version's own files, as hard links; gone afterwards.

    Raises:
        DiskFull: nothing is left behind.
    """
    candidate = repository.candidate(version)
    clear(candidate)  # of a killed switch
    try:
        with disk_full_named(repository.model):
            target = candidate.model / str(version)
            target.mkdir(parents=True)
            for path in repository.path(version).iterdir():
                _link(path, target / path.name)
        candidate.configure((version,))
        yield candidate
    finally:
        clear(candidate)


def clear(candidate: ModelRepository) -> None:
    """Remove the directory; it holds links and a configuration only."""
    shutil.rmtree(candidate.model, ignore_errors=True)


def _link(path: Path, target: Path) -> None:
    try:
        os.link(path, target)
    except OSError:  # a file system without hard links, such as a share of another machine
        shutil.copyfile(path, target)
