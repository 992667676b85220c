"""Find the weights that the members of a recipe start from: `python -m models.training.weights --recipe FILE --out DIR`.

Runs before anything else of a retraining. It downloads timm's weights where they are not in the cache, and writes
recipe.json to --out: the recipe with the full name of each backbone and the hash of its weights, which every training of the
run then demands, on whichever machine.
"""

from __future__ import annotations

import dataclasses
import json

from models.errors import ConfigError, WeightsMismatch
from models.networks.network import start_file
from models.networks.pretrained import full_name, settings_of
from models.recipe.config import Member, Recipe, content, to_dict
from models.recipe.learning import PRETRAINED, Distil
from models.recipe.tables import numbered
from models.training.command import log_progress, parser_for, read_recipe, run


def resolve(recipe: Recipe) -> Recipe:
    """The recipe with the full name and the hash of the weights of every member that does not start from random ones.

    Raises:
        ConfigError, WeightsMismatch: weights are not available, or are not those that the recipe demands.
    """
    members = []
    for number, member in enumerate(recipe.members):
        try:
            members.append(resolved(member))
        except (ConfigError, WeightsMismatch) as error:
            raise type(error)(numbered(str(error), Member, "members", number)) from None
    return dataclasses.replace(recipe, members=tuple(members), distil=_student(recipe.distil))


def resolved(member: Member) -> Member:
    """The member with the full name and the hash of its weights; of a file that cannot be read, training tells why."""
    if not member.weights:
        return member
    path = start_file(member)
    backbone = full_name(settings_of(member.backbone)) if member.weights == PRETRAINED else member.backbone
    return dataclasses.replace(member, backbone=backbone, weights_sha256=content(str(path)))


def _student(distil: Distil) -> Distil:
    """The student with the full name and the hash of its weights, if it starts from any."""
    if not distil.backbone or not distil.weights:
        return distil
    try:
        found = resolved(distil.member)
    except (ConfigError, WeightsMismatch) as error:
        raise type(error)(str(error).replace("members.", "distil.", 1)) from None
    return dataclasses.replace(distil, backbone=found.backbone, weights_sha256=found.weights_sha256)


def main() -> None:
    """Command line that resolves one recipe."""
    parser = parser_for("recipe out", description="Find the weights that the members of a recipe start from.")
    args = parser.parse_args()
    log_progress()
    args.out.mkdir(parents=True, exist_ok=True)
    found = resolve(read_recipe(args.recipe))
    (args.out / "recipe.json").write_text(json.dumps(to_dict(found)), encoding="utf-8")


if __name__ == "__main__":
    run(main)
