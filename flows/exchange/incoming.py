"""Takes in decisions that people made in another tool."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from contract.labels import difference
from flows.data.versions import DataVersions
from flows.errors import BadDelivery, Decided
from flows.exchange.choice import EDITED, Choice
from flows.exchange.formats import read_choices
from flows.review.classes import Classes
from flows.review.decisions import KEEP, NONE, RELABEL, SKIP, TAKE, Decision, Decisions
from flows.review.photos import Photos, read_photos
from flows.workspace import Workspace
from models.data.records import short


@dataclass(frozen=True)
class TakenIn:
    """Numbers of photos: new decisions by kind, and those that had been decided in the same way before."""

    version: str
    kept: int
    relabelled: int
    none: int
    skipped: int
    unchanged: int


def take_in(
    workspace: Workspace, file: Path, *, format: str = "", who: str, version: str = "selected", dry_run: bool = False
) -> TakenIn:
    """Writes the decisions in a file; they become a data version when they are saved. The same file again changes nothing.

    Args:
        format: one of FORMATS; "" finds out which.
        who: decided where the file does not say who did.

    Raises:
        BadDelivery: a row cannot be used; the message has its number and value, and nothing was written.
        Decided: another person has decided about one of the photos, and this is not saved yet; nothing was written.
    """
    versions = DataVersions(workspace)
    resolved = versions.resolve(version)
    photos = read_photos(versions.materialise(resolved), version=resolved)
    made = decisions_in(photos, read_choices(file, format), who=who)
    if not made:
        raise BadDelivery(f"{file} has no decisions; decide about a photo first, then export again")
    decisions = Decisions(workspace.state)
    new = [each for each in made if not _is_known(decisions, each)]
    if not dry_run and new:
        decisions.add(new, seen=0)
    elif new:
        _check_others(decisions, new)
    kinds = Counter(each.kind for each in new)
    relabelled = kinds[RELABEL] + kinds[TAKE]
    return TakenIn(resolved, kinds[KEEP], relabelled, kinds[NONE], kinds[SKIP], len(made) - len(new))


def decisions_in(photos: Photos, choices: Iterable[Choice], *, who: str) -> list[Decision]:
    """The choices as decisions about photos of a data version, checked.

    Raises:
        BadDelivery: an unknown photo or label, or two rows about a photo that contradict each other.
    """
    known = Classes(photos).is_product
    made: dict[str, tuple[Choice, Decision]] = {}
    for choice in choices:
        decision = _decision(photos, choice, known, who=choice.who or who)
        if decision is None:
            continue
        before = made.get(choice.photo)
        if before and (before[1].kind, before[1].label) != (decision.kind, decision.label):
            raise BadDelivery(
                f"{choice.where}: {short(decision.label or decision.kind)} contradicts "
                f"{short(before[1].label or before[1].kind)} of {before[0].where}; keep one of the two"
            )
        made[choice.photo] = choice, decision
    return [decision for _, decision in made.values()]


def _decision(photos: Photos, choice: Choice, known: NDArray[np.bool_], *, who: str) -> Decision | None:
    row = int(photos.rows([choice.photo])[0])
    if row < 0:
        raise BadDelivery(
            f"{choice.where}, field id: {short(choice.photo)} is not a photo of data version {photos.version[:12]}; correct it"
        )
    given = photos.given[row]
    kind, label = choice.kind, choice.label
    if kind in (KEEP, NONE, SKIP):
        return Decision(choice.photo, kind, given if kind == KEEP else "", who, photos.version)
    label = _product(photos, choice, known)
    if kind == EDITED and label == given:
        return None
    return Decision(choice.photo, KEEP if label == given else RELABEL, label, who, photos.version)


def _product(photos: Photos, choice: Choice, known: NDArray[np.bool_]) -> str:
    label = photos.products.spelt(choice.label)
    code = photos.label.code(label)
    if code >= 0 and known[code]:
        return label
    alike = photos.products.alike(label)
    hint = f"; {short(alike)} is, and the two {difference(label, alike)}" if alike else ""
    raise BadDelivery(
        f"{choice.where}, field label: {short(label)} is not a product of data version {photos.version[:12]}{hint}; correct "
        "it, or add photos of the product with `cleanshelf ingest`"
    )


def _is_known(decisions: Decisions, decision: Decision) -> bool:
    """True if the last decision about the photo that counts is the same, also if another person made it."""
    last = next((each for each in decisions.of(decision.photo) if not each["undone"]), None)
    return last is not None and (last["kind"], last["label"]) == (decision.kind, decision.label)


def _check_others(decisions: Decisions, new: Iterable[Decision]) -> None:
    pending = decisions.pending()
    for each in new:
        other = pending.get(each.photo)
        if other and other.who != each.who and other.kind != SKIP:
            raise Decided(
                f"{other.who} has decided about photo {each.photo} in the meantime ({other.kind}); look again"
            )
