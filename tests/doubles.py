"""Data versions with near-duplicates across the test split, and with photos that came with several labels."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa

from flows.data.near import PAIRS, write_pairs
from flows.delivery.build import build_version
from models.data.manifest import read_manifest, write_labels
from tests.deliveries import deliver, photo

MILK, SOAP, CLAIMED = "Alma Milk", "Brio Soap", "Only Claimed"
SIDE = 32


def version_with_doubles(source: Path, folder: Path) -> None:
    """Writes a version of two products to `folder`.

    Two photos of MILK came with a second label: SOAP, and CLAIMED, which no other photo has. Two train photos are left out
    as near-duplicates of test photos, the first of them with its partner.
    """
    deliver(source, {MILK: 8, SOAP: 8}, side=SIDE)
    for seed, label in enumerate((SOAP, CLAIMED)):
        (source / label).mkdir(exist_ok=True)
        (source / label / f"again {seed}.png").write_bytes(photo(seed, side=SIDE))
    build_version(source, base=None, out=folder)
    manifest = read_manifest(folder)
    train, test = (np.flatnonzero((manifest.split == split) & (manifest.decision == "")) for split in ("train", "test"))
    decision, kept = manifest.decision.copy(), manifest.kept.copy()
    decision[train[:2]], kept[train[:2]] = "near-test", False
    (folder / "labels.parquet").unlink()
    write_labels(folder, dataclasses.replace(manifest, decision=decision, kept=kept))
    pair = [[manifest.id[train[0]]], [manifest.id[test[0]]], ["near-test"], [3.5], [0.25]]
    columns = [pa.array(each, kind.type) for each, kind in zip(pair, PAIRS, strict=True)]
    write_pairs(folder, pa.table(columns, schema=PAIRS))
