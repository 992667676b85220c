"""Fine-tune a network at a larger size:
`python -m models.training.finetune --data DIR --recipe FILE --network FILE --member 0 --out DIR`.

Training at a small size is cheap, and a few epochs at a larger size recover the detail that it misses (the AliProducts
report, arXiv 2106.10683, section 2.5: 256, then 384 pixels). Position embeddings are resized. `finetune.learn` selects
the trainable parameters: all; the norms and the head, whose statistics depend most on the size (FixRes: Touvron et al.,
NeurIPS 2019, arXiv 1906.06423); or only the head. The loop, its checkpoints and its output are those of
`models.training.train`.
"""

from __future__ import annotations

from models.networks.margins import angular
from models.networks.network import Network, set_size
from models.training.command import run, with_features
from models.training.job import Job, run_job
from models.training.train import load_network, train


def finetune(job: Job) -> None:
    """Fine-tunes the network of job.start, or resumes a killed run."""
    assert job.start is not None
    network = load_network(job.start).network
    set_size(network.backbone, job.network)
    if job.network.head == "arcface":
        network.head.classifier = angular(network.head.classifier.weight, scale=job.network.scale)
    if job.recipe.finetune.learn == "norms":
        freeze_all_but_norms(network)
    train(job, network)


def freeze_all_but_norms(network: Network) -> None:
    """Freezes the backbone except its norm layers, recognised by class name, as timm has two dozen of them."""
    network.backbone.requires_grad_(False)
    for module in network.backbone.modules():
        if "norm" in type(module).__name__.lower():
            module.requires_grad_(True)


def main() -> None:
    """Command line that fine-tunes one network."""
    parser = with_features("data recipe network out", description="Fine-tune a trained network at a larger size.")
    parser.add_argument("--member", type=int, default=0, help="number of the member in the recipe, from 0")
    args = parser.parse_args()
    run_job(args, finetune, start=args.network)


if __name__ == "__main__":
    run(main)
