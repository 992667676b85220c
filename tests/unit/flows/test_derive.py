"""Versions made from a version: which files they share."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from flows.data.derive import link_unchanged
from flows.data.fingerprints import Fingerprints
from flows.delivery.build import build_version
from models.data.manifest import read_manifest, write_labels, write_version
from tests.deliveries import deliver
from tests.versions import as_format_1, contents

OWN = ("labels.parquet", "VERSION.json")


@pytest.fixture
def version(tmp_path: Path) -> Path:
    build_version(deliver(tmp_path / "source", {"a": 4, "b": 4}), base=None, out=tmp_path / "version")
    (tmp_path / "version" / "READY").write_text("x")
    return tmp_path / "version"


def test_all_files_but_the_changed_ones_are_linked(version: Path, tmp_path: Path) -> None:
    link_unchanged(version, tmp_path / "next", changed=OWN)
    assert contents(tmp_path / "next") == {k: v for k, v in contents(version).items() if k not in (*OWN, "READY")}
    assert all((tmp_path / "next" / name).samefile(version / name) for name in contents(tmp_path / "next"))


def test_a_version_made_from_one_of_format_1_is_like_one_made_from_format_2(version: Path, tmp_path: Path) -> None:
    link_unchanged(version, tmp_path / "present", changed=OWN)
    as_format_1(version)
    before = contents(version)
    link_unchanged(version, tmp_path / "next", changed=OWN)
    assert contents(tmp_path / "next") == contents(tmp_path / "present")
    write_labels(tmp_path / "next", read_manifest(version))
    write_version(tmp_path / "next", parent="p", step="clean-1")
    assert json.loads((tmp_path / "next" / "VERSION.json").read_text())["format"] == 2
    assert read_manifest(tmp_path / "next").scored_by.tolist() == [""] * 8
    assert contents(version) == before


def test_a_version_without_fingerprints_gets_none(version: Path, tmp_path: Path) -> None:
    (version / "fingerprints.parquet").unlink()
    link_unchanged(version, tmp_path / "next", changed=OWN)
    assert "fingerprints.parquet" not in contents(tmp_path / "next")
    np.testing.assert_array_equal(Fingerprints.read(tmp_path / "next").id, Fingerprints.read(None).id)
