"""Ways in which the bytes of a file go bad."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tests.kills import GOLDEN


def ways(path: Path, *, flips: int = 4) -> Iterator[str]:
    """Breaks a file in one way after the other, and makes it whole in the end; yields what was done to it.

    Args:
        flips: of one bit each, spread over the whole file.
    """
    whole = path.read_bytes()
    places = [int(number * GOLDEN % 1 * 8 * len(whole)) for number in range(flips)]
    broken = {"empty": b"", "cut short": whole[: len(whole) // 2]}
    for way, content in (broken | {f"bit {place} flipped": flipped(whole, place) for place in places}).items():
        path.write_bytes(content)
        yield way
    path.write_bytes(whole)


def flipped(content: bytes, place: int) -> bytes:
    """With one bit changed, of all counted from 0."""
    changed = bytearray(content)
    changed[place // 8] ^= 1 << place % 8
    return bytes(changed)
