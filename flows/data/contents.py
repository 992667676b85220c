"""Contents of a data version for people: photos per class and split, and the photos that were left out or refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from flows.data.near import NAME, PAIRS, read_pairs
from flows.data.objects import is_shard
from flows.data.versions import DataVersions
from models.data.manifest import CHECKED, NEAR, OUTCOMES, count_tables, outcomes, read_table_file

REASONS = {  # of photos that are left out, by their decision
    "conflict": "came with several labels",
    "near-test": "is a near-duplicate of a test photo, which no network may learn",
    "near-train": "is a test photo and a near-duplicate of a photo to learn",
    CHECKED: "shows none of the products, a person says",
}
BY_CLEANING = "its label is probably wrong, cleaning says"


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


def excluded(files: Mapping[str, Path]) -> pa.Table:
    """Photos that are neither learnt nor measured and rows that were refused, with the reason; a row has no id."""
    labels, index, refused = read(files, "labels"), read(files, "index"), quarantined(files)
    is_out = pc.invert(labels["kept"])
    photos = _left_out(labels.filter(is_out))
    for name in ("path", "source"):
        photos = photos.append_column(name, index[name].filter(is_out))
    rows = pa.table({name: refused[name] for name in ("label", "path", "source")} | _refusals(refused))
    return pa.concat_tables([photos, rows], promote_options="default").select(
        ["outcome", "reason", "id", "label", "split", "path", "source", "score", "scored_by"]
    )


def reasons(files: Mapping[str, Path]) -> pa.Table:
    """Numbers of excluded photos and rows by outcome and reason without its details in brackets, the most frequent first."""
    labels, refused = read(files, "labels"), quarantined(files)
    photos = _left_out(labels.filter(pc.invert(labels["kept"])))
    rows = pa.table(_refusals(refused))
    rows = rows.set_column(1, "reason", pc.replace_substring_regex(rows["reason"], r" \(.*", ""))
    both = pa.concat_tables([photos.select(["outcome", "reason"]), rows])
    found = both.group_by(["outcome", "reason"]).aggregate([([], "count_all")])
    found = found.rename_columns(["outcome", "reason", "number"])
    return found.sort_by([("number", "descending"), ("outcome", "ascending"), ("reason", "ascending")])


def _left_out(labels: pa.Table) -> pa.Table:
    """These photos, all of which are left out, with outcome and reason; `label` is the given one."""
    outcome = pa.array(OUTCOMES, pa.string()).take(pa.array(outcomes(labels)))
    at = pc.index_in(labels["decision"], value_set=pa.array(list(REASONS), pa.string()))
    reason = pc.fill_null(pc.take(pa.array(list(REASONS.values()), pa.string()), at), BY_CLEANING)
    kept = {name: labels[name] for name in ("id", "split", "score", "scored_by")}
    return pa.table({"outcome": outcome, "reason": reason, "label": labels["given_label"], **kept})


def _refusals(refused: pa.Table) -> dict[str, pa.ChunkedArray]:
    """Outcome and reason of refused rows."""
    reason = pc.binary_join_element_wise(refused["field"], refused["reason"], ": ")
    return {"outcome": pa.chunked_array([pa.repeat("quarantined", len(refused))]), "reason": reason}


def quarantined(files: Mapping[str, Path]) -> pa.Table:
    """Refused rows, with the field at fault and the reason."""
    return read(files, "quarantine")
