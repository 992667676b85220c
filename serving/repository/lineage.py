"""Lineage file of a model version, byte for byte the same in the version's directory and in the registry."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LINEAGE = "lineage.json"
# Name in earlier releases, which indented the file and registered it without `version` and `files`.
EARLIER = "record.json"


def canonical(facts: Mapping[str, Any]) -> bytes:
    """Canonical JSON of the facts in UTF-8: sorted keys, no spaces, no NaN, one line feed at the end."""
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode()


def lineage_file(folder: Path) -> Path:
    """Path of the lineage file in the directory of a version."""
    earlier = folder / EARLIER
    return earlier if earlier.exists() else folder / LINEAGE
