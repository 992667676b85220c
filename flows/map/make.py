"""Computes a map: `python -m flows.map.make --data DIR --stages DIR --out FILE`. A killed one leaves no file."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import numpy as np

from flows.errors import InputError
from flows.map.layout import lay_out
from flows.map.points import SEED, Points, write_points
from flows.map.sources import NETWORK, Vectors, find_source, read_vectors
from flows.review.photos import read_photos
from models.training.command import log_progress, run

log = logging.getLogger(__name__)


def make(data: Path, stages: Path, out: Path) -> None:
    """Writes the points of the photos of a data version to `out`.

    Raises:
        InputError: there are no usable embeddings of these photos.
    """
    photos = read_photos(data, version=data.name)
    source = find_source(stages, photos)
    rows = source.rows(photos, seed=SEED)
    if source.name == NETWORK:
        from flows.map.embed import embed

        vectors = Vectors(photos.id[rows], [embed(data, source.folders[0] / NETWORK, rows)], [np.arange(len(rows))])
    else:
        vectors = read_vectors(source, photos.id[rows])
    if not len(vectors):
        raise InputError(
            f"{source.folders[0]} holds none of the photos of data version {data.name[:12]}; clean it again"
        )
    log.info("laying out %d photos", len(vectors))
    xy = lay_out(vectors, seed=SEED)
    usable = np.flatnonzero(~np.isnan(xy[:, 0]))
    if not len(usable):
        raise InputError(f"{source.folders[0] / source.name}: no embedding is finite; clean the labels again")
    order = usable[np.argsort(vectors.id[usable])]
    write_points(out, Points(vectors.id[order], xy[order]))


def main() -> None:
    """Command line that computes one map."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of a materialised data version")
    parser.add_argument("--stages", type=Path, required=True, help="folder of the cached results of steps")
    parser.add_argument("--out", type=Path, required=True, help="Parquet file of the points")
    args = parser.parse_args()
    log_progress()
    make(args.data, args.stages, args.out)


if __name__ == "__main__":
    run(main)
