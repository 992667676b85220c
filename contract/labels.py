"""The rule for labels: how one is spelt, which are refused, and which are the same. Uses the standard library only.

Everything that takes a label from a user follows it, so that two products never look the same. `fold` gives the
spelling that is stored, `fault` says why a label is refused, `KnownLabels` finds the existing label that is meant, and
`shown` makes visible in a message what cannot be seen.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable, Iterable

LONGEST = 500  # characters of a label
MISSING = frozenset({"nan", "none", "null", "na", "n/a", "<na>", "nat"})  # as programs write a value that is missing

# Default_Ignorable_Code_Point of Unicode 15.1 without the two joiners and without tags, and interlinear annotations:
# soft hyphen, zero-width space, marks of direction, byte order mark, variation selectors and others that show nothing.
_IGNORED = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0100-\U000e01ef]"
)
_NON_JOINER, _JOINER = "\u200c", "\u200d"
_JOINERS = re.compile(f"[{_NON_JOINER}{_JOINER}]")
_VIRAMA = 9  # combining class of the sign that joins two consonants in Indic scripts
_TAGS = range(0xE0000, 0xE0080)  # letters that show nothing by themselves
_NUMBER = re.compile(r"0*([0-9]+?)(\.0+)?")
_SHORTENED = re.compile(r"[+-]?[0-9]([.,][0-9]+)?[eE]\+[0-9]+")  # a spreadsheet writes long numbers like this


def fold(label: str) -> str:
    """The label as it is stored: Unicode form NFC, no characters that cannot be seen, and single spaces.

    Case, leading zeros and punctuation stay. So do joiners between letters of scripts that they change (Arabic, Indic)
    and in emoji (as RFC 5892, appendix A); elsewhere they show nothing and are left out.
    """
    label = _IGNORED.sub("", label)
    if _JOINERS.search(label):
        label = "".join(c for i, c in enumerate(label) if not _JOINERS.match(c) or _joins(label, i))
    return " ".join(unicodedata.normalize("NFC", label).split())


def fault(label: str) -> str:
    """Reason why a folded label cannot name a product; "" if it can."""
    if not label:
        return "is blank"
    for char in label:
        if unicodedata.category(char) == "Cc":
            return f"holds a control character ({_escaped(char)}); leave it out"
        if unicodedata.category(char) == "Cs" or char == "\ufffd":
            return f"holds a character that was damaged ({_escaped(char)}); write it again in UTF-8"
        if ord(char) in _TAGS:
            return f"holds a character that cannot be seen ({_escaped(char)}); leave it out"
    if len(label) > LONGEST:
        return f"has {len(label):,} characters; use at most {LONGEST}"
    if _SHORTENED.fullmatch(label):
        return "is a number that a spreadsheet shortened; write labels as text"
    return ""


def shown(label: str) -> str:
    r"""The label in quotes, with escapes for characters that cannot be seen or that look like others: 'Alma\u00adMilk'."""
    is_composed = unicodedata.is_normalized("NFC", label)
    hidden = (not char.isprintable() or _IGNORED.match(char) or (not is_composed and unicodedata.combining(char))
              for char in label)  # fmt: skip
    text = "".join(_escaped(char) if escape else char for char, escape in zip(label, hidden, strict=True))
    return f'"{text}"' if "'" in text else f"'{text}'"


def likeness(label: str) -> str:
    """Key that labels share if they differ only in case, white space, joiners, forms of a letter, or as 1, 01 and 1.0."""
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", fold(label)).casefold())
    text = "".join(_JOINERS.sub("", text).split())
    number = _NUMBER.fullmatch(text)
    return number[1] if number else text


def difference(one: str, other: str) -> str:
    """The difference of two labels of one likeness, as the end of a sentence about both."""
    if fold(one) == fold(other):
        return "differ only in characters that cannot be seen"
    if _squeezed(one) == _squeezed(other):
        return "differ only in case or white space"
    is_number = _NUMBER.fullmatch(fold(one)) and _NUMBER.fullmatch(fold(other))
    return "are the same number" if is_number else "differ only in the form of their letters"


class KnownLabels:
    """Labels that exist already, as far back as they were stored. They win: what means one of them gets its spelling."""

    def __init__(self, labels: Iterable[str]) -> None:
        self.labels = frozenset(labels)

    @functools.cached_property
    def _folded(self) -> dict[str, list[str]]:
        return _grouped(self.labels, fold)

    @functools.cached_property
    def _alike(self) -> dict[str, list[str]]:
        return _grouped(self.labels, likeness)

    def spelt(self, label: str) -> str:
        """The existing label that `label` is, or else its folded form.

        A label is an existing one if it is the same to the character, or if it is the only one with the same folded form.
        """
        folded = fold(label)
        if label in self.labels or folded in self.labels:
            return label if label in self.labels else folded
        same = self._folded.get(folded, [])
        return same[0] if len(same) == 1 else folded

    def alike(self, label: str) -> str:
        """An existing label that `label` is too similar to; "" if there is none, or if it is an existing label itself."""
        return "" if label in self.labels else self._alike.get(likeness(label), [""])[0]


def _grouped(labels: Iterable[str], key: Callable[[str], str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for label in sorted(labels):
        groups.setdefault(key(label), []).append(label)
    return groups


def _joins(label: str, i: int) -> bool:
    """True if the joiner at position i changes how its neighbours are written."""
    before, after = label[max(i - 1, 0) : i], label[i + 1 : i + 2]
    if not before or not after:
        return False
    if _VIRAMA in (unicodedata.combining(before), unicodedata.combining(after)):
        return True
    if label[i] == _JOINER and unicodedata.category(after) == "So":
        return unicodedata.category(before) in ("So", "Sk")  # Sk: the colour of a skin
    return unicodedata.bidirectional(before) == unicodedata.bidirectional(after) == "AL"


def _squeezed(label: str) -> str:
    return "".join(fold(label).casefold().split())


def _escaped(char: str) -> str:
    return f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}"
