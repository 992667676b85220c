"""The model card: metadata of an ONNX file. Read from the file alone, without a workspace and without torch."""

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
    """The metadata of an ONNX file: the keys of TEXT as they are, all others parsed from JSON.

    Raises:
        BadGraph: the file is not an ONNX graph of CleanShelf, or has no card.
    """
    metadata = Signature.read(path).metadata
    if "labels" not in metadata:
        raise BadGraph(
            f"{path}: the metadata contain no labels, so there is no model card; use the file of a model version"
        )
    return {key: value if key in TEXT else _parsed(value) for key, value in metadata.items()}


def facts(path: Path) -> dict[str, Any]:
    """The part of a model's lineage that is in its file: the card, with the hash of the labels instead of the labels.

    Raises:
        BadGraph: as `read_card`.
    """
    return {key: value for key, value in read_card(path).items() if key != "labels"}


def _parsed(value: str) -> Any:
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value


def summary(card: Mapping[str, Any]) -> dict[str, str]:
    """Lines for people, by title, beside the tables of members and accuracy; files of earlier releases have fewer."""
    lines = {"labels": f"{len(card['labels'])}, sha256 {card['labels_sha256']}"}
    lines |= {key: str(card[key]) for key in TEXT[:-1] if key in card}
    if enrolled := card.get("enrolled"):
        lines["enrolled"] = ", ".join(f"{each['label']} from {each['photos']} photos" for each in enrolled)
    starts = {f"{each['started_from']}, sha256 {each['weights_sha256']}" for each in card.get("members", [])
              if each.get("weights_sha256")}  # fmt: skip
    if starts:
        lines["starting weights"] = "; ".join(sorted(starts))
    if views := card.get("views"):
        lines["views"] = f"{views['crops']} crops, enlarged {views['enlarge']} times"
    if known := card.get("known"):
        lines["known"] = _known(known, card.get("calibration") or {})
    if card.get("calibration", {}).get("surprise"):
        before, after = card["calibration"]["surprise"]
        lines["temperature"] = f"negative log-likelihood of validation photos {before:.3f} -> {after:.3f}"
    if parity := card.get("parity"):
        reference = parity.get("reference", "torch")
        lines["parity"] = (
            f"{parity['different_ids']} ids differ from {reference}, probabilities by {parity['probability']:.1e}, "
            f"known by {parity['known']:.1e}, on {parity['photos']} photos"
        )
    return lines


def _known(known: Mapping[str, Any], calibration: Mapping[str, Any]) -> str:
    """The score behind `known`, its threshold, and how well it separates products from other photos."""
    rejected = ", photos below it get no classes" if known["reject"] else ""
    if known["slope"] is None:
        return f"the top probability, not calibrated; accepted from 0.5 on{rejected}"
    line = f"{known['score']}, accepted from {known['threshold']:.4g} on (slope {known['slope']:.4g}){rejected}"
    if not calibration:
        return line
    auroc = calibration["told_apart"][known["score"]]
    return (
        f"{line}; {calibration['accepted']:.1%} of {calibration['photos']} validation photos are accepted; AUROC "
        f"{auroc['without_class']:.3f} for classes left out, {auroc['in_tiles']:.3f} in tiles"
    )
