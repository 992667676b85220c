"""The names of data versions: in git, in data.dvc, and where .dvc/config says that the bytes are."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

from flows.data.objects import Listing
from flows.errors import CorruptObject, WorkspaceMissing

REF = "refs/data/main"  # the history; each entry is a commit that holds data.dvc and VERSION.json
READY = "READY"  # in versions/<id> once every file there is verified
POINTED = re.compile(rb"^\s*-?\s*md5:\s*([0-9a-f]{32})\.dir\s*$", re.MULTILINE)


def tag_of(version: str) -> str:
    """The name of the version's tag."""
    return f"data/{version[:12]}"


def read_pointer(content: bytes, *, name: str) -> str:
    """The version id (32 hex digits) that a data.dvc names.

    Raises:
        CorruptObject: it names none, or several.
    """
    found = POINTED.findall(content)
    if len(found) != 1:
        way_out = "put back the file that git or the ledger (`git show refs/data/main:data.dvc`) has"
        raise CorruptObject(f"{name} has no single line `md5: <32 hex digits>.dir`; {way_out}")
    return str(found[0].decode())


def make_pointer(listing: Listing, *, data: Path) -> bytes:
    """What `dvc add` writes for the folder `data` when it holds `listing`."""
    size = sum((data / name).stat().st_size for name in listing.files)
    first = [f"- md5: {listing.id}.dir", f"  size: {size}", f"  nfiles: {len(listing.files)}"]
    return "\n".join(["outs:", *first, "  hash: md5", "  path: data", ""]).encode()


def read_local_remote(repository: Path) -> Path:
    """The folder that is the default remote of the DVC repository at `repository`.

    Raises:
        WorkspaceMissing: it has no default remote, or one that is not a folder.
    """
    config = configparser.ConfigParser(interpolation=None)
    config.read([repository / ".dvc" / name for name in ("config", "config.local")], encoding="utf-8")
    name = config.get("core", "remote", fallback="").strip("\"'")
    url = config.get(f"'remote \"{name}\"'", "url", fallback="").strip("\"'")
    if not url or "://" in url:
        found = f"{url or 'none'!r}; pull the data there and push them to a folder first"
        raise WorkspaceMissing(
            f"{repository / '.dvc' / 'config'}: core.remote must name a remote that is a folder, found {found}"
        )
    return repository / ".dvc" / url
