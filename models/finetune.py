"""Train on at a larger size: `python -m models.finetune --data DIR --recipe FILE --network FILE --member 0 --out DIR`.

Training at a small size is cheap, and a few epochs at a larger one recover what it hides (the AliProducts report, arXiv
2106.10683, section 2.5: 256, then 384 pixels). Position embeddings are resized; `finetune.learn` says what may still move: all, or
the norms and the head, whose statistics are what another size upsets (FixRes: Touvron et al., NeurIPS 2019, arXiv 1906.06423),
or the head alone. The loop, its checkpoints and what it leaves in --out are those of `models.train`; besides:
    finetune.json    what it gained on validation photos; unless it did, network and scores are those that it started from
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
from pathlib import Path

import numpy as np

from models import distributed
from models.command import log_progress, run
from models.config import from_dict
from models.data.manifest import Manifest, read_manifest
from models.evidence import CONFIDENCE, Gain, gain
from models.job import Job
from models.network import Network, set_size
from models.scores import Scores, read_scores
from models.train import load_network, train

log = logging.getLogger(__name__)


def finetune(job: Job) -> None:
    """Trains the network of job.start on, and keeps what that gave if it is better."""
    assert job.start is not None
    network = load_network(job.start).network
    set_size(network.backbone, job.network)
    if job.recipe.finetune.learn == "norms":
        still_but_norms(network)
    train(job, network)
    if distributed.rank() == 0:
        decide(job, read_manifest(job.data))


def still_but_norms(network: Network) -> None:
    """Leaves of the backbone only its norms to learn. They are known by the names of their classes: timm has two dozen."""
    network.backbone.requires_grad_(False)
    for module in network.backbone.modules():
        if "norm" in type(module).__name__.lower():
            module.requires_grad_(True)


def decide(job: Job, manifest: Manifest) -> None:
    """Writes finetune.json, and puts the network that it started from into the place of one that is not better."""
    assert job.start is not None
    before = job.start.parent
    found = worth(read_scores(before / "scores.parquet"), read_scores(job.out / "scores.parquet"), manifest)
    log.info("at %d px: mean-class accuracy %.3f, before %.3f, on %d validation photos: %s", job.network.size, found.after,
             found.before, found.photos, "kept" if found.stays else "not kept")  # fmt: skip
    evidence = {"size": job.network.size, "gain": found.to_dict()}
    (job.out / "finetune.json").write_text(json.dumps(evidence, indent=1, allow_nan=False), encoding="utf-8")
    for name in () if found.stays else ("network.pt", "scores.parquet"):
        shutil.copyfile(before / name, job.out / name)


def worth(before: Scores, after: Scores, manifest: Manifest) -> Gain:
    """What the later scores gain over the earlier on the validation photos of both."""
    validation = manifest.id[manifest.kept & (manifest.split == "val") & (manifest.target >= 0)].astype(str)
    old, new = (scores.select(np.isin(scores.id, validation)) for scores in (before, after))
    return gain(old.hit, new.hit, new.target, confidence=CONFIDENCE)


def main() -> None:
    """The command line of one fine-tuning."""
    parser = argparse.ArgumentParser(description="Train a network on at a larger size.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--recipe", type=Path, required=True, help="a resolved recipe, as JSON")
    parser.add_argument("--network", type=Path, required=True, help="network.pt of a training, in its folder")
    parser.add_argument("--member", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    recipe = from_dict(json.loads(args.recipe.read_text(encoding="utf-8")))
    with distributed.workers():
        if distributed.rank() == 0:
            log_progress()
        finetune(Job(data=args.data, recipe=recipe, member=args.member, start=args.network, out=args.out))


if __name__ == "__main__":
    run(main)
