"""Photos that people named on the page Recognise and that no data version has yet: they wait here to be ingested.

Each is a file of its bytes, named by their SHA-256, and a note beside it, which is written last: a photo without a note does
not count. After a kill the same ingestion can be done again, since a photo that a version has already is a duplicate.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

from contract.labels import KnownLabels, difference, fault, fold, shown
from durable import overwrite
from flows.errors import InputError, UnknownPhoto

SOURCE = "recognise page"  # supplier of these photos in the data version
MOST = 5000  # photos that may wait; at 20 MB each they would take 100 GB
MANIFEST = "manifest.jsonl"  # in CSV, a label that begins with an apostrophe may lose it
NOTE = ".json"
SHOWN = 60  # characters of a label in a message


@dataclass(frozen=True)
class Named:
    """A waiting photo: the label, who gave it and when (ISO 8601, UTC), and the name of the file that was sent."""

    sha256: str
    label: str
    who: str
    at: str
    name: str

    @classmethod
    def of(cls, photo: bytes, *, label: str, who: str, name: str) -> Named:
        """The photo as named now."""
        return cls(sha256(photo).hexdigest(), label, who, datetime.now(UTC).isoformat(timespec="seconds"), name)


class Inbox:
    """The waiting photos of a workspace, in its folder `state`."""

    def __init__(self, state: Path) -> None:
        self.folder = state / "review" / "inbox"

    def add(self, named: Named, photo: bytes) -> None:
        """Keeps a photo with its label until it is ingested; a later label of the same photo replaces an earlier one.

        Raises:
            InputError: too many photos wait.
        """
        if not (self.folder / f"{named.sha256}{NOTE}").exists() and self.count() >= MOST:
            raise InputError(f"{MOST:,} photos wait already; add them to the data first, then name more")
        self.folder.mkdir(parents=True, exist_ok=True)
        overwrite(self.folder / named.sha256, photo)
        overwrite(self.folder / f"{named.sha256}{NOTE}", json.dumps(asdict(named), ensure_ascii=False).encode())

    def count(self) -> int:
        """Number of waiting photos."""
        return sum(1 for _ in self.folder.glob(f"*{NOTE}"))

    def waiting(self) -> list[Named]:
        """The waiting photos, newest first."""
        notes = [Named(**json.loads(path.read_bytes())) for path in self.folder.glob(f"*{NOTE}")]
        return sorted(notes, key=lambda named: (named.at, named.sha256), reverse=True)

    def photo(self, digest: str) -> bytes:
        """Bytes of a waiting photo.

        Raises:
            UnknownPhoto: it does not wait any more.
        """
        return self._file(digest).read_bytes()

    def remove(self, digest: str) -> None:
        """Takes a photo out.

        Raises:
            UnknownPhoto: it does not wait any more.
        """
        self._file(digest)
        self.forget([digest])

    def forget(self, digests: Iterable[str]) -> None:
        """Deletes what there is of photos by their SHA-256, for a purge."""
        for digest in digests:
            (self.folder / f"{digest}{NOTE}").unlink(missing_ok=True)
            (self.folder / digest).unlink(missing_ok=True)

    def manifest(self, photos: Sequence[Named]) -> Path:
        """Writes these photos as a delivery, and returns the path of its manifest."""
        rows = ({"path": named.sha256, "label": named.label, "source": SOURCE} for named in photos)
        overwrite(self.folder / MANIFEST, "".join(f"{json.dumps(row)}\n" for row in rows).encode())
        return self.folder / MANIFEST

    def clear(self, photos: Sequence[Named]) -> None:
        """Takes out photos that were ingested; one that has been given another label since stays."""
        now = set(self.waiting())
        for named in photos:
            if named in now:
                self.remove(named.sha256)
        (self.folder / MANIFEST).unlink(missing_ok=True)

    def _file(self, digest: str) -> Path:
        if len(digest) != 64 or set(digest) - set("0123456789abcdef") or not (self.folder / digest).is_file():
            raise UnknownPhoto("this photo does not wait any more; reload the page")
        return self.folder / digest


def product_named(text: str, *known: KnownLabels) -> str:
    """The known product that a text means, or a new one that the rule for labels allows; earlier `known` come first.

    Raises:
        InputError: it is blank or too long, or differs from a known product only in case, white space or the like.
    """
    for labels in known:
        if (label := labels.spelt(text)) in labels.labels:
            return label
    label = fold(text)
    named = shown(label[:SHOWN] + ("..." if len(label) > SHOWN else ""))
    if reason := fault(label):
        raise InputError(f"the name {named} cannot be used: it {reason}")
    if alike := next((found for labels in known if (found := labels.alike(label))), ""):
        raise InputError(f"{named} and {shown(alike)} {difference(label, alike)}; choose the product in the list")
    return label
