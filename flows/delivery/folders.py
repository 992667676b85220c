"""Photos in a tree of folders: which level of folders names the class, which the split, and which files are photos."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, NoReturn

from flows.errors import BadDelivery
from flows.live import counted
from models.data.manifest import UNLABELLED

# Names of folders, in small letters without separators, and the split that they mean
SPLITS = {
    **dict.fromkeys(("train", "training", "trainval"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "development"), "val"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation", "holdout", "heldout"), "test"),
}
# "Training Set", "test_images", "train2017"
OF_SPLITS = re.compile(r"(set|data|images|photos|split|(19|20)\d\d)$")
# Folders around the classes; none of them is a product
AROUND = {"images", "image", "imgs", "img", "photos", "pictures", "data", "dataset", "jpegimages"}
# Files with these suffixes, or none, are opened, also if they are of a format that cannot be read
PHOTOS = {
    ".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".pjpeg", ".pjp", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif",
    ".tiff", ".heic", ".heif", ".hif", ".avif", ".jxl", ".jp2", ".j2k", ".jpx", ".psd", ".dng", ".cr2", ".cr3", ".nef",
    ".nrw", ".arw", ".srw", ".orf", ".rw2", ".raf", ".pef", ".raw", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".pcx", ".exr",
    ".hdr", ".ico",
}  # fmt: skip
STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"RIFF")  # of photos with other suffixes
SYSTEM_FILES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}
SYSTEM_FOLDERS = {"__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found"}
SYSTEM = "hidden or of a system"  # kind of a file
SHOWN = 4  # folders in a message
WAY_OUT = (
    "give one folder per class, inside split folders (train, val, test) if you like, or a manifest.csv with the "
    "columns path, label and split; photos without labels come with --unlabelled"
)


@dataclass
class PassedOver:
    """Entries of a tree other than photos.

    files: number by suffix, or SYSTEM. examples: path of the first, by the same. closed: hidden folders and folders of a
    system, which are not opened. links: those to folders, which are not followed; each is refused by name.
    """

    files: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    closed: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)

    def add(self, kind: str, path: str) -> None:
        """Counts a file."""
        self.files[kind] += 1
        self.examples.setdefault(kind, path)


class Layout(NamedTuple):
    """Position of the class and of the split (-1: none) among the folders of a photo, of which there are `depth`."""

    depth: int
    label: int
    split: int

    def place(self, folders: tuple[str, ...]) -> tuple[str, str]:
        """Label and split of the photos in these folders; "" for a photo in no class folder."""
        if len(folders) != self.depth:
            return "", ""
        return folders[self.label], split_of(folders[self.split]) if self.split >= 0 else ""


def split_of(name: str) -> str:
    """The split that a folder's name means; "" if it is none."""
    letters = re.sub(r"[\W_]", "", name.casefold())
    return SPLITS.get(letters) or SPLITS.get(OF_SPLITS.sub("", letters), "")


def read_folders(source: Path, passed: PassedOver) -> Iterator[tuple[str, str, str]]:
    """Yields path, label and split of each photo below `source`, in a fixed order; `passed` gets the other files.

    Raises:
        BadDelivery: the levels of folders are not understood, or a folder cannot be read.
    """
    seen = PassedOver()
    holders = {folder: len(photos) for folder, photos, _ in _walk(source, seen) if photos}
    layout = find_layout(source, holders, seen)
    for folder, photos, links in _walk(source, passed):
        label, split = layout.place(folder)
        for name in sorted([*photos, *links]):
            yield "/".join((*folder, name)), label, split


def read_unlabelled(source: Path, passed: PassedOver) -> Iterator[tuple[str, str, str]]:
    """Yields path, "" and UNLABELLED for each photo below `source`, whatever the folders mean; else as `read_folders`.

    Raises:
        BadDelivery: there is no photo, or a folder cannot be read.
    """
    is_empty = True
    for folder, photos, links in _walk(source, passed):
        is_empty = is_empty and not photos
        for name in sorted([*photos, *links]):
            yield "/".join((*folder, name)), "", UNLABELLED
    if is_empty:
        raise BadDelivery(f"{source} {_without_photos(passed)}; put the photos into it")


def find_layout(source: Path, holders: dict[tuple[str, ...], int], seen: PassedOver) -> Layout:
    """Meaning of the levels of folders, by the folders that hold photos and their numbers.

    Raises:
        BadDelivery: more than one reading is possible, or none.
    """
    if not holders:
        raise BadDelivery(f"{source} {_without_photos(seen)}; put the photos into one folder per class")
    # Photos beside the class folders are refused one by one; they say nothing about the levels.
    inner = [folder for folder in holders if any(not split_of(name) for name in folder)]
    if not inner:
        _refuse(source, "the photos lie in no class folder", holders)
    levels = [set(names) for names in zip(*inner, strict=False)]
    splits = [number for number, names in enumerate(levels) if any(map(split_of, names))]
    for level in (levels[number] for number in splits):
        if beside := sorted(name for name in level if not split_of(name)):
            _refuse_mixed(source, filter(split_of, level), beside[0], holders)
    depths = {len(folder) for folder in inner}
    if len(depths) > 1:
        _refuse(source, "the photos lie in folders of different depth", holders)
    classes = [number for number, names in enumerate(levels) if number not in splits]
    classes = [number for number in classes if len(levels[number]) > 1] or classes[-1:]
    if len(splits) > 1:
        _refuse(source, "the photos lie in several levels of split folders", holders)
    if len(classes) > 1:
        _refuse(source, "the photos lie in several levels of folders, each of which may name the class", holders)
    if all(name.casefold() in AROUND for name in levels[classes[0]]):
        _refuse(source, "the photos lie in no class folder", holders)
    layout = Layout(depths.pop(), classes[0], splits[0] if splits else -1)
    _check_splits(source, layout, inner, holders)
    return layout


def _check_splits(
    source: Path, layout: Layout, inner: list[tuple[str, ...]], holders: dict[tuple[str, ...], int]
) -> None:
    """Refuses a split folder that holds photos and no class folder: they would be of a product named "test"."""
    around = {folder[:depth] for folder in inner for depth in range(layout.depth)}
    bare = sorted(holders.keys() - around - set(inner))
    if beside := [folder for folder in bare if len(folder) == layout.depth]:
        _refuse_mixed(source, map("/".join, beside), "/".join(inner[0]), holders)
    if bare:
        _refuse(source, f"the photos of split folder {'/'.join(bare[0])}/ lie in no class folder", holders)


def _without_photos(seen: PassedOver) -> str:
    """Contents of a tree that has no photo, in words."""
    others = ", ".join(f"{number} {kind}" for kind, number in seen.files.most_common(SHOWN))
    found = [f"other files ({others})"] if others else []
    if seen.links:
        found.append(f"links to folders ({', '.join(seen.links[:SHOWN])}), which are not followed")
    return f"holds no photo, but {' and '.join(found)}" if found else "is empty"


def _refuse_mixed(source: Path, splits: Iterable[str], of_class: str, holders: dict[tuple[str, ...], int]) -> NoReturn:
    named = ", ".join(sorted(splits))
    _refuse(source, f"it mixes split folders ({named}) and class folders ({of_class!r}) on one level", holders)


def _refuse(source: Path, reason: str, holders: dict[tuple[str, ...], int]) -> NoReturn:
    """Raises BadDelivery with the folders as they are."""
    by_kind: dict[tuple[int, str], tuple[str, ...]] = {}  # one folder of each depth and each folder at the top first
    for folder in sorted(holders):
        by_kind.setdefault((len(folder), folder[0] if folder else ""), folder)
    shown = list(dict.fromkeys([*by_kind.values(), *sorted(holders)]))[:SHOWN]
    tree = ", ".join(f"{'/'.join(folder) or '.'}/ ({holders[folder]} photos)" for folder in shown)
    more = f" and {len(holders) - len(shown):,} more folders" if len(holders) > len(shown) else ""
    raise BadDelivery(f"{source}: {reason}: {tree}{more}; {WAY_OUT}")


def _walk(source: Path, passed: PassedOver) -> Iterator[tuple[tuple[str, ...], list[str], list[str]]]:
    """Yields each folder, its photos and the links to folders in it, which are not followed; all sorted."""
    with counted("listing", unit="files") as progress:
        for folder, names, files in os.walk(source, onerror=unreadable):
            inner = tuple(Path(os.path.relpath(folder, source)).parts)
            names.sort()
            for name in filter(_is_of_system, names):
                passed.closed.append("/".join((*inner, name)))
            names[:] = [name for name in names if not _is_of_system(name)]
            links = [name for name in names if os.path.islink(os.path.join(folder, name))]
            passed.links += ("/".join((*inner, name)) for name in links)
            yield inner, [name for name in sorted(files) if _is_photo(folder, name, inner, passed)], links
            progress.add(len(files))


def unreadable(error: OSError) -> NoReturn:
    """Raises BadDelivery for a folder, as `os.walk` calls it."""
    raise BadDelivery(
        f"{error.filename}: the folder cannot be read ({error.strerror}), so its photos would be missing; allow reading it, "
        "or move it out of the delivery"
    )


def _is_of_system(folder: str) -> bool:
    return folder.startswith(".") or folder.casefold() in SYSTEM_FOLDERS


def _is_photo(folder: str, name: str, inner: Iterable[str], passed: PassedOver) -> bool:
    """True if the file is to be opened; counts it otherwise."""
    suffix = os.path.splitext(name)[1].casefold()
    if name.startswith(".") or name.casefold() in SYSTEM_FILES:
        passed.add(SYSTEM, "/".join((*inner, name)))
        return False
    if not suffix or suffix in PHOTOS or _starts_like_a_photo(os.path.join(folder, name)):
        return True
    passed.add(suffix, "/".join((*inner, name)))
    return False


def _starts_like_a_photo(path: str) -> bool:
    """True if the file has the first bytes of a photo, or is a link or another kind of entry, which is refused by name."""
    if os.path.islink(path) or not os.path.isfile(path):
        return True
    try:
        with open(path, "rb") as file:
            return file.read(8).startswith(STARTS)
    except OSError:
        return True
