"""Train one network: `python -m models.training.train --data DIR --recipe FILE.json --member 0 --out DIR`.

Several workers, started by `torchrun --nproc_per_node N -m models.training.train ...`, give the same result as one. The
training loop is in models.training.epochs. Files written to --out:
    network.pt       trained network with its classes
    scores.parquet   out-of-sample scores: of validation and test photos, or with --fold of the fold and validation photos
    embeddings.npy   only with --fold and a cleaning rule that compares photos: (N, 512) float16, in the order of
                     scores.parquet; a frozen backbone writes features.npy (N, d) instead, which are the same for all folds
    samples.parquet  state that the loss keeps per photo, if any
    metrics.jsonl    one object per epoch
    checkpoint.pt    only while it runs: a killed training resumes from it, also in mid-epoch, bit for bit on a CPU
"""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor

from models import distributed
from models.data.confusion import read_confusion
from models.data.manifest import Manifest, read_manifest
from models.data.photos import Photos
from models.data.samplers import Sampler
from models.data.trusted import selection_photos, trusted_rows, with_selection_photos
from models.errors import ManifestError
from models.evaluation.scores import write_scores
from models.losses import Loss, Samples, asymmetry_ratio, build_loss, max_noise
from models.losses.correction import Correction
from models.networks.inputs import Features, Inputs, Views
from models.networks.margins import margin_of
from models.networks.network import Network, best_device, build_network, count_parameters, set_threads
from models.networks.predict import answers, embeddings, score
from models.recipe.config import Member, from_dict, to_dict
from models.training import checkpoint
from models.training.classifiers import set_classifier
from models.training.command import run, with_features
from models.training.epochs import fit
from models.training.features import frozen_features
from models.training.job import Job, require_mixable, run_job, split_rows
from models.training.meta import Adjuster, Constant, Replay
from models.training.parallel import state_of
from models.training.sample_weights import make_sample_weights

log = logging.getLogger(__name__)


def train(job: Job, network: Network | None = None) -> None:
    """Trains the network of a job, or resumes a killed run.

    Args:
        network: network to fine-tune, resized to the size of this training; None: a new one.
    """
    set_threads(job.train.threads)
    torch.manual_seed(job.seed)
    manifest = with_selection_photos(read_manifest(job.data), job.recipe.proof.photos)
    rows, held_out = split_rows(manifest, fold=job.fold, num_folds=job.recipe.clean.folds)
    trusted = trusted_rows(job.recipe.meta.photos, manifest)
    rows = np.setdiff1d(rows, trusted)
    if len(rows) < 2:
        raise ManifestError(
            f"{job.data / 'labels.parquet'}: {len(rows)} photos are kept for training, but 2 are needed; ingest more photos"
        )
    network = to_device(network or build_network(job.network, num_classes=len(manifest.classes)))
    log.info("%s at %d px: %d photos, %d classes, %d parameters on %s", job.network.backbone, job.network.size, len(rows),
             len(manifest.classes), count_parameters(network), network.mean.device)  # fmt: skip
    loss = make_loss(job, manifest, rows).to(network.mean.device)
    inputs = make_inputs(job, network, manifest, rows)

    def ask() -> tuple[Tensor, float]:
        log_p, _ = answers(network, inputs, target=manifest.target[rows])
        return log_p, validation_accuracy(job, network, manifest)

    sampler = Sampler(target=manifest.target[rows], score=manifest.score[rows], settings=job.train, seed=job.seed)
    sample_weights = make_sample_weights(job.train, manifest, rows, clean=job.recipe.clean)
    fit(network, loss, inputs, ids=manifest.id[rows], sampler=sampler, sample_weights=sample_weights, out=job.out,
        key=job.key, ask=ask, meta=make_meta(job, network, loss, manifest, trusted),
        epochs_before=job.epochs_before)  # fmt: skip
    held_out_inputs = make_inputs(job, network, manifest, held_out)
    target = manifest.target if job.fold is None else manifest.given_target
    scores = score(network, held_out_inputs, ids=manifest.id[held_out], target=target[held_out])
    if job.fold is not None and job.recipe.clean.asks_embeddings:
        save_embeddings(job, network, manifest, held_out, inputs=held_out_inputs)
    if distributed.rank() == 0:
        write_scores(scores, job.out / "scores.parquet")
        if loss.memory is not None:
            loss.memory.write(job.out / "samples.parquet", params=job.own.loss.params)
    save_network(job.out / "network.pt", network, member=job.network, classes=manifest.classes)
    if distributed.rank() == 0:
        (job.out / "checkpoint.pt").unlink(missing_ok=True)


def save_embeddings(
    job: Job, network: Network, manifest: Manifest, held_out: NDArray[np.int64], *, inputs: Inputs
) -> None:
    """Saves the vectors by which cleaning compares photos. Every worker has to call this.

    Each fold has its own head, but features of a frozen backbone are comparable across folds, so these are preferred. Those
    of the recipe's other frozen members are computed now, if no training did yet, and go to features-1.npy and so on.
    """
    if not isinstance(inputs, Features):
        if distributed.rank() == 0:
            np.save(job.out / "embeddings.npy", embeddings(network, inputs).half().numpy())
        return
    views = [inputs, *(other_features(job, number, manifest, held_out) for number in job.recipe.other_encoders)]
    if distributed.rank() == 0:
        for number, seen in enumerate(views):
            name = f"features-{number}.npy" if number else "features.npy"
            np.save(job.out / name, seen.views.mean(0).half().cpu().numpy())


def other_features(job: Job, number: int, manifest: Manifest, rows: NDArray[np.int64]) -> Features:
    """Features of photos by the frozen backbone of another member."""
    member = job.recipe.members[number]
    network = to_device(build_network(member, num_classes=len(manifest.classes)))
    return frozen_features(manifest, rows, network, member=member, side=job.recipe.export.input_size,
                           folder=job.features, augment=job.own.augment.of_features, loaders=job.train.loaders,
                           on_device=job.recipe.of(number).train.decode == "device")  # fmt: skip


def to_device(network: Network) -> Network:
    """The network on the best device. On GPUs, batch norm takes its statistics over the parts of all workers.

    Convolutions are faster if the channels of a pixel lie side by side.
    """
    network.to(best_device(), memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
    if distributed.world() > 1 and network.mean.device.type == "cuda":  # on CPUs, torch has no synchronised batch norm
        timm.layers.convert_sync_batchnorm(network)
    return network


def make_loss(job: Job, manifest: Manifest, rows: NDArray[np.int64]) -> Loss:
    """The member's loss, initialised with the training photos."""
    settings = job.own.loss
    loss = build_loss(settings.name, num_classes=len(manifest.classes), **settings.params)
    require_mixable(job.own.augment, loss)
    log.info("loss %s: %s", settings.name, tolerance(loss))
    loss.margin = margin_of(job.network)
    if job.recipe.clean.correct and (noise := read_confusion(job.data, classes=manifest.classes)):
        log.info("forward correction: %.1f%% of the labels are estimated to be wrong, in %d pairs of classes",
                 100 * noise.rate, len(noise.true))  # fmt: skip
        loss.correction = Correction(noise)
    loss.begin(Samples(id=manifest.id[rows], target=manifest.target[rows], classes=manifest.classes))
    if job.state and loss.memory is not None:
        log.info("train.state %s: %s", job.state, loss.memory.carry(Path(job.state)))
    return loss


def make_meta(job: Job, network: Network, loss: Loss, manifest: Manifest, trusted: NDArray[np.int64]) -> Constant:
    """Handler of the loss's hyperparameters during training, as [meta] asks."""
    settings = job.recipe.meta
    if settings.replay:
        return Replay(loss, Path(settings.replay))
    if not settings.photos:
        return Constant(loss)
    log.info("meta: learning %s of the loss from %d trusted photos", ", ".join(loss.learnable()), len(trusted))
    inputs = make_inputs(job, network, manifest, trusted)
    return Adjuster(loss, settings, network=network, inputs=inputs, target=manifest.target[trusted], seed=job.seed)


def tolerance(loss: Loss) -> str:
    """Noise rates that a loss tolerates in theory at its number of classes, as a text for the log."""
    ratio, classes = asymmetry_ratio(loss), loss.num_classes
    symmetric, pair = (max_noise(loss, classes, kind) for kind in ("symmetric", "pair"))
    promise = f"tolerates {symmetric:.1%} symmetric and {pair:.1%} pair noise, in theory"
    if not symmetric:
        promise = "there is no noise rate that it tolerates in theory: with time, it fits wrong labels too"
    return f"asymmetry ratio {ratio:.3g}; at {classes} classes {promise}"


def make_inputs(job: Job, network: Network, manifest: Manifest, rows: NDArray[np.int64]) -> Inputs:
    """Random views of photos, or their fixed features if the backbone is frozen."""
    side, on_device = job.recipe.export.input_size, job.train.decode == "device"
    if job.train.backbone_lr_scale == 0:
        folder = job.features if job.start is None else None  # a fine-tuned backbone may be another one
        return frozen_features(manifest, rows, network, member=job.network, side=side, folder=folder,
                               augment=job.own.augment.of_features, loaders=job.train.loaders,
                               on_device=on_device)  # fmt: skip
    photos = Photos(manifest, rows, side=side, device=network.mean.device, loaders=job.train.loaders, is_reduced=True,
                    on_device=on_device)  # fmt: skip
    return Views(photos, network, size=job.network.size, augment=job.own.augment)


def validation_accuracy(job: Job, network: Network, manifest: Manifest) -> float:
    """Share of the selection photos that the network recognises; NaN if there are none."""
    rows = np.flatnonzero(selection_photos(manifest))
    _, hits = answers(network, make_inputs(job, network, manifest, rows), target=manifest.target[rows])
    return float(hits.double().mean())


def save_network(path: Path, network: Network, *, member: Member, classes: list[str], tau: float = 0.0) -> None:
    """Saves a network with everything that is needed to build it again. Every worker has to call this."""
    content = {"member": to_dict(member), "classes": list(classes), "tau": tau, "state": state_of(network)}
    if distributed.rank() == 0:
        checkpoint.save(path, content)


@dataclass(frozen=True)
class Trained:
    """A network written by `save_network`, in evaluation mode; tau is not yet applied to its classifier.

    The file of member.weights, from which it started, need not exist any more. Training gives a classifier without a
    bias; some re-balancing methods add one.
    """

    network: Network
    member: Member
    classes: list[str]
    tau: float


def load_network(path: Path) -> Trained:
    """Reads a file of `save_network`."""
    content = checkpoint.load(path)
    member = from_dict({"name": "", "members": [content["member"]]}).members[0]
    network = build_network(dataclasses.replace(member, weights=""), num_classes=len(content["classes"]))
    state = content["state"]
    set_classifier(network.head, state["head.classifier.weight"], state.get("head.classifier.bias"))
    network.load_state_dict(state)
    return Trained(network.eval(), member, content["classes"], content["tau"])


def main() -> None:
    """Command line that trains one network."""
    parser = with_features("data recipe out", description="Train one network of a recipe on a data version.")
    parser.add_argument("--member", type=int, default=0, help="number of the member in the recipe, from 0")
    parser.add_argument("--fold", type=int, help="hold out this fold of the training photos and score it, for cleaning")
    args = parser.parse_args()
    run_job(args, train, fold=args.fold)


if __name__ == "__main__":
    run(main)
