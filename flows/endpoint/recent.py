"""The last photos that people sent on the page Recognise, with the answers, if keeping them is switched on.

Each is one file in `state/recent/`, named by the SHA-256 of the photo, so that a purge finds it: the answer, and a small picture
without the place, time and device that cameras note in photos. Nothing is kept of who sent it, or under which name.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from durable import overwrite
from flows.errors import UnknownPhoto
from flows.review.pictures import as_jpeg
from flows.workspace.files import sweep
from serving import Recognition

MOST = 50
SIDE_PX = 256
OWNER_ONLY = 0o600


@dataclass(frozen=True)
class RecentPhoto:
    """A kept photo. at: ISO 8601, UTC. label: the likeliest product; "" if the graph rejected the photo."""

    sha256: str
    at: str
    label: str
    probability: float
    known: bool
    score: float
    model_version: int | None
    data_version: str


class Recent:
    """The last MOST photos in a workspace's folder `state`. Threads may share it."""

    def __init__(self, state: Path) -> None:
        self.folder = state / "recent"

    def add(self, photo: bytes, answer: Recognition) -> None:
        """Keeps a photo that was recognised, in place of an earlier answer to it; the oldest ones beyond MOST are deleted."""
        label, probability = answer.best or ("", 0.0)
        now = datetime.now(UTC).isoformat(timespec="microseconds")
        kept = RecentPhoto(
            sha256(photo).hexdigest(),
            now,
            label,
            round(probability, 6),
            answer.known,
            round(answer.score, 6),
            answer.model_version,
            answer.data_version,
        )
        picture = base64.b64encode(as_jpeg(photo, SIDE_PX)).decode()
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        text = json.dumps({**asdict(kept), "jpeg": picture}, ensure_ascii=False)
        overwrite(self.folder / kept.sha256, text.encode(), mode=OWNER_ONLY)
        self.forget(each.sha256 for each in self.photos()[MOST:])

    def photos(self) -> list[RecentPhoto]:
        """The kept photos, newest first."""
        notes = [note for path in self._files() if (note := _read(path))]
        found = [RecentPhoto(**{name: note[name] for name in RecentPhoto.__dataclass_fields__}) for note in notes]
        return sorted(found, key=lambda each: (each.at, each.sha256), reverse=True)

    def picture(self, digest: str) -> bytes:
        """The picture of a kept photo, a JPEG of at most SIDE_PX pixels on its longer side.

        Raises:
            UnknownPhoto: it is not kept any more.
        """
        return base64.b64decode(str(_read(self._file(digest)).get("jpeg", "")))

    def remove(self, digest: str) -> None:
        """Deletes a photo.

        Raises:
            UnknownPhoto: it is not kept any more.
        """
        self.forget([self._file(digest).name])

    def forget(self, digests: Iterable[str]) -> None:
        """Deletes what there is of photos by their SHA-256, for a purge."""
        sweep(self.folder)
        for digest in digests:
            (self.folder / digest).unlink(missing_ok=True)

    def clear(self) -> None:
        """Deletes all of them."""
        self.forget(path.name for path in self._files())

    def _files(self) -> list[Path]:
        return [path for path in self.folder.glob("*") if len(path.name) == 64]

    def _file(self, digest: str) -> Path:
        path = self.folder / digest
        if len(digest) != 64 or set(digest) - set("0123456789abcdef") or not path.is_file():
            raise UnknownPhoto("this photo is not kept any more; reload the page")
        return path


def _read(path: Path) -> dict[str, Any]:
    """Content of a file; {} if another thread has deleted it."""
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    return found
