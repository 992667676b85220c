"""The lineage of a model version: one file, the same to the byte in the version's directory and in the registry."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LINEAGE = "lineage.json"
EARLIER = (
    "record.json"  # what earlier releases called it; they indented it, and registered it without `version` and `files`
)


def canonical(facts: Mapping[str, Any]) -> bytes:
    """JSON in UTF-8 of which there is one for the same facts: keys sorted, no spaces, no NaN, one line feed at the end."""
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode()


def lineage_file(folder: Path) -> Path:
    """The file in the directory of a version."""
    earlier = folder / EARLIER
    return earlier if earlier.exists() else folder / LINEAGE
