"""Antialiased bilinear resize as matrix products, without the zeros.

The ONNX operator Resize(antialias) differs from torch by up to 1e-4 and is missing in some runtimes; a matrix product is the
same everywhere. Each output pixel depends on a few neighbours only. So the matrix is cut into bands of rows, and each band is
multiplied by the columns that it needs: with one band, the resize of a small network takes as long as its convolutions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

BANDS = 6  # with more, joining them takes the time that they save


class Resize(nn.Module):
    """Resize of squares of `source` pixels to `target` pixels; nothing if these are equal."""

    def __init__(self, source: int, target: int) -> None:
        super().__init__()
        self.source, self.target = source, target
        self.columns: list[slice] = []
        for weights, columns in bands(resize_matrix(source, target)) if source != target else []:
            self.register_buffer(f"weights_{len(self.columns)}", weights)
            self.columns.append(columns)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, target, target) of pixels (B, 3, source, source)."""
        if not self.columns:
            return pixels
        parts = [(self.get_buffer(f"weights_{number}"), columns) for number, columns in enumerate(self.columns)]
        rows = torch.cat([weights @ pixels[:, :, columns] for weights, columns in parts], 2)
        return torch.cat([rows[..., columns] @ weights.T for weights, columns in parts], 3)


def resize_matrix(source: int, target: int) -> Tensor:
    """(target, source) weights, computed by torch's own resize of the unit matrix."""
    eye = torch.eye(source, dtype=torch.float64)[None, None]
    rows = functional.interpolate(eye, size=(target, source), mode="bilinear", antialias=True, align_corners=False)
    return rows[0, 0].float()


def bands(matrix: Tensor) -> list[tuple[Tensor, slice]]:
    """Bands of rows of a matrix without the columns that are zero at their sides, and the other columns."""
    found = []
    for rows in matrix.tensor_split(min(BANDS, len(matrix))):
        used = rows.any(0).nonzero().flatten()
        columns = slice(int(used[0]), int(used[-1]) + 1)
        found.append((rows[:, columns].clone(), columns))
    return found
