"""The card of a model: what its file says of itself. Read from the file alone, without a workspace and without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from serving.errors import BadGraph
from serving.signature import Signature

TEXT = (
    "data_version",
    "commit",
    "code_hash",
    "config_hash",
    "recipe",
    "produced_by",
    "made_from",
    "step",
    "labels_sha256",
)
MEMBER = ("backbone", "size", "tau", "temperature", "weight", "started_from", "licence")
ACCURACY = ("top1", "top5", "mean_class", "head", "middle", "tail")


def read_card(path: Path) -> dict[str, Any]:
    """The metadata of an ONNX file: texts as they are, all else parsed from JSON.

    Raises:
        BadGraph: no file of a model, or one whose metadata are no card.
    """
    metadata = Signature.read(path).metadata
    if "labels" not in metadata:
        raise BadGraph(f"{path}: its metadata name no labels, so it has no card; take the file of a model version")
    return {key: value if key in TEXT else _parsed(value) for key, value in metadata.items()}


def facts(path: Path) -> dict[str, Any]:
    """What of a model's lineage its file says itself: the card, in which the hash of the labels stands for them.

    Raises:
        BadGraph: as for read_card.
    """
    return {key: value for key, value in read_card(path).items() if key != "labels"}


def _parsed(value: str) -> Any:
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value


def summary(card: Mapping[str, Any]) -> dict[str, str]:
    """What people want to know beside the tables of members and of accuracy, a line each; of older files less."""
    lines = {"labels": f"{len(card['labels'])}, sha256 {card['labels_sha256']}"}
    lines |= {key: str(card[key]) for key in TEXT[:-1] if key in card}
    if enrolled := card.get("enrolled"):
        lines["enrolled"] = ", ".join(f"{each['label']} from {each['photos']} photos" for each in enrolled)
    if views := card.get("views"):
        lines["views"] = f"{views['crops']} crops, enlarged {views['enlarge']} times"
    if known := card.get("known"):
        lines["known"] = _known(known, card.get("calibration") or {})
    if card.get("calibration", {}).get("surprise"):
        before, after = card["calibration"]["surprise"]
        lines["temperature"] = f"surprise at the labels of validation photos {before:.3f} -> {after:.3f}"
    if parity := card.get("parity"):
        of = parity.get("reference", "torch")
        lines["parity"] = (f"{parity['different_ids']} ids differ from {of}, probabilities by {parity['probability']:.1e}, "
                           f"known by {parity['known']:.1e}, on {parity['photos']} photos")  # fmt: skip
    return lines


def _known(known: Mapping[str, Any], evidence: Mapping[str, Any]) -> str:
    """By which score, and what it accepts."""
    rejected = ", what is not accepted gets no classes" if known["reject"] else ""
    if known["slope"] is None:
        return f"the top probability as it is, not calibrated; accepted from 0.5 on{rejected}"
    line = f"{known['score']}, accepted from {known['threshold']:.4g} on (slope {known['slope']:.4g}){rejected}"
    if not evidence:
        return line
    told = evidence["told_apart"][known["score"]]
    return (f"{line}; {evidence['accepted']:.1%} of {evidence['photos']} validation photos are accepted; AUROC "
            f"{told['without_class']:.3f} without their class, {told['in_tiles']:.3f} in tiles")  # fmt: skip
