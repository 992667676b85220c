"""Positions of photos in two dimensions: principal components, then UMAP (McInnes et al., arXiv 1802.03426).

UMAP is fitted to at most FIT_MOST photos, drawn at random. All others are placed among the fitted photos that are nearest
to them, at the mean of their positions, weighted by closeness: one search per photo instead of an optimisation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flows.map.pca import principal_components
from flows.map.sources import Vectors
from models.progress import with_progress

COMPONENTS = 50
NEIGHBOURS = 15
WHOLE = 200_000  # photos; all of up to this number are fitted
FIT_MOST = 100_000
NEAREST = 5  # fitted photos that place another one


def lay_out(vectors: Vectors, *, seed: int) -> NDArray[np.float32]:
    """(N, 2) positions of photos in [-1, 1]; NaN for a photo whose embedding is not finite. The same for the same seed."""
    fitted = np.ones(len(vectors), np.bool_)
    if len(vectors) > WHOLE:
        fitted[:] = False
        fitted[np.random.default_rng(seed).choice(len(vectors), FIT_MOST, replace=False)] = True
    sample = vectors.select(fitted)
    projection = principal_components(_counted(sample, "principal components"), most=COMPONENTS)
    components = np.concatenate([projection.of(block) for block in sample.blocks()])
    usable = ~np.isnan(components[:, 0])
    place = Placement(components[usable], seed=seed, is_searched=not fitted.all())
    positions = np.full((len(vectors), 2), np.nan, np.float32)
    positions[np.flatnonzero(fitted)[usable]] = place.fitted
    if not fitted.all():
        rest = vectors.select(~fitted)
        positions[~fitted] = np.concatenate([place.near(projection.of(block)) for block in _counted(rest, "placing")])
    return _scaled(positions)


class Placement:
    """Fitted positions, and the search for others among them.

    Args:
        components: (n, K) principal components of the photos to fit.
        is_searched: `near` will be called.
    """

    def __init__(self, components: NDArray[np.float32], *, seed: int, is_searched: bool = False) -> None:
        self._index: Any = None
        if len(components) <= NEIGHBOURS + 1:  # too few for neighbourhoods
            self.fitted = _flat(components)
            return
        from umap import UMAP

        settings: dict[str, Any] = {
            "n_neighbors": NEIGHBOURS,
            "init": _start(components),
            "random_state": seed,
            "n_jobs": 1,
        }
        if is_searched:
            from pynndescent import NNDescent

            self._index = NNDescent(components, n_neighbors=NEIGHBOURS, random_state=seed, n_jobs=1)
            settings["precomputed_knn"] = (*self._index.neighbor_graph, self._index)
        self.fitted = np.asarray(UMAP(**settings).fit_transform(components), np.float32)

    def near(self, components: NDArray[np.float32]) -> NDArray[np.float32]:
        """(m, 2) positions among the fitted photos; NaN for rows of NaN."""
        positions = np.full((len(components), 2), np.nan, np.float32)
        usable = ~np.isnan(components[:, 0])
        neighbours, distances = self._index.query(components[usable], k=NEAREST)
        closeness = 1 / np.maximum(distances, 1e-6)
        weights = closeness / closeness.sum(axis=1, keepdims=True)
        positions[usable] = np.einsum("ij,ijk->ik", weights, self.fitted[neighbours])
        return positions


def _counted(vectors: Vectors, what: str) -> Iterator[NDArray[np.float32]]:
    blocks: Iterable[NDArray[np.float32]] = vectors.blocks()
    return with_progress(blocks, what, len(vectors))


def _start(components: NDArray[np.float32]) -> NDArray[np.float32]:
    """Positions that UMAP starts from: the first two components, at the size of its spectral ones."""
    flat = _flat(components)
    started: NDArray[np.float32] = 10 * flat / max(float(np.abs(flat).max()), 1e-12)
    return started


def _flat(components: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, 2) first two components; zeros for those that are missing."""
    flat = np.zeros((len(components), 2), np.float32)
    flat[:, : components.shape[1]] = components[:, :2]
    return flat


def _scaled(positions: NDArray[np.float32]) -> NDArray[np.float32]:
    """The positions moved and scaled, by one factor, to fill [-1, 1]."""
    if np.isnan(positions).all():
        return positions
    low, high = np.nanmin(positions, axis=0), np.nanmax(positions, axis=0)
    half = max(float((high - low).max()) / 2, 1e-12)
    scaled: NDArray[np.float32] = np.clip((positions - (low + high) / 2) / half, -1, 1)
    return scaled
