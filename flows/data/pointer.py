"""Names of data versions in git and in data.dvc, and the remote that .dvc/config names."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

from flows.data.objects import Listing
from flows.errors import CorruptObject, WorkspaceMissing

REF = "refs/data/main"  # the history; each entry is a commit that holds data.dvc and VERSION.json
READY = "READY"  # file in versions/<id>, written once all other files there are verified
POINTED = re.compile(rb"^\s*-?\s*md5:\s*([0-9a-f]{32})\.dir\s*$", re.MULTILINE)


def tag_of(version: str) -> str:
    """Name of the version's tag."""
    return f"data/{version[:12]}"


def read_pointer(content: bytes, *, name: str) -> str:
    """The version id (32 hex digits) in the content of a data.dvc; `name` is for the message.

    Raises:
        CorruptObject: it names no version, or several.
    """
    found = POINTED.findall(content)
    if len(found) != 1:
        way_out = "restore the file from git or from the ledger (`git show refs/data/main:data.dvc`)"
        raise CorruptObject(f"{name} has no single line `md5: <32 hex digits>.dir`; {way_out}")
    return str(found[0].decode())


def make_pointer(listing: Listing, *, data: Path) -> bytes:
    """Content of the data.dvc that `dvc add` writes for the folder `data` with the files of `listing`."""
    size = sum((data / name).stat().st_size for name in listing.files)
    first = [f"- md5: {listing.id}.dir", f"  size: {size}", f"  nfiles: {len(listing.files)}"]
    return "\n".join(["outs:", *first, "  hash: md5", "  path: data", ""]).encode()


def read_local_remote(repository: Path) -> Path:
    """Folder of the default remote of the DVC repository at `repository`.

    Raises:
        WorkspaceMissing: it has no default remote, or the remote is not a folder.
    """
    config = configparser.ConfigParser(interpolation=None)
    config.read([repository / ".dvc" / name for name in ("config", "config.local")], encoding="utf-8")
    name = config.get("core", "remote", fallback="").strip("\"'")
    url = config.get(f"'remote \"{name}\"'", "url", fallback="").strip("\"'")
    if not url or "://" in url:
        found = f"{url or 'none'!r}; push the data to a folder remote there first"
        raise WorkspaceMissing(
            f"{repository / '.dvc' / 'config'}: core.remote must name a remote that is a folder, found {found}"
        )
    return repository / ".dvc" / url
