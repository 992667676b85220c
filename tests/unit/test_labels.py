"""The rule for labels: what is folded, refused, the same and shown."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.labels import LONGEST, KnownLabels, difference, fault, fold, likeness, shown

ODD = (
    "a \u00ad\u200b\u200c\u200d\u200e\u202e\u2066\ufeff\u00a0\u2003\t\n\u0301\u094d\u0915\u0645\u06cc"
    "\U0001f469\U0001f3fd\ufe0f\u3164e"
)


@pytest.mark.parametrize(
    ("label", "folded"),
    [
        ("Alma\u00adMilk", "AlmaMilk"),
        ("\ufeffAlma Milk", "Alma Milk"),
        ("Beko Cola\u200b", "Beko Cola"),
        ("\u200eElva \u202eTea\u202c", "Elva Tea"),
        ("\u2066Elva\u2069 Tea\u061c", "Elva Tea"),
        ("Dorn\u2060Juice\u034f", "DornJuice"),
        ("\u3164Dorn\u115f Juice\ufff9", "Dorn Juice"),
        ("Cafe\u0301 Oro", "Café Oro"),
        ("Caf\u0065\u00ad\u0301 Oro", "Café Oro"),
        ("  1\u00a0l\u2003\tmilk \r\n", "1 l milk"),
        ("a\u200db", "ab"),
        ("\u200cAlma\u200c", "Alma"),
        ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"),  # Persian
        ("\u0915\u094d\u200d\u0937", "\u0915\u094d\u200d\u0937"),  # Hindi, half a letter
        ("\u09b0\u200d\u09cd\u09af", "\u09b0\u200d\u09cd\u09af"),  # Bengali
        ("\U0001f469\U0001f3fd\u200d\U0001f52c", "\U0001f469\U0001f3fd\u200d\U0001f52c"),  # one person
        ("\u2764\ufe0f\u200d\U0001f525", "\u2764\u200d\U0001f525"),
        ("\u2764\ufe0f", "\u2764"),
        ("007", "007"),
        ("1.0", "1.0"),
        ("Alma MILK.", "Alma MILK."),
        ("\u0661\u0660\u0600", "\u0661\u0660\u0600"),  # the Arabic sign for numbers is visible
        ("1/2 l", "1/2 l"),
        ("NA", "NA"),
    ],
)  # fmt: skip
def test_labels_are_folded(label: str, folded: str) -> None:
    assert fold(label) == folded


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from(ODD) | st.characters(), max_size=12))
def test_folding_is_done_once_and_for_all(label: str) -> None:
    folded = fold(label)
    assert fold(folded) == folded
    assert unicodedata.is_normalized("NFC", folded)
    assert likeness(folded) == likeness(label)
    assert folded == " ".join(folded.split())
    assert not set(folded) & set("\u00ad\u200b\u200e\u202e\u2066\ufeff\u00a0\ufe0f\u3164")


@pytest.mark.parametrize(
    ("label", "reason"),
    [
        ("", "is blank"),
        ("\x07bell", r"holds a control character (\u0007); leave it out"),
        ("a\0b", r"holds a control character (\u0000); leave it out"),
        ("Caf\udce9", r"holds a character that was damaged (\udce9); write it again in UTF-8"),
        ("Caf\ufffd", r"holds a character that was damaged (\ufffd); write it again in UTF-8"),
        ("flag\U000e0067", r"holds a character that cannot be seen (\U000e0067); leave it out"),
        ("x" * (LONGEST + 1), "has 501 characters; use at most 500"),
        ("4.00638E+12", "is a number that a spreadsheet shortened; write labels as text"),
        ("4,00638e+12", "is a number that a spreadsheet shortened; write labels as text"),
        ("x" * LONGEST, ""),
        ("NaN", ""),
        ("None", ""),
        ("4006381333931", ""),
        ("E+ 12", ""),
    ],
)
def test_labels_that_name_no_product_are_refused(label: str, reason: str) -> None:
    assert fault(fold(label)) == reason


@pytest.mark.parametrize(
    ("label", "text"),
    [
        ("Alma\u00adMilk", r"'Alma\u00adMilk'"),
        ("Cafe\u0301", r"'Cafe\u0301'"),
        ("Café", "'Café'"),
        ("\u0915\u093e", "'\u0915\u093e'"),  # a vowel that is written as a mark
        ("tea\ufe0f\u3164", r"'tea\ufe0f\u3164'"),
        ("1\u00a0l", r"'1\u00a0l'"),
        ("a\nb", r"'a\u000ab'"),
        ("\U000e0067", r"'\U000e0067'"),
        ("Kid's", '"Kid\'s"'),
        ("[red] milk", "'[red] milk'"),
    ],
)
def test_messages_show_what_cannot_be_seen(label: str, text: str) -> None:
    assert shown(label) == text


@pytest.mark.parametrize(
    ("one", "other", "told"),
    [
        ("Alma Milk", "alma  MILK", "differ only in case or white space"),
        ("red mug", "redmug", "differ only in case or white space"),
        ("STRASSE", "straße", "differ only in case or white space"),
        ("Beko Cola", "Beko Cola\u200b", "differ only in characters that cannot be seen"),
        ("Café", "Cafe\u0301", "differ only in characters that cannot be seen"),
        ("1", "1.0", "are the same number"),
        ("007", "7", "are the same number"),
        ("\uff2d\uff49\uff4c\uff4b", "Milk", "differ only in the form of their letters"),
        ("\u0645\u06cc\u200c\u062e", "\u0645\u06cc\u062e", "differ only in the form of their letters"),
    ],
)
def test_labels_that_are_too_similar(one: str, other: str, told: str) -> None:
    assert likeness(one) == likeness(other)
    assert difference(one, other) == told


@pytest.mark.parametrize(
    ("one", "other"), [("1", "10"), ("1", "1.5"), ("1 l", "2 l"), ("0", ""), ("cafe", "café"), ("100", "1.00")]
)
def test_labels_of_different_products(one: str, other: str) -> None:
    assert likeness(one) != likeness(other)


def test_existing_labels_win() -> None:
    known = KnownLabels(["Beko Cola\u200b", "Elva Tea", "Elva Tea\u200e", "\ufeffX", "X\u200b", "milk"])
    assert known.spelt("Beko Cola") == known.spelt(" Beko  Cola\u00ad") == "Beko Cola\u200b", "as it was stored"
    assert known.spelt("Elva\u00adTea") == "ElvaTea"
    assert known.spelt("Elva \ufeffTea") == "Elva Tea", "the one without what cannot be seen"
    assert known.spelt("Elva Tea\u200e") == "Elva Tea\u200e", "the same to the character"
    assert known.spelt("X") == "X", "which of the two is meant is not clear"
    assert known.alike("X") == "X\u200b"
    assert known.spelt("new\u200b  one") == "new one"
    assert (known.alike("Milk"), known.alike("milk"), known.alike("new one")) == ("milk", "", "")
