"""Train a student on the answers of its teacher:
`python -m models.training.distil --data DIR --recipe FILE.json --answers DIR --out DIR`.

The student is a network like any member, so that it is exported, calibrated and judged like one. It learns from all
train photos and from photos without a label: it sees answers (models.export.teacher) instead of labels.
The loop, its checkpoints and its output are those of `models.training.train`.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models import distributed
from models.data.manifest import UNLABELLED, Manifest, read_manifest
from models.data.photos import Photos
from models.data.samplers import Sampler
from models.data.trusted import with_selection_photos
from models.evaluation.scores import write_scores
from models.losses.distilled import Distilled
from models.networks.inputs import Inputs, Views
from models.networks.network import Network, build_network, count_parameters, set_threads
from models.networks.predict import score
from models.recipe.config import Recipe, digest
from models.training.answers import Answers, read_answers, student_rows
from models.training.command import log_progress, parser_for, read_recipe, run
from models.training.epochs import fit
from models.training.job import split_rows
from models.training.meta import Constant
from models.training.sample_weights import SampleWeights
from models.training.train import save_network, to_device

log = logging.getLogger(__name__)


def distil(recipe: Recipe, data: Path, *, answers: Path, out: Path) -> None:
    """Trains the student of a recipe, or resumes a killed run, and scores the validation and test photos."""
    settings, student = recipe.distil.settings(recipe.train), recipe.distil.member
    set_threads(settings.threads)
    torch.manual_seed(student.seed)
    manifest = with_selection_photos(read_manifest(data), recipe.proof.photos)
    rows = student_rows(manifest)
    taught = read_answers(answers, num_photos=len(rows))
    network = to_device(build_network(student, num_classes=len(manifest.classes)))
    log.info("%s at %d px learns the answers to %d photos, %d of them unlabelled and %d left out of other trainings; "
             "%d parameters on %s", student.backbone, student.size, len(rows),
             int((manifest.split[rows] == UNLABELLED).sum()), int((~manifest.kept[rows]).sum()),
             count_parameters(network), network.mean.device)  # fmt: skip
    learn(recipe, network, taught, ids=manifest.id[rows], inputs=inputs_of(recipe, network, manifest, rows), out=out)
    _, held_out = split_rows(manifest, fold=None, num_folds=0)
    scored = inputs_of(recipe, network, manifest, held_out)
    scores = score(network, scored, ids=manifest.id[held_out], target=manifest.target[held_out])
    save_network(out / "network.pt", network, member=student, classes=manifest.classes)
    if distributed.rank() == 0:
        write_scores(scores, out / "scores.parquet")
        (out / "checkpoint.pt").unlink(missing_ok=True)


def learn(
    recipe: Recipe, network: Network, taught: Answers, *, ids: NDArray[np.object_], inputs: Inputs, out: Path
) -> None:
    """Trains a student on answers to the photos `ids` of `inputs`. The teacher's best class stands where one is needed."""
    settings = recipe.distil.settings(recipe.train)
    loss = Distilled(network.head.classifier.out_features, torch.from_numpy(taught.classes),
                     torch.from_numpy(taught.probs), temperature=recipe.distil.temperature)  # fmt: skip
    best = taught.classes[:, 0].astype(np.int64)
    sampler = Sampler(
        target=best, score=np.full(len(best), np.nan, np.float32), settings=settings, seed=recipe.distil.seed
    )
    fit(network, loss.to(network.mean.device), inputs, ids=ids, sampler=sampler, out=out, key=key_of(recipe, taught),
        sample_weights=SampleWeights(torch.ones(len(best))), ask=_nothing, meta=Constant(loss))  # fmt: skip


def inputs_of(recipe: Recipe, network: Network, manifest: Manifest, rows: NDArray[np.int64]) -> Views:
    """Views of these photos, as the student sees them."""
    photos = Photos(manifest, rows, side=recipe.export.input_size, device=network.mean.device,
                    loaders=recipe.train.loaders, is_reduced=True, on_device=recipe.train.decode == "device")  # fmt: skip
    return Views(photos, network, size=recipe.distil.size, augment=recipe.augment)


def key_of(recipe: Recipe, taught: Answers) -> str:
    """Digest of everything that the student depends on."""
    settings = recipe.distil.settings(recipe.train).decisive
    return digest(taught.key, recipe.distil, recipe.distil.member.start, settings, recipe.augment)


def _nothing() -> tuple[Tensor, float]:
    raise NotImplementedError  # the loss asks for no answers of the student


def main() -> None:
    """Command line that trains one student."""
    parser = parser_for("data recipe out", description="Train a student on the answers of its teacher.")
    parser.add_argument("--answers", type=Path, required=True, help="output folder of models.export.teacher")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with distributed.workers():
        if distributed.rank() == 0:
            log_progress()
        distil(read_recipe(args.recipe), args.data, answers=args.answers, out=args.out)


if __name__ == "__main__":
    run(main)
