"""FiftyOne: a dataset on disk that `Dataset.from_dir` loads as a FiftyOneDataset.

Decisions are labels of the field `decision`, a changed label of the field `given`, or one of the tags `keep`, `take`, `none`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flows.errors import BadDelivery
from flows.exchange.choice import EDITED, Choice, choice_of, with_none
from flows.exchange.suspects import Suspect
from flows.review.decisions import KEEP, NONE, TAKE
from models.data.records import short

SAMPLES, METADATA = "samples.json", "metadata.json"
TAGS = (KEEP, TAKE, NONE)
FIELDS = ("given", "suggested", "decision")  # classifications


def write(folder: Path, suspects: Sequence[Suspect]) -> None:
    """Writes samples.json and metadata.json; without a version in it, FiftyOne finds out the types of the fields itself."""
    samples = [_sample(suspect) for suspect in suspects]
    (folder / SAMPLES).write_text(json.dumps({"samples": samples}, ensure_ascii=False), encoding="utf-8")
    (folder / METADATA).write_text(json.dumps({"media_type": "image"}), encoding="utf-8")


def read(file: Path) -> Iterator[Choice]:
    """Choices of the samples.json of an exported FiftyOneDataset.

    Raises:
        BadDelivery: it is another format, or a sample contradicts itself.
    """
    samples = json.loads(file.read_text(encoding="utf-8"))["samples"]
    for number, sample in enumerate(samples, start=1):
        where = f"{file}: sample {number}"
        photo = sample.get("photo") if isinstance(sample, dict) else None
        if not isinstance(photo, str):
            raise BadDelivery(
                f"{where}, field photo: {short(photo)} is not the id of a photo; keep the exported samples"
            )
        tags = [tag for tag in sample.get("tags") or [] if tag in TAGS]
        if len(tags) > 1:
            raise BadDelivery(f"{where}: the tags {', '.join(tags)} contradict each other; keep one")
        given, suggested, decision = (_label(sample.get(field)) for field in FIELDS)
        chosen = choice_of(
            where, photo, kind="".join(tags), label=decision, suggested=suggested, who=str(sample.get("who") or "")
        )
        yield chosen or with_none(Choice(where, photo, EDITED, given))


def _sample(suspect: Suspect) -> dict[str, Any]:
    sample: dict[str, Any] = {
        "filepath": suspect.file,
        "tags": [],
        "metadata": None,
        "photo": suspect.photo,
        "given": {"_cls": "Classification", "label": suspect.given},
        "suggested": None,
        "decision": None,
        "score": suspect.score,
        "split": suspect.split,
        "source": suspect.source,
        "version": suspect.version,
    }
    if suspect.suggested:
        sample["suggested"] = {"_cls": "Classification", "label": suspect.suggested, "confidence": suspect.probability}
    return sample


def _label(value: Mapping[str, Any] | None) -> str:
    return str((value or {}).get("label") or "")
