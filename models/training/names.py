"""Check the vectors of names that a recipe brings: `python -m models.training.names --data DIR --recipe FILE.json`.

Runs before anything is trained, and only for recipes with `members.N.name_vectors`: cleaning reads the files hours later.
"""

from __future__ import annotations

from pathlib import Path

from models.data.manifest import read_manifest
from models.data.name_vectors import read_name_vectors
from models.data.trusted import with_selection_photos
from models.errors import ConfigError
from models.networks.network import feature_width
from models.recipe.config import Recipe
from models.training.command import parser_for, read_recipe, run


def check_names(recipe: Recipe, *, data: Path) -> None:
    """Reads the file of every member that names one.

    Raises:
        ConfigError: a file cannot be used; or two are of one backbone.
    """
    classes = with_selection_photos(read_manifest(data), recipe.proof.photos).classes
    used = recipe.name_vectors
    for number, member in enumerate(recipe.members):
        if not member.name_vectors:
            continue
        key = f"members.{number}.name_vectors"
        if member.name_vectors not in used:
            raise ConfigError(
                f"{key}: {member.name_vectors}, but an earlier member with the same backbone, weights and size names another file; "
                "leave one of them out"
            )
        read_name_vectors(Path(member.name_vectors), classes, key=key, width=feature_width(member))


def main() -> None:
    """Command line of the check; silent if cleaning can use the files."""
    args = parser_for("data recipe", description="Check the vectors of names that a recipe brings.").parse_args()
    check_names(read_recipe(args.recipe), data=args.data)


if __name__ == "__main__":
    run(main)
