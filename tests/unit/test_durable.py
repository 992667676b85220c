"""Links of files on file systems that make none."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from durable import link

REFUSALS = ("EPERM", "EACCES", "ENOSYS", "EIO", "EXDEV", "EMLINK", "ENOTSUP", "EINVAL")


def refuse(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Makes each hard link fail with this error, as a file system without them does."""

    def refused(source: Path, target: Path) -> None:
        if os.path.lexists(target):  # the kernel looks for the name first
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        raise OSError(getattr(errno, name), os.strerror(getattr(errno, name)), str(source))

    monkeypatch.setattr(os, "link", refused)


@pytest.mark.parametrize("name", REFUSALS)
def test_a_link_that_is_refused_becomes_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    source, target = tmp_path / "a", tmp_path / "folder" / "b"
    source.write_bytes(b"bytes")
    refuse(monkeypatch, name)
    link(source, target)
    assert target.read_bytes() == b"bytes"
    assert not target.samefile(source)
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("refused", [False, True])
def test_neither_a_link_nor_a_copy_replaces_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: bool
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    if refused:
        refuse(monkeypatch, "EPERM")
    with pytest.raises(FileExistsError):
        link(tmp_path / "a", tmp_path / "b")
    with pytest.raises(FileNotFoundError):
        link(tmp_path / "lost", tmp_path / "c")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    assert (tmp_path / "b").read_text() == "b"


def test_a_file_that_has_as_many_links_as_there_may_be_is_copied(tmp_path: Path) -> None:
    (tmp_path / "links").mkdir()
    source = tmp_path / "a"
    source.write_bytes(b"bytes")
    for number in range(66_000):
        try:
            os.link(source, tmp_path / "links" / str(number))
        except OSError:
            break
    else:
        pytest.skip("this file system sets no limit")
    link(source, tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"bytes"
