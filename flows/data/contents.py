"""Contents of a data version for people: photos per class and split, and the photos that were left out or refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from flows.data.near import NAME, PAIRS, read_pairs
from flows.data.objects import is_shard
from flows.data.versions import DataVersions
from models.data.manifest import NEAR, OUTCOMES, count_tables, outcomes, read_table_file


def files_of(versions: DataVersions, text: str) -> dict[str, Path]:
    """Paths in the cache of the files of a version other than shards, verified, by name (`text` as for `resolve`)."""
    with versions.store.objects() as objects:
        found = objects.listing(versions.resolve(text)).files
        return {name: objects.get(md5, name=name) for name, md5 in found.items() if not is_shard(name)}


def read(files: Mapping[str, Path], name: str) -> pa.Table:
    """Table `name` (a key of TABLES) of the version with these files."""
    return read_table_file(files[f"{name}.parquet"], name=name)


def counts(files: Mapping[str, Path]) -> dict[str, int]:
    """Numbers of photos by outcome and split, from the tables and not from what an earlier release wrote down."""
    return count_tables(read(files, "labels"), read(files, "quarantine"))


def near_duplicates(files: Mapping[str, Path]) -> pa.Table:
    """Near-duplicates with labels, splits and paths of both photos. Without partner if an earlier release found them."""
    labels, index = read(files, "labels"), read(files, "index")
    pairs = read_pairs(files[NAME]) if NAME in files else PAIRS.empty_table()
    is_near = pc.is_in(labels["decision"], value_set=pa.array(NEAR))
    is_alone = pc.and_(is_near, pc.invert(pc.is_in(labels["id"], value_set=pairs["id"].combine_chunks())))
    alone = labels.filter(is_alone).select(["id", "decision"])
    pairs = pa.concat_tables([pairs, alone], promote_options="default")
    found = {}
    for prefix, ids in (("", pairs["id"]), ("near_", pairs["near"])):
        rows = pc.index_in(ids, value_set=labels["id"].combine_chunks())
        found[f"{prefix}id"] = ids
        found |= {f"{prefix}{name}": labels[name].take(rows) for name in ("label", "split")}
        found[f"{prefix}path"] = index["path"].take(rows)
    return pa.table({**found, **{name: pairs[name] for name in ("decision", "distance", "difference")}})


def conflicts(files: Mapping[str, Path]) -> pa.Table:
    """Every claim on photos that came with several labels, and the outcome of each photo; a person may have settled it."""
    labels, claims = read(files, "labels"), read(files, "conflicts")
    outcome = pa.array(OUTCOMES).take(pa.array(outcomes(labels)))
    return claims.append_column(
        "outcome", outcome.take(pc.index_in(claims["id"], value_set=labels["id"].combine_chunks()))
    )


def quarantined(files: Mapping[str, Path]) -> pa.Table:
    """Refused rows, with the field at fault and the reason."""
    return read(files, "quarantine")
