"""The files that a data version shares with the version that it is made from."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from durable import link
from flows.data.fingerprints import FORMER_NAME, NAME, Fingerprints
from flows.data.pointer import READY
from flows.workspace.files import files_below


def link_unchanged(version: Path, folder: Path, *, changed: Collection[str]) -> None:
    """Link the files of the data version in folder `version` into `folder`, except those named in `changed`.

    Fingerprints of format 1 are written again in the present format.
    """
    left_out = (*changed, READY, FORMER_NAME)
    for path in files_below(version):
        if path.name not in left_out:
            link(path, folder / path.relative_to(version))
    if (version / FORMER_NAME).exists() and not (folder / NAME).exists():
        Fingerprints.read(version).write(folder)
