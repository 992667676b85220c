"""Likeness of names against a slow reading, for names of every kind."""

from __future__ import annotations

from collections import Counter
from math import log, sqrt

import numpy as np
import pytest

from models.cleaning.names import MOST_CHARS, Names, parts

SHELF = [
    *(
        "Arla Oat Milk 1 l",
        "Arla Oat Milk 0.5 l",
        "Arla Milk 1 l",
        "Soap, green",
        "SOAP green",
        "",
        "!?",
        "4006381333931",
    ),
    *(
        "4006381333948",
        "Молоко овсяное 1 л",
        "Молоко козье 1 л",
        "दूध 1 ली",
        "दूध 500 मिली",
        "有机牛奶",
        "牛奶",
        "حليب كامل",
        "حليب",
    ),
    *("Crème brûlée", "Creme brulee", "milk " * 400, "Milk"),
]


def wide(text: str) -> str:
    """The text in letters of full width, as some keyboards write it."""
    return "".join(chr(ord(letter) + 0xFEE0) for letter in text)


def slow_likeness(names: list[str], one: int, other: int) -> float:
    """Cosine by dictionaries."""
    number = Counter(part for name in names for part in parts(name))
    left, right = ({part: log(len(names) / number[part]) for part in parts(names[each])} for each in (one, other))
    norm = sqrt(sum(w * w for w in left.values())) * sqrt(sum(w * w for w in right.values()))
    return sum(weight * right.get(part, 0) for part, weight in left.items()) / norm if norm else 0.0


def likeness(*names: str) -> float:
    """Likeness of the first two of these names, among other products."""
    return float(Names([*names, *SHELF]).likeness(np.array([0]), np.array([1]))[0])


def test_the_likeness_is_the_cosine_of_a_slow_reading() -> None:
    num = len(SHELF)
    left, right = np.repeat(np.arange(num), num), np.tile(np.arange(num), num)
    expected = [slow_likeness(SHELF, one, other) for one, other in zip(left, right, strict=True)]
    assert Names(SHELF).likeness(left, right) == pytest.approx(expected, abs=1e-6)


def test_all_classes_are_compared_with_a_sample() -> None:
    names, sample = Names(SHELF * 5), np.array([0, 3, 5, 40, 104])
    found = np.concatenate([block for _, block in names.to_all(sample)])
    left, right = np.repeat(np.arange(len(names)), len(sample)), np.tile(sample, len(names))
    assert found.ravel() == pytest.approx(names.likeness(left, right), abs=1e-6)
    assert [rows.start for rows, _ in names.to_all(sample)] == [0, 64]


@pytest.mark.parametrize(
    "pair", [("Soap, green", "SOAP  green"), ("Crème", "cre\u0300me"), (f"{wide('Milk')} {wide('1')} l", "milk 1 l")]
)
def test_names_equal_up_to_their_writing_are_the_same(pair: tuple[str, str]) -> None:
    assert likeness(*pair) == pytest.approx(1)


@pytest.mark.parametrize(
    ("near", "far"),
    [
        ("Arla-Oat-Milk-0.5-l", "Soap-Bar-90-g"),
        ("Arla Oat Milk 1 l", "Arla Soap 90 g"),
        ("Oatmilk Arla", "Soapdish Arla"),
    ],
)
def test_products_are_near_their_siblings(near: str, far: str) -> None:
    names = Names(["Arla Oat Milk 1 l", near, far, *SHELF])
    assert np.diff(names.likeness(np.array([0, 0]), np.array([1, 2])))[0] < -0.2


@pytest.mark.parametrize(
    "pair", [("Молоко овсяное", "Молоко козье"), ("दूध 1 ली", "दूध मिली"), ("有机牛奶", "牛奶"), ("حليب كامل", "حليب")]
)
def test_every_script_is_read(pair: tuple[str, str]) -> None:
    assert 0.1 < likeness(*pair) < 1


def test_marks_belong_to_their_word() -> None:
    assert "दूध" in parts("दूध 1 ली")
    assert {"oat", "1", "0.5", "l"} <= parts("Oat_1-0.5L")


@pytest.mark.parametrize("name", ["", " ", "!?", "---", "\u200d"])
def test_a_name_that_says_nothing_is_like_no_other(name: str) -> None:
    assert likeness(name, name) == likeness(name, "Milk") == 0


def test_codes_have_nothing_in_common() -> None:
    codes = [f"SKU-{number}" for number in (100200, 100201, 77)]
    assert Names(codes).likeness(np.array([0, 0, 1]), np.array([1, 2, 2])).tolist() == [0, 0, 0]


def test_a_brand_of_all_says_nothing() -> None:
    names = Names([f"Arla {kind}" for kind in ("Milk", "Cream", "Butter")])
    assert names.likeness(np.array([0]), np.array([1]))[0] == 0


def test_long_names_are_read_to_a_limit() -> None:
    assert parts("ab " * 1000) == parts("ab")
    assert len(parts("".join(chr(0x4E00 + number) for number in range(2000)))) <= MOST_CHARS + 1


def test_no_pairs_and_one_class() -> None:
    assert len(Names(["Milk"]).likeness(np.zeros(0, np.int64), np.zeros(0, np.int64))) == 0
    assert Names(["Milk"]).likeness(np.array([0]), np.array([0])) == 0
