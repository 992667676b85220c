"""Train on at a larger size: `python -m models.training.finetune --data DIR --recipe FILE --network FILE --member 0 --out DIR`.

Training at a small size is cheap, and a few epochs at a larger one recover what it hides (the AliProducts report, arXiv
2106.10683, section 2.5: 256, then 384 pixels). Position embeddings are resized; `finetune.learn` says what may still move: all, or
the norms and the head, whose statistics are what another size upsets (FixRes: Touvron et al., NeurIPS 2019, arXiv 1906.06423),
or the head alone. The loop, its checkpoints and what it leaves in --out are those of `models.training.train`.
"""

from __future__ import annotations

from models import distributed
from models.networks.margins import angular
from models.networks.network import Network, set_size
from models.training.command import log_progress, parser_for, read_recipe, run
from models.training.job import Job
from models.training.train import load_network, train


def finetune(job: Job) -> None:
    """Trains the network of job.start on, or continues where a killed run left it."""
    assert job.start is not None
    network = load_network(job.start).network
    set_size(network.backbone, job.network)
    if job.network.head == "arcface":
        network.head.classifier = angular(network.head.classifier.weight, scale=job.network.scale)
    if job.recipe.finetune.learn == "norms":
        still_but_norms(network)
    train(job, network)


def still_but_norms(network: Network) -> None:
    """Leaves of the backbone only its norms to learn. They are known by the names of their classes: timm has two dozen."""
    network.backbone.requires_grad_(False)
    for module in network.backbone.modules():
        if "norm" in type(module).__name__.lower():
            module.requires_grad_(True)


def main() -> None:
    """The command line of one fine-tuning."""
    parser = parser_for("data recipe network out", description="Train a network on at a larger size.")
    parser.add_argument("--member", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    recipe = read_recipe(args.recipe)
    with distributed.workers():
        if distributed.rank() == 0:
            log_progress()
        finetune(Job(data=args.data, recipe=recipe, member=args.member, start=args.network, out=args.out))


if __name__ == "__main__":
    run(main)
