"""The names of timm's models as its source defines them. An import of timm takes seconds, and a misspelt name is told at once."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from models.errors import ConfigError
from models.recipe.config import Recipe

ENTRY = re.compile(r"^@register_model\s*\n(?:@.*\n)*def (\w+)\(", re.M)


def check_backbones(recipe: Recipe) -> None:
    """Raises ConfigError for a backbone that timm does not have. Training checks the others again, with timm itself."""
    source = _source()
    for number, member in enumerate(recipe.members):
        arch = member.backbone.split(".")[0]  # what follows names weights
        if source and not re.search(rf"\b{re.escape(arch)}\b", source):
            raise unknown_backbone(member.backbone, ENTRY.findall(source), table=f"members.{number}")


def unknown_backbone(name: str, known: Iterable[str], *, table: str = "members") -> ConfigError:
    """The error about a backbone that timm does not have, with the names nearest to it."""
    near = difflib.get_close_matches(name, sorted(known), n=3)
    hint = f" (did you mean {', '.join(near)}?)" if near else "; timm.list_models() lists the models"
    return ConfigError(f"{table}.backbone: timm {version('timm')} has no model {name!r}{hint}")


def _source() -> str:
    """The source of timm's models, found without an import."""
    spec = find_spec("timm")
    folders = spec.submodule_search_locations if spec else None
    return "\n".join(
        path.read_text(encoding="utf-8") for folder in folders or () for path in Path(folder, "models").glob("*.py")
    )
