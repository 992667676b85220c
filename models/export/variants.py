"""Variants of one graph: `python -m models.export.variants --data DIR --recipe FILE --graph DIR [--levels DIR...] --out DIR`.

fp16 and bf16 for GPUs, int8 for CPUs; and levels: the same networks with other numbers of crops, exported beforehand. Each is
asked about the validation photos and timed beside the float32 graph. What it leaves in --out: variants.json, NAME.onnx for each
precision, and the files of an export for what is published: the variant of `export.precision` if it is offered, else float32.
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

from models.data.manifest import Manifest, read_manifest
from models.data.photos import Photos
from models.data.trusted import selection_photos, with_selection_photos
from models.evaluation.accuracy import accuracy
from models.export.int8 import write_int8
from models.export.measure import measure, write_answers
from models.export.patch import external_files, read_metadata, stamp
from models.export.precision import HALVES, write_half, write_rounded
from models.export.session import open_session
from models.export.timing import CPU, CUDA, has_kernels, has_provider, time_each
from models.recipe.config import Export
from models.training.command import log_progress, parser_for, read_recipe, run

log = logging.getLogger(__name__)

CALIBRATION_PHOTOS = 128


@dataclass(frozen=True)
class Variant:
    """One way to compute the graph, asked about the validation photos; shares in [0, 1].

    agreement: with the float32 graph on the best class. ms: per photo, asked alone, on one thread or the GPU; fp32_ms: of the
    float32 graph between; None: this machine cannot run it, and it was judged by what rounding alone does to the answers.
    """

    name: str
    top1: float
    mean_class: float
    agreement: float
    ms: float | None = None
    fp32_ms: float | None = None
    refused: str = ""  # why it is not offered

    @property
    def offered(self) -> bool:
        """Whether it may be published."""
        return not self.refused

    def to_dict(self) -> dict[str, object]:
        """For JSON; None for NaN."""
        plain = {key: round(value, 6) if isinstance(value, float) else value
                 for key, value in dataclasses.asdict(self).items()}  # fmt: skip
        return {key: None if value != value else value for key, value in plain.items()} | {"offered": self.offered}

    def __str__(self) -> str:
        speed = f"{self.fp32_ms / self.ms:.2f} times as fast" if self.ms and self.fp32_ms else "speed not measured"
        said = f"{self.name}: top-1 {self.top1:.3f}, agrees on {self.agreement:.1%}, {speed}"
        return f"{said}; not offered: {self.refused}" if self.refused else said


@dataclass(frozen=True)
class Base:
    """The float32 graph, and what it says of the photos that judge: ranked (N, k) and target (N,)."""

    graph: Path
    manifest: Manifest
    side: int
    rows: NDArray[np.int64]
    ranked: NDArray[np.int64]
    target: NDArray[np.int64]

    @classmethod
    def of(cls, graph: Path, manifest: Manifest) -> Base:
        """Asked once, for all variants."""
        rows, side = np.flatnonzero(selection_photos(manifest)), open_session(graph).get_inputs()[0].shape[1]
        return cls(graph, manifest, side, rows, *measure(graph, manifest, rows))

    def ask(self, name: str, path: Path) -> Variant:
        """What another graph says of them; NaN where there are none."""
        ranked, target = measure(path, self.manifest, self.rows)
        found = accuracy(ranked, target, train_counts=self.manifest.train_counts())
        same = ranked[:, 0] == self.ranked[:, 0]
        return Variant(name, found.top1, found.mean_class, float(np.mean(same)) if len(same) else np.nan)

    def timed(self, variant: Variant, path: Path, *, provider: str) -> Variant:
        """The variant with its time and that of the float32 graph."""
        ms, fp32_ms = time_each((path, self.graph), provider=provider)
        return dataclasses.replace(variant, ms=ms, fp32_ms=fp32_ms)

    @property
    def top1(self) -> float:
        """NaN without photos."""
        return float(np.mean(self.ranked[:, 0] == self.target)) if len(self.target) else np.nan


def of_precision(name: str, base: Base, out: Path, *, largest_fall: float) -> Variant:
    """Makes the variant out/NAME.onnx, and judges it: as accurate as float32 within `largest_fall` of top-1, and faster."""
    path = out / f"{name}.onnx"
    if name in HALVES:
        write_half(base.graph, path, precision=name)
        rounded = out / f".rounded-{name}.onnx"  # which a CPU can be asked
        write_rounded(base.graph, rounded, precision=name)
        found, provider = base.ask(name, rounded), CUDA
        for file in out.glob(f"{rounded.name}*"):  # with its weights, where they lie beside it
            file.unlink()
    else:
        write_int8(base.graph, path, photos=calibration_photos(base.manifest, side=base.side))
        found, provider = base.ask(name, path), CPU
    if not has_kernels(path):
        return dataclasses.replace(found, refused="ONNX Runtime cannot answer golden photos with it on a CPU")
    found = base.timed(found, path, provider=provider) if has_provider(provider) else found
    return dataclasses.replace(found, refused=why_refused(found, base.top1, largest_fall=largest_fall))


def why_refused(variant: Variant, before: float, *, largest_fall: float) -> str:
    """Why a precision is not offered in the place of the float32 graph; "" where it is."""
    if np.isnan(variant.top1):
        return "there are no validation photos to judge it by"
    if before - variant.top1 > largest_fall:
        return f"top-1 falls from {before:.4f} to {variant.top1:.4f}, by more than {largest_fall:g} (export.fall)"
    if variant.ms is None or variant.fp32_ms is None:
        return "its speed cannot be measured on this machine: ONNX Runtime finds no GPU"
    if variant.ms >= variant.fp32_ms:
        return f"it takes {variant.ms:.2f} ms for a photo, and the float32 graph {variant.fp32_ms:.2f} ms"
    return ""


def of_level(level: Path, base: Base) -> Variant:
    """The float32 graph with another number of crops."""
    crops = json.loads(read_metadata(level)["views"])["crops"]
    return base.timed(base.ask(f"crops{crops}", level), level, provider=CPU)


def undominated(levels: Sequence[Variant]) -> list[Variant]:
    """The levels; refused are those that cost more than another, and are not more accurate."""
    found = []
    for one in levels:
        better = [each for each in levels if _cost(each) < _cost(one) and each.top1 >= one.top1]
        found.append(
            dataclasses.replace(one, refused=f"{better[0].name} costs less and is as accurate" if better else "")
        )
    return found


def _cost(level: Variant) -> float:
    """In times of the published graph."""
    assert level.ms is not None
    assert level.fp32_ms is not None
    return level.ms / level.fp32_ms


def calibration_photos(manifest: Manifest, *, side: int) -> NDArray[np.uint8]:
    """(n, side, side, 3): up to 128 kept training photos, drawn at random."""
    rows = np.flatnonzero((manifest.split == "train") & manifest.kept)
    drawn = np.random.default_rng(0).permutation(rows)[:CALIBRATION_PHOTOS]
    return np.concatenate([batch.numpy() for batch in Photos(manifest, drawn, side=side).in_order(8)])


def publish(settings: Export, made: Sequence[Variant], graph: Path, out: Path, manifest: Manifest) -> None:
    """Leaves in `out` what an export leaves, of the variant that the recipe names, or of the float32 graph where it is refused.

    A run that was asked for int8 still ends with a model: a lower precision saves time, and is no reason to serve last week's.
    """
    chosen = next((each for each in made if each.name == settings.precision and each.offered), None)
    if chosen is None and settings.precision != "fp32":
        log.warning("export.precision: %s is not offered, the float32 graph is published", settings.precision)
    source = out / f"{chosen.name}.onnx" if chosen else graph / "model.onnx"
    place(source, out)
    for name in ("golden.npy", "parity.json"):  # of the float32 graph, which is what torch is compared with
        shutil.copyfile(graph / name, out / name)
    figures = write_answers(out / "model.onnx", manifest, out)
    if chosen:
        stamp(out / "model.onnx", {"metrics": json.dumps(figures), "variant": json.dumps(chosen.to_dict())})


def place(source: Path, out: Path) -> None:
    """Copies a graph, and the weights beside it, to out/model.onnx; the names inside stay true."""
    for name in external_files(source):
        if not (out / name).exists():
            shutil.copyfile(source.parent / name, out / name)
    shutil.copyfile(source, out / "model.onnx")


def main() -> None:
    """The command line of the variants of one export."""
    parser = parser_for(
        "data recipe out", description="Make variants of a graph, and see which of them are worth offering."
    )
    parser.add_argument("--graph", type=Path, required=True, help="what models.export left")
    parser.add_argument("--levels", type=Path, nargs="*", default=[], help="likewise, with other numbers of crops")
    args = parser.parse_args()
    log_progress()
    args.out.mkdir(parents=True, exist_ok=True)
    recipe = read_recipe(args.recipe)
    manifest = with_selection_photos(read_manifest(args.data), recipe.proof.photos)
    base = Base.of(args.graph / "model.onnx", manifest)
    made = [of_precision(name, base, args.out, largest_fall=recipe.export.fall) for name in recipe.export.precisions]
    levels = undominated([of_level(folder / "model.onnx", base) for folder in (args.graph, *args.levels)])
    found = [*made, *(levels if args.levels else [])]
    for variant in found:
        log.info("%s", variant)
    content = json.dumps([variant.to_dict() for variant in found], indent=1, allow_nan=False)
    (args.out / "variants.json").write_text(content, encoding="utf-8")
    publish(recipe.export, made, args.graph, args.out, manifest)


if __name__ == "__main__":
    run(main)
