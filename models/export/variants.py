"""Variants of one graph:
`python -m models.export.variants --data DIR --recipe FILE --graph DIR [--levels DIR...] --out DIR`.

Variants are fp16 and bf16 for GPUs, int8 for CPUs, and levels: the same networks with other numbers of crops, exported
beforehand. Each is evaluated on the selection photos and timed side by side with the float32 graph. Files written to
--out: variants.json, NAME.onnx for each precision, and the files of an export, for the variant that `export.precision`
names if it is offered, otherwise for the float32 graph.

Several workers (models.distributed) share every pass over photos. The first writes the graphs, and times them while the
others wait.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models import distributed
from models.data.manifest import Manifest, read_manifest
from models.data.photos import Photos
from models.data.trusted import selection_photos, with_selection_photos
from models.evaluation.accuracy import accuracy
from models.export.features import FEATURES, ROWS
from models.export.int8 import write_int8
from models.export.measure import ANSWERS, measure, write_answers
from models.export.patch import external_files, read_metadata, stamp
from models.export.precision import HALVES, write_half, write_rounded
from models.export.session import CPU, CUDA, open_session
from models.export.timing import has_kernels, has_provider, time_each
from models.recipe.config import Export, Recipe
from models.training.command import log_progress, parser_for, read_recipe, run

log = logging.getLogger(__name__)

CALIBRATION_PHOTOS = 128
MEASURED = (ANSWERS, "accuracy.json", ROWS)


@dataclass(frozen=True)
class Variant:
    """A variant of the graph with its figures on the selection photos; shares in [0, 1].

    agreement: share of photos with the same best class as the float32 graph. ms: time per photo in batches of one, on
    one thread or the GPU; fp32_ms: the same of the float32 graph, measured in turns; None if this machine cannot run
    the variant, whose accuracy is then that of a graph with the same rounding.
    """

    name: str
    top1: float
    mean_class: float
    agreement: float
    ms: float | None = None
    fp32_ms: float | None = None
    refused: str = ""  # reason why it is not offered

    @property
    def offered(self) -> bool:
        """True if it may be published."""
        return not self.refused

    def to_dict(self) -> dict[str, object]:
        """Content for JSON; None for NaN."""
        plain = {key: round(value, 6) if isinstance(value, float) else value
                 for key, value in dataclasses.asdict(self).items()}  # fmt: skip
        return {key: None if value != value else value for key, value in plain.items()} | {"offered": self.offered}

    def __str__(self) -> str:
        speed = f"{self.fp32_ms / self.ms:.2f} times as fast" if self.ms and self.fp32_ms else "speed not measured"
        text = f"{self.name}: top-1 {self.top1:.3f}, agrees with float32 on {self.agreement:.1%}, {speed}"
        return f"{text}; not offered: {self.refused}" if self.refused else text


@dataclass(frozen=True)
class Base:
    """The float32 graph, and its answers for the selection photos: ranked (N, k) and target (N,)."""

    graph: Path
    manifest: Manifest
    side: int
    rows: NDArray[np.int64]
    ranked: NDArray[np.int64]
    target: NDArray[np.int64]

    @classmethod
    def measured(cls, graph: Path, manifest: Manifest) -> Base:
        """Evaluates the float32 graph once, for all variants."""
        rows, side = np.flatnonzero(selection_photos(manifest)), open_session(graph).get_inputs()[0].shape[1]
        answers = measure(graph, manifest, rows)
        return cls(graph, manifest, side, rows, answers.ranked, answers.target)

    def compare(self, name: str, path: Path) -> Variant:
        """Figures of another graph; NaN without selection photos.

        All workers begin once the first has written the graph, and none computes any more when it returns.
        """
        distributed.barrier()
        ranked, _, target = measure(path, self.manifest, self.rows)
        figures = accuracy(ranked, target, train_counts=self.manifest.train_counts())
        same = ranked[:, 0] == self.ranked[:, 0]
        distributed.barrier()
        return Variant(name, figures.top1, figures.mean_class, float(np.mean(same)) if len(same) else np.nan)

    def timed(self, variant: Variant, path: Path, *, provider: str) -> Variant:
        """The variant with its time per photo and that of the float32 graph; only the first worker times them."""
        if distributed.rank():
            return variant
        ms, fp32_ms = time_each((path, self.graph), provider=provider)
        return dataclasses.replace(variant, ms=ms, fp32_ms=fp32_ms)

    @property
    def top1(self) -> float:
        """Top-1 accuracy of the float32 graph; NaN without selection photos."""
        return float(np.mean(self.ranked[:, 0] == self.target)) if len(self.target) else np.nan


def make_precision(name: str, base: Base, out: Path, *, largest_fall: float) -> Variant:
    """Writes the variant out/NAME.onnx and evaluates it; workers other than the first learn only its accuracy.

    It is offered if it loses at most `largest_fall` of the top-1 accuracy of the float32 graph and is faster.
    """
    path, provider = out / f"{name}.onnx", CUDA if name in HALVES else CPU
    asked = out / f".rounded-{name}.onnx" if name in HALVES else path  # a CPU can evaluate this one
    if distributed.rank() == 0:
        write_variant(name, base, path, rounded=asked)
    variant = base.compare(name, asked)
    if distributed.rank():
        return variant
    if asked != path:
        for file in out.glob(f"{asked.name}*"):  # with its external data, if any
            file.unlink()
    if not has_kernels(path):
        return dataclasses.replace(variant, refused="ONNX Runtime cannot run it on a CPU to check its golden answers")
    if has_provider(provider):
        variant = base.timed(variant, path, provider=provider)
    return dataclasses.replace(variant, refused=why_refused(variant, base.top1, largest_fall=largest_fall))


def write_variant(name: str, base: Base, path: Path, *, rounded: Path) -> None:
    """Writes a variant, and for a half precision the float32 graph with the same rounding."""
    if name in HALVES:
        write_half(base.graph, path, precision=name)
        write_rounded(base.graph, rounded, precision=name)
    else:
        write_int8(base.graph, path, photos=calibration_photos(base.manifest, side=base.side))


def why_refused(variant: Variant, before: float, *, largest_fall: float) -> str:
    """Reason why a precision is not offered instead of the float32 graph; "" if it is offered."""
    if np.isnan(variant.top1):
        return "there are no validation photos to evaluate it on"
    if before - variant.top1 > largest_fall:
        return f"top-1 falls from {before:.4f} to {variant.top1:.4f}, by more than {largest_fall:g} (export.fall)"
    if variant.ms is None or variant.fp32_ms is None:
        return "its speed cannot be measured on this machine: ONNX Runtime finds no GPU"
    if variant.ms >= variant.fp32_ms:
        return f"it takes {variant.ms:.2f} ms for a photo, and the float32 graph {variant.fp32_ms:.2f} ms"
    return ""


def measure_level(level: Path, base: Base) -> Variant:
    """Figures of the float32 graph with another number of crops."""
    crops = json.loads(read_metadata(level)["views"])["crops"]
    return base.timed(base.compare(f"crops{crops}", level), level, provider=CPU)


def undominated(levels: Sequence[Variant]) -> list[Variant]:
    """All levels; those that cost more than another without being more accurate are marked as refused."""
    marked = []
    for level in levels:
        better = [each for each in levels if _cost(each) < _cost(level) and each.top1 >= level.top1]
        refused = f"{better[0].name} costs less and is as accurate" if better else ""
        marked.append(dataclasses.replace(level, refused=refused))
    return marked


def _cost(level: Variant) -> float:
    """Time per photo, relative to that of the published graph."""
    assert level.ms is not None
    assert level.fp32_ms is not None
    return level.ms / level.fp32_ms


def calibration_photos(manifest: Manifest, *, side: int) -> NDArray[np.uint8]:
    """(n, side, side, 3) uint8: up to 128 random kept training photos."""
    rows = np.flatnonzero((manifest.split == "train") & manifest.kept)
    drawn = np.random.default_rng(0).permutation(rows)[:CALIBRATION_PHOTOS]
    return np.concatenate([batch.numpy() for batch in Photos(manifest, drawn, side=side).in_order(8)])


def publish(settings: Export, made: Sequence[Variant], graph: Path, out: Path, manifest: Manifest) -> None:
    """Writes the files of an export to `out`, for the variant that the recipe names, or for float32 if it is refused.

    A run with export.precision=int8 then still gives a new model: a lower precision only saves time, so its refusal
    should not keep an old model in service.

    made: as the first worker knows them; it writes the files, and all measure a variant.
    """
    chosen = next((each for each in made if each.name == settings.precision and each.offered), None)
    if distributed.rank() == 0:
        write_chosen(settings, chosen, graph, out)
    distributed.barrier()  # after the last graph was timed
    (is_variant,) = distributed.any_of(distributed.rank() == 0 and chosen is not None)
    if not is_variant:
        return
    figures = write_answers(out / "model.onnx", manifest, out)
    if chosen and distributed.rank() == 0:
        stamp(out / "model.onnx", {"metrics": json.dumps(figures), "variant": json.dumps(chosen.to_dict())})


def write_chosen(settings: Export, chosen: Variant | None, graph: Path, out: Path) -> None:
    """Copies the chosen variant of a graph, or the float32 graph with its answers to the test photos, which are known."""
    if chosen is None and settings.precision != "fp32":
        log.warning("export.precision: %s is not offered, so the float32 graph is published", settings.precision)
    source = out / f"{chosen.name}.onnx" if chosen else graph / "model.onnx"
    copy_graph(source, out)
    for name in ("golden.npy", "parity.json"):  # of the float32 graph, which was compared with torch
        shutil.copyfile(graph / name, out / name)
    for file in graph.iterdir() if chosen is None else ():
        if file.name in MEASURED or file.match(FEATURES.format("*")):
            shutil.copyfile(file, out / file.name)


def copy_graph(source: Path, out: Path) -> None:
    """Copies a graph to out/model.onnx, and its external weights, to which it refers by name, to `out`."""
    for name in external_files(source):
        if not (out / name).exists():
            shutil.copyfile(source.parent / name, out / name)
    shutil.copyfile(source, out / "model.onnx")


def main() -> None:
    """Command line that makes the variants of one export."""
    parser = parser_for("data recipe out", description="Make variants of a graph and decide which of them to offer.")
    parser.add_argument("--graph", type=Path, required=True, help="output folder of models.export")
    parser.add_argument(
        "--levels", type=Path, nargs="*", default=[], help="output folders of models.export with other numbers of crops"
    )
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with distributed.workers():
        if distributed.rank() == 0:
            log_progress()
        make_variants(read_recipe(args.recipe), args.data, graph=args.graph, levels=args.levels, out=args.out)


def make_variants(recipe: Recipe, data: Path, *, graph: Path, levels: Sequence[Path], out: Path) -> None:
    """Makes and evaluates all variants of an export, whose other numbers of crops are `levels`, and publishes one."""
    manifest = with_selection_photos(read_manifest(data), recipe.proof.photos)
    base = Base.measured(graph / "model.onnx", manifest)
    made = [make_precision(name, base, out, largest_fall=recipe.export.fall) for name in recipe.export.precisions]
    by_crops = [measure_level(folder / "model.onnx", base) for folder in (graph, *levels)]
    if distributed.rank() == 0:
        variants = [*made, *(undominated(by_crops) if levels else [])]
        for variant in variants:
            log.info("%s", variant)
        content = json.dumps([variant.to_dict() for variant in variants], indent=1, allow_nan=False)
        (out / "variants.json").write_text(content, encoding="utf-8")
    publish(recipe.export, made, graph, out, manifest)


if __name__ == "__main__":
    run(main)
