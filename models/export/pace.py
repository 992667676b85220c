"""Measure a few training steps and scored photos of one member on this machine, for a plan before a retraining:
`python -m models.export.pace --data DIR --recipe FILE.json --member 0 --out DIR`.

Writes pace.json to --out. A backbone that is trained is measured by steps on real photos; of a frozen one, the features
of a few photos and steps of its head on them.
"""

from __future__ import annotations

import dataclasses
import json
import resource
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from models.data import machine
from models.data.manifest import Manifest, read_manifest
from models.data.photos import Photos
from models.data.samplers import Sampler
from models.data.trusted import with_selection_photos
from models.export.graph import DeployGraph
from models.export.onnx_file import write_onnx
from models.export.timing import time_each
from models.networks.inputs import EVAL_BATCH, Inputs, Views, extract
from models.networks.network import EMBEDDING, Network, build_network, count_parameters, set_threads
from models.networks.predict import score
from models.progress import Progress
from models.recipe.config import Recipe
from models.training.command import parser_for, read_recipe, run
from models.training.epochs import initial_state, train_epoch
from models.training.job import Job, split_rows
from models.training.meta import Constant
from models.training.sample_weights import make_sample_weights
from models.training.train import Trained, make_loss, to_device

STEPS = 3  # that are timed, after one that is not
SCORED, FEW = 4, 8  # batches of a scoring pass; photos that a graph gets at a time
ROWS = 32  # of logits, in the passes over all classes


@dataclasses.dataclass(frozen=True)
class Pace:
    """Measured seconds and sizes of one member.

    drawn_s, scored_s: per photo of a training and of a scoring pass, decoding included.
    shown_s, asked_s: per photo of the few that a graph gets at a time: on this device while crops and temperatures are chosen,
        and where the graph answers the test photos: on this device, or by ONNX Runtime on all cores.
    product_s, pass_s: per photo, of a product of its embedding with all classes, and of an exponential of all its logits.
    feature_s: per photo, of the features of a frozen backbone; 0 if it is trained.
    parameters: of the network. peak_bytes: resident memory of this process at its largest.
    measured_s: seconds of everything above, without the start of the process.
    """

    drawn_s: float
    scored_s: float
    shown_s: float
    asked_s: float
    product_s: float
    pass_s: float
    feature_s: float
    parameters: int
    peak_bytes: int
    measured_s: float


def pace(recipe: Recipe, *, data: Path, member: int, out: Path) -> Pace:
    """The pace of a member on the photos of a data version. Nothing that it learns is kept."""
    own = recipe.of(member)
    settings = dataclasses.replace(own.train, epochs=1, balanced_epochs=0, best_epochs=0, state="", compile=False)
    recipe = dataclasses.replace(own, train=settings, meta=dataclasses.replace(own.meta, photos="", replay=""))
    job = Job(data=data, recipe=recipe, member=0, out=out)
    set_threads(settings.threads)
    began = time.perf_counter()
    manifest = with_selection_photos(read_manifest(data), recipe.proof.photos)
    rows, held_out = some(*split_rows(manifest, fold=None, num_folds=0), batch=settings.batch_size)
    network = to_device(build_network(job.network, num_classes=len(manifest.classes)))
    inputs, feature_s = inputs_of(job, network, manifest, rows)
    drawn_s = time_steps(job, network, inputs, manifest, rows)
    shown, _ = inputs_of(job, network, manifest, held_out)
    ids, target = manifest.id[held_out], manifest.target[held_out]
    scored_s = seconds(lambda: score(network, shown, ids=ids, target=target)) / max(len(held_out), 1)
    shown_s = time_few(network, side=job.network.size)
    product_s, pass_s = time_classes(len(manifest.classes))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    on_cpu = network.mean.device.type == "cpu"
    asked_s = (
        time_graph(Trained(network.eval(), job.network, manifest.classes, 0.0), recipe, out) if on_cpu else shown_s
    )
    return Pace(drawn_s, scored_s, shown_s, asked_s, product_s, pass_s, feature_s, count_parameters(network), peak,
                time.perf_counter() - began)  # fmt: skip


def some(
    rows: NDArray[np.int64], held_out: NDArray[np.int64], *, batch: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Some of the photos to train on and to score, from all over the version: ids are hashes, so the first are any."""
    return rows[: (STEPS + 1) * batch], held_out[: SCORED * EVAL_BATCH["cpu"]]


def inputs_of(job: Job, network: Network, manifest: Manifest, rows: NDArray[np.int64]) -> tuple[Inputs, float]:
    """Inputs as a training has them, and the seconds per photo of features of a frozen backbone, which are computed here."""
    side, device = job.recipe.export.input_size, network.mean.device
    photos = Photos(manifest, rows, side=side, device=device, loaders=job.train.loaders, is_reduced=True,
                    on_device=job.train.decode == "device")  # fmt: skip
    if job.train.backbone_lr_scale:
        return Views(photos, network, size=job.network.size, augment=job.own.augment), 0.0
    began = time.perf_counter()
    features = extract(photos, network, size=job.network.size, augment=job.own.augment.of_features)
    return features, (time.perf_counter() - began) / max(len(rows), 1)


def time_steps(job: Job, network: Network, inputs: Inputs, manifest: Manifest, rows: NDArray[np.int64]) -> float:
    """Seconds per photo of a few training steps; the first, which makes the optimiser's state, does not count."""
    loss = make_loss(job, manifest, rows).to(network.mean.device)
    target, draws = manifest.target[rows], len(rows)
    settings = dataclasses.replace(job.train, epoch_length=0)  # these photos, which may not fill a batch
    sampler = Sampler(target=target, score=manifest.score[rows], settings=settings, seed=job.seed)
    order = np.array_split(sampler.draw(0), max(min(STEPS + 1, draws // 2), 1))
    weights = make_sample_weights(settings, manifest, rows, clean=job.recipe.clean)
    meta = Constant(loss)
    state = initial_state(network, loss, inputs, ids=manifest.id[rows], sample_weights=weights, meta=meta,
                          sampler=sampler, steps=len(order))  # fmt: skip
    loss.start_epoch(0)
    ends, silent = [time.perf_counter()], Progress("steps", None, say=lambda _: None, show=lambda _: None)
    train_epoch(state, inputs, order, sampler=sampler, progress=silent,
                after_step=lambda _: ends.append(time.perf_counter()))  # fmt: skip
    ends.append(time.perf_counter())
    first = min(1, len(ends) - 2)
    return (ends[-1] - ends[first]) / sum(len(each) for each in order[first:])


@torch.inference_mode()
def time_few(network: Network, *, side: int) -> float:
    """Seconds per photo of the whole network for FEW photos at a time, with the ranking of all classes."""
    views = torch.rand(FEW, 3, side, side, device=network.mean.device)
    return (
        min(seconds(lambda: network.eval()(views).logits.softmax(1).topk(1).indices.cpu()) for _ in range(STEPS)) / FEW
    )


def time_graph(trained: Trained, recipe: Recipe, out: Path) -> float:
    """Seconds per photo of the member's own graph of one crop, which ONNX Runtime answers for FEW photos on all cores.

    They are the processor time of one core over the number of cores, as threads wait for each other on a busy machine.
    """
    side, path = recipe.export.input_size, out / "pace.onnx"
    write_onnx(DeployGraph([trained], settings=dataclasses.replace(recipe.export, crops=1)), path, input_size=side,
               metadata={})  # fmt: skip
    return time_each([path], batch=FEW, rounds=STEPS)[0] / 1000 / machine.cores()


def time_classes(num_classes: int) -> tuple[float, float]:
    """Seconds per photo of one product with all classes, and of one exponential of all logits, on the CPU."""
    embedding = (
        torch.randn(ROWS, EMBEDDING) / EMBEDDING**0.5
    )  # for usual logits; exponentials that underflow take ten times as long
    rows = torch.randn(num_classes, EMBEDDING)
    logits = embedding @ rows.T
    product_s = min(seconds(lambda: embedding @ rows.T) for _ in range(STEPS))
    pass_s = min(seconds(lambda: logits.logsumexp(1)) for _ in range(STEPS))
    return product_s / ROWS, pass_s / ROWS


def seconds(work: Callable[[], object]) -> float:
    """Seconds that a function takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    """Command line that measures one member."""
    parser = parser_for("data recipe out", description="Measure the pace of a member on this machine.")
    parser.add_argument("--member", type=int, default=0, help="number of the member in the recipe, from 0")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    found = pace(read_recipe(args.recipe), data=args.data, member=args.member, out=args.out)
    (args.out / "pace.json").write_text(json.dumps(dataclasses.asdict(found)), encoding="utf-8")


if __name__ == "__main__":
    run(main)
