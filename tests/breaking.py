"""Damage to the bytes of a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tests.kills import GOLDEN


def ways(path: Path, *, flips: int = 4) -> Iterator[str]:
    """Damages a file in one way after another, and restores it in the end; yields what was done to it.

    Args:
        flips: number of damaged copies with one flipped bit, spread over the whole file.
    """
    whole = path.read_bytes()
    bits = [int(number * GOLDEN % 1 * 8 * len(whole)) for number in range(flips)]
    broken = {"empty": b"", "cut short": whole[: len(whole) // 2]}
    for way, content in (broken | {f"bit {bit} flipped": flipped(whole, bit) for bit in bits}).items():
        path.write_bytes(content)
        yield way
    path.write_bytes(whole)


def flipped(content: bytes, bit: int) -> bytes:
    """The content with one bit changed; bits are counted from 0."""
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)
