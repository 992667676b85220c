"""Claim: cleaning in the flow brings back nearly all that wrong labels cost the same graph.

    python benchmarks/noise_gap.py --data grocery-noisy --manifest fine30 --photos grocery224 --workspace shops \\
        --recipe benchmarks/recipes/three_frozen.toml --keys members.0.weights=mobilenetv2_100_qat.safetensors \\
        members.1.weights=tf_efficientnet_lite0.safetensors members.2.weights=tf_efficientnet_lite2.safetensors

Three retrainings by one recipe: on the right labels without cleaning, on the wrong ones without, and with it. The share is what
cleaning brings back of the accuracy that wrong labels cost: (with - without) / (right - without), by mean-class accuracy of the
graph on the test photos. What was finished before in --workspace is not done again.

Without --data: the drawn products of the demo, of which a quarter of the training labels is wrong, a few epochs; no target.
"""

from __future__ import annotations

import argparse
import csv
import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow.parquet as pq
from distil import ANY, retrained, shop
from figure import figure, header

from flows.sample.deliver import deliver

SHARE = 95  # % of the gap
OFF = "clean.rounds=0"
QUICK = ("train.epochs=4", "export.crops=1")

Row = dict[str, Any]


def main(words: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of manifests; without: drawn products")
    parser.add_argument("--manifest", default="fine30", help="name of the one with wrong labels")
    parser.add_argument("--truth", type=Path, help="manifest of true labels; default DIR/../grocery/manifest.parquet")
    parser.add_argument("--photos", type=Path, help="folder of the photos; default: --data")
    parser.add_argument("--recipe", default="frozen", help="name or file; of drawn products always demo")
    parser.add_argument("--keys", nargs="*", default=[], help="overrides of the recipe, KEY=VALUE")
    parser.add_argument("--workspace", type=Path, help="is kept and continued; without: a temporary one")
    args = parser.parse_args(words)
    header("cleaning in the flow brings back nearly all that wrong labels cost the same graph")
    with TemporaryDirectory() as folder:
        root = args.workspace or Path(folder)
        rows = planted(args) if args.data else sample(Path(folder) / "stock")
        recipe, keys = ([args.recipe], args.keys) if args.data else (["demo"], [*QUICK, *args.keys])
        found = {}
        for what, side, more in (("right labels", 0, [OFF]), ("wrong labels", 1, [OFF]), ("after cleaning", 1, [])):
            name = ("right", "wrong")[side]
            if not (root / name / "data").exists():
                write(root / f"{name} delivery", rows[side])
            workspace = shop(root / name, root / f"{name} delivery")
            report = retrained(workspace, recipe, (*ANY, *keys, *more))
            found[what] = 100 * report["steps"][-1]["mean_class"]
            figure(f"graph of {what}, mean-class accuracy on test photos, %", round(found[what], 2), target="told", met=True,
                   baseline=None)  # fmt: skip
    right, wrong, cleaned = found.values()
    share = 100 * (cleaned - wrong) / (right - wrong) if right != wrong else 0.0
    figure("share of the noise gap recovered, %", round(share, 1), target=f">= {SHARE}" if args.data else "told",
           met=not args.data or share >= SHARE, baseline=0)  # fmt: skip


def planted(args: argparse.Namespace) -> tuple[list[Row], list[Row]]:
    """Rows of the photos of a manifest with their true labels, and with those that it gives; path: of the file."""
    truth = pq.read_table(args.truth or args.data.parent / "grocery" / "manifest.parquet").to_pylist()
    true = {Path(row["path"]).name: row["label"] for row in truth}
    given = pq.read_table(args.data / f"{args.manifest}.parquet").to_pylist()
    given = [
        row | {"path": (args.photos or args.data) / row["path"]} for row in given if Path(row["path"]).name in true
    ]
    return [row | {"label": true[Path(row["path"]).name]} for row in given], given


def sample(folder: Path) -> tuple[list[Row], list[Row]]:
    """The same of drawn products, without other faults."""
    truth = deliver(folder, part="stock").to_pylist()
    with (folder / "manifest.csv").open(encoding="utf-8", newline="") as file:
        rows = [row | {"path": folder / row["path"]} for row in csv.DictReader(file)]
    files = zip(rows, truth, strict=False)  # the last row has no file
    kept = [pair for pair in files if pair[1]["kind"] in ("clean", "flipped")]
    return [row | {"label": fact["true_label"]} for row, fact in kept], [row for row, _ in kept]


def write(folder: Path, rows: Sequence[Row]) -> None:
    """Writes a delivery of copies of the photos."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "manifest.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        for number, row in enumerate(rows):
            name = f"{number}-{Path(row['path']).name}"
            shutil.copyfile(row["path"], folder / name)
            writer.writerow([name, row["label"], row["split"]])


if __name__ == "__main__":
    main()
