"""A person's choice about one photo, as it is read from the file of another tool."""

from __future__ import annotations

from dataclasses import dataclass, replace

from flows.errors import BadDelivery
from flows.exchange.suspects import NO_PRODUCT
from flows.review.decisions import KEEP, KINDS, NONE, RELABEL, SKIP, TAKE
from models.data.records import short

EDITED = "edited"  # `label` stands where the export wrote the given label: a decision if the two differ


@dataclass(frozen=True)
class Choice:
    """A choice. where: file and row, for messages. kind: one of KINDS, or EDITED. label: of RELABEL, TAKE and EDITED.

    who: "" if the file does not say.
    """

    where: str
    photo: str
    kind: str
    label: str = ""
    who: str = ""


def with_none(choice: Choice) -> Choice:
    """The choice, with NO_PRODUCT as a label understood as NONE."""
    return replace(choice, kind=NONE, label="") if choice.label == NO_PRODUCT else choice


def choice_of(where: str, photo: str, *, kind: str, label: str, suggested: str, who: str) -> Choice | None:
    """The choice that a row makes by a kind, a label or both; None if it makes none.

    Raises:
        BadDelivery: the kind is unknown, it contradicts the label, or there is no suggestion to take.
    """
    kind = kind.strip().lower()
    if label == NO_PRODUCT:
        kind, label = kind or NONE, ""
    if not kind and not label:
        return None
    if kind and kind not in KINDS:
        raise BadDelivery(f"{where}, field decision: {short(kind)} is unknown; use one of {', '.join(KINDS)}")
    if kind in (KEEP, NONE, SKIP) and label:
        raise BadDelivery(
            f"{where}: decision {kind} and label {short(label)} contradict each other; keep one of the two"
        )
    if kind == TAKE and not (label or suggested):
        raise BadDelivery(f"{where}, field decision: there is no suggestion to take; write the label instead")
    if kind == RELABEL and not label:
        raise BadDelivery(f"{where}, field label: it is blank; write the label that the photo shows")
    return Choice(where, photo, kind or RELABEL, label or (suggested if kind == TAKE else ""), who)
