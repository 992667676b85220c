"""Fuse networks into one graph:
`python -m models.export --data DIR --recipe FILE --networks FILE... --ensemble FILE --crops FILE --calibration FILE
--card FILE --out DIR`.

Files written to --out: model.onnx (with the card as metadata), answers.npz (its answers for the test photos),
accuracy.json, parity.json, and golden.npy (a few test photos for the check on the server).
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models import distributed
from models.data.manifest import Manifest, read_manifest
from models.data.photos import Photos
from models.data.samplers import spread_over_classes
from models.export.calibrate import read_calibration
from models.export.crops import with_chosen_crops
from models.export.graph import DeployGraph, used_networks
from models.export.measure import test_rows, write_answers
from models.export.onnx_file import write_onnx
from models.export.ood import UNCALIBRATED, Calibration
from models.export.parity import Parity, measure_parity, require_parity
from models.export.patch import name_classes, stamp
from models.export.session import decisive
from models.networks.network import set_threads
from models.networks.pretrained import licence_of, origin, settings_of
from models.recipe.config import Export, Member, Recipe
from models.recipe.learning import PRETRAINED
from models.training.command import log_progress, parser_for, read_recipe, run
from models.training.train import Trained, load_network

log = logging.getLogger(__name__)

PARITY_PHOTOS = 24
GOLDEN_PHOTOS = 4


def export(
    networks: list[Path], *, data: Path, recipe: Recipe, card: dict[str, str], out: Path,
    weights: Sequence[float] | None = None, calibration: Calibration = UNCALIBRATED,
) -> None:  # fmt: skip
    """Writes the graph, checks its parity with torch, measures its accuracy, and adds the figures to its metadata.

    Of several workers (models.distributed) the first writes the graph, and all measure it.

    Args:
        card: metadata of the graph, such as its data version.
        weights: weights of the networks, with sum 1; None: equal weights.
    """
    manifest, path = read_manifest(data), out / "model.onnx"
    parity = None
    if distributed.rank() == 0:
        parity = write_checked(networks, manifest, recipe=recipe, card=card, out=out, weights=weights,
                               calibration=calibration)  # fmt: skip
    distributed.barrier()
    figures = write_answers(path, manifest, out)
    if parity:
        stamp(path, {"metrics": json.dumps(figures), "parity": json.dumps(vars(parity))})


def write_checked(
    networks: list[Path], manifest: Manifest, *, recipe: Recipe, card: dict[str, str], out: Path,
    weights: Sequence[float] | None, calibration: Calibration,
) -> Parity:  # fmt: skip
    """Writes the graph and its golden photos, and returns its parity with torch."""
    set_threads(recipe.train.threads)
    members = [load_network(path) for path in networks]
    graph = DeployGraph(members, settings=recipe.export, weights=weights, calibration=calibration)
    path = out / "model.onnx"
    write_onnx(
        graph,
        path,
        input_size=recipe.export.input_size,
        metadata=card | describe(members, graph, settings=recipe.export, calibration=calibration),
    )
    log.info("exported %.1f MB", path.stat().st_size / 1e6)
    photos = sample_photos(manifest, side=recipe.export.input_size)
    np.save(out / "golden.npy", decisive(path, photos)[:GOLDEN_PHOTOS])
    parity = measure_parity(graph, path, photos)
    (out / "parity.json").write_text(json.dumps(vars(parity), indent=1), encoding="utf-8")
    require_parity(parity)
    log.info("parity on %d photos: probabilities differ by at most %.1e, known by %.1e", parity.photos, parity.probability,
             parity.known)  # fmt: skip
    return parity


def describe(
    members: list[Trained], graph: DeployGraph, *, settings: Export, calibration: Calibration
) -> dict[str, str]:
    """Metadata of the graph: labels, members and the weights they started from, crops, and calibration of `known`."""
    weights = graph.weights.flatten().tolist()
    described = [
        {
            "backbone": trained.member.backbone,
            "size": trained.member.size,
            "tau": trained.tau,
            "temperature": calibration.temperature_of(number),
            "weight": round(weight, 6),
            "started_from": started_from(trained.member),
            "weights_sha256": trained.member.weights_sha256,
            "licence": licence(trained.member),
        }
        for number, (trained, weight) in enumerate(zip(members, weights, strict=True))
    ]
    known = {
        "score": calibration.score,
        "slope": calibration.slope,
        "threshold": calibration.threshold,
        "accept": settings.accept,
        "reject": settings.reject,
    }
    return {
        **name_classes(members[0].classes),
        "members": json.dumps(described),
        "views": json.dumps({"crops": settings.crops, "enlarge": settings.enlarge[0]}),
        "known": json.dumps(known),
    }


def started_from(member: Member) -> str:
    """Source of a network's starting weights: a repository of the hub, a URL or a file; "" for random weights."""
    if member.weights == PRETRAINED:
        return origin(settings_of(member.backbone))
    return Path(member.weights).name


def licence(member: Member) -> str:
    """Licence of a network's starting weights: timm's word for its own, "unknown" for a file, "none" for random weights."""
    if not member.weights:
        return "none"
    return licence_of(settings_of(member.backbone)) if member.weights == PRETRAINED else "unknown"


def sample_photos(manifest: Manifest, *, side: int) -> NDArray[np.uint8]:
    """(n, side, side, 3) uint8 test photos, spread over the classes; any kept photos if there are no test photos."""
    rows = test_rows(manifest)
    rows = rows if len(rows) else np.flatnonzero(manifest.kept)
    chosen = spread_over_classes(rows, manifest.target[rows], count=PARITY_PHOTOS)
    return np.concatenate([batch.numpy() for batch in Photos(manifest, chosen, side=side).in_order(8)])


def main() -> None:
    """Command line that exports one graph."""
    parser = parser_for(
        "data recipe networks ensemble crops out", description="Fuse trained networks into one ONNX graph."
    )
    parser.add_argument("--calibration", type=Path, required=True, help="JSON file of models.export.calibrate")
    parser.add_argument(
        "--card", type=Path, required=True, help="JSON object of strings to add to the graph's metadata"
    )
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    recipe = read_recipe(args.recipe)
    card = json.loads(args.card.read_text(encoding="utf-8"))
    calibration, evidence = read_calibration(args.calibration)
    card["calibration"] = json.dumps(evidence)
    recipe = dataclasses.replace(recipe, export=with_chosen_crops(recipe.export, args.crops))
    networks, weights = used_networks(args.networks, args.ensemble)
    with distributed.workers():
        if distributed.rank() == 0:
            log_progress()
        export(networks, data=args.data, recipe=recipe, card=card, out=args.out, weights=weights,
               calibration=calibration)  # fmt: skip


if __name__ == "__main__":
    run(main)
