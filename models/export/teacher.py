"""Answer all photos that a student learns from with the ensemble, its teacher:
`python -m models.export.teacher --data DIR --recipe FILE --networks FILE... --ensemble FILE --out DIR`.

The teacher is the graph in torch: re-balanced members with their tau and weights, averaged over `distil.crops` crops, at
`distil.temperature`. Files written to --out are those of models.training.answers; a killed run is continued.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging

import torch

from models.data.photos import Photos
from models.export.crops import Ensemble, open_ensemble
from models.export.graph import DeployGraph
from models.export.ood import Calibration
from models.export.passes import shown
from models.networks.inputs import EVAL_BATCH
from models.networks.network import best_device
from models.progress import with_progress
from models.recipe.config import Export, Recipe, content, digest
from models.training.answers import KEEP, Answers, open_answers, student_rows
from models.training.command import parser_for, run

log = logging.getLogger(__name__)

BLOCK = 4096  # photos that a kill can cost


def make_teacher(ensemble: Ensemble) -> DeployGraph:
    """The graph of the ensemble whose mean over crops and members the student learns."""
    recipe, members = ensemble.recipe, ensemble.members
    calibration = Calibration((recipe.distil.temperature,) * len(members))
    return DeployGraph(members, settings=views(recipe), weights=ensemble.weights, calibration=calibration)


def views(recipe: Recipe) -> Export:
    """Export settings with the teacher's crops; one and two crops show the whole photo."""
    enlarge = recipe.export.enlarge[:1] if recipe.distil.crops > 2 else (1.0,)
    keep = max(recipe.export.keep, KEEP)
    return dataclasses.replace(recipe.export, crops=recipe.distil.crops, enlarge=enlarge, keep=keep)


def answer(teacher: DeployGraph, photos: Photos, answers: Answers) -> None:
    """Fills in the answers that are missing."""
    device, done, saved = teacher.to(best_device()).eval().weights.device, answers.done, answers.done
    at_once = max(1, EVAL_BATCH[device.type] // len(teacher.members[0].crops))
    with torch.inference_mode():
        batches = photos.in_order(at_once, part=slice(done, None))
        for image in with_progress(batches, "answering", len(photos) - done):
            probs, classes = teacher.mean(teacher.output(image.to(device))).topk(answers.classes.shape[1])
            rest = (1 - probs.sum(1, keepdim=True)).clamp_min(0)
            rows = slice(done, done + len(image))
            answers.classes[rows] = classes.cpu().numpy()
            answers.probs[rows] = torch.cat([probs, rest], 1).cpu().numpy()
            done = rows.stop
            if done - saved >= BLOCK:
                answers.save(saved := done)
    answers.save(done)


def main() -> None:
    """Command line that answers the photos of one student."""
    parser = parser_for(
        "data recipe networks ensemble out", description="Answer a student's photos with the ensemble, its teacher."
    )
    args = parser.parse_args()
    ensemble = open_ensemble(args)
    rows = student_rows(ensemble.manifest)
    decode = ensemble.recipe.train.decode
    photos = shown(ensemble.manifest, rows, side=ensemble.recipe.export.input_size, on_device=decode == "device")
    parts = [*map(content, map(str, (*args.networks, args.ensemble, args.data / "index.parquet")))]
    chosen = hashlib.sha256(rows.tobytes()).hexdigest()
    key = digest(*parts, chosen, decode, ensemble.recipe.distil.temperature, views(ensemble.recipe))
    answers = open_answers(args.out, num_photos=len(rows), num_classes=len(ensemble.manifest.classes), key=key)
    log.info("%d members answer %d photos in %d crops", len(ensemble.members), len(rows), ensemble.recipe.distil.crops)
    answer(make_teacher(ensemble), photos, answers)


if __name__ == "__main__":
    run(main)
