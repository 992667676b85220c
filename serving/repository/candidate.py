"""Candidate: a version loaded under another model name, where it is checked before any client can reach it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from durable import link
from serving.durable import disk_full_named
from serving.repository.repository import ModelRepository


@contextmanager
def candidate_files(repository: ModelRepository, version: int) -> Iterator[ModelRepository]:
    """Creates the candidate's directory, with links to the version's files, and removes it afterwards.

    Raises:
        DiskFull: nothing is left behind.
    """
    candidate = repository.candidate(version)
    clear(candidate)  # left by a killed switch
    try:
        with disk_full_named(repository.model):
            target = candidate.model / str(version)
            target.mkdir(parents=True)
            for path in repository.path(version).iterdir():
                link(path, target / path.name)
        candidate.configure((version,))
        yield candidate
    finally:
        clear(candidate)


def clear(candidate: ModelRepository) -> None:
    """Removes the candidate's directory; it holds only links and a configuration."""
    shutil.rmtree(candidate.model, ignore_errors=True)
