from __future__ import annotations

import re

import numpy as np
import pytest

from serving.repository.golden import Golden

GOLDEN = Golden(
    np.zeros((1, 1, 1, 3), np.uint8), np.array([[4, 7, 2, 9]]), np.array([[0.6, 0.2, 0.19, 0.001]], np.float32)
)


@pytest.mark.parametrize(
    ("ids", "probs", "strict", "wrong"),
    [
        ([4, 7, 2, 9], [0.6, 0.2, 0.19, 0.001], True, ""),
        ([4, 2, 7, 9], [0.6, 0.2, 0.19, 0.001], True, r"ids \[4, 2, 7, 9\].*want ids \[4, 7, 2, 9\]"),
        ([4, 7, 2, 9], [0.65, 0.2, 0.19, 0.001], True, "off by 0.05"),
        ([4, 2, 7, 9], [0.61, 0.2, 0.19, 0.001], False, ""),  # so close that another processor may swap them
        ([7, 4, 2, 9], [0.6, 0.2, 0.19, 0.001], False, r"ids \[7, 4"),
        ([4, 7, 2, 5], [0.6, 0.2, 0.19, 0.001], False, ""),  # who comes fifth is not known
        ([4, 7, 2, 9], [0.6, 0.2, 0.19, np.nan], False, "off by nan"),
    ],
)
def test_an_answer_differs(ids: list[int], probs: list[float], strict: bool, wrong: str) -> None:
    found = GOLDEN.differs(0, np.array(ids), np.array(probs, np.float32), tolerance=0.02, strict=strict)
    assert re.search(wrong, found) if wrong else found == ""
