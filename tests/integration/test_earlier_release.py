"""A workspace of release 0.1.0 works as before: its data, its models, its endpoint.

`tests/releases/0.1.0.tar.xz` was made by the commands of that release: a delivery of 40 photos, a round of cleaning, a
label confirmed by a person, and two model versions, of which the first is the current one again after a rollback.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from serving.server.environment import Environment
from tests.command_line import cleanshelf, refusal
from tests.integration.conftest import free_ports

pytestmark = pytest.mark.dvc

ARCHIVE = Path(__file__).parents[1] / "releases" / "0.1.0.tar.xz"
INGESTED, CLEANED, CONFIRMED = "46b773ee7f66", "bb57bb53d20e", "95630b1cb6bb"
RUN = "20261130-035347-47eadf"


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """The workspace, unpacked."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "release-0.1.0"


def ask(shop: Path, *arguments: object, **popen: Any) -> Any:
    """The JSON that a verb prints about the workspace."""
    done = cleanshelf(*arguments, "--workspace", shop, "--json", **popen)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_data_versions_are_read_verified_and_compared(shop: Path) -> None:
    entries = ask(shop, "data", "log")
    assert [(entry["id"][:12], entry["step"]) for entry in entries] == [
        (CONFIRMED, "feedback"),
        (CLEANED, "clean-1"),
        (INGESTED, "ingest"),
    ]
    assert ask(shop, "data", "verify", "--all") == []
    changed = ask(shop, "data", "diff", INGESTED, CLEANED)
    assert {name: changed[name] for name in ("added", "dropped", "restored", "relabelled")} == {
        "added": 0,
        "dropped": 8,
        "restored": 0,
        "relabelled": 0,
    }


def test_a_data_version_is_restored_to_the_byte(shop: Path) -> None:
    before = {path.name: path.read_bytes() for path in (shop / "data").glob("*.*")}
    assert ask(shop, "data", "rollback", INGESTED)["id"].startswith(INGESTED)
    assert ask(shop, "data", "show")["counts"]["kept"] == 40
    assert ask(shop, "data", "rollback", CONFIRMED)["id"].startswith(CONFIRMED)
    assert {path.name: path.read_bytes() for path in (shop / "data").glob("*.*")} == before


@pytest.mark.prefect
def test_a_delivery_is_merged_into_its_photos(shop: Path, tmp_path: Path) -> None:
    """Old fingerprints still find near-duplicates, and old decisions with their scores stay."""
    rows = pq.read_table(shop / "data" / "labels.parquet").to_pylist()
    held_out = next(row for row in rows if row["split"] == "test")
    index = {row["id"]: row for row in pq.read_table(shop / "data" / "index.parquet").to_pylist()}[held_out["id"]]
    shard = (shop / "data" / "shards" / f"{index['shard']}.tar").read_bytes()
    copy, new = (tmp_path / "delivery" / held_out["label"] / name for name in ("copy.png", "new.png"))
    copy.parent.mkdir(parents=True)
    copy.write_bytes(shard[index["offset"] : index["offset"] + index["size"]])
    with Image.open(copy) as image:
        image.resize((112, 112)).save(copy)
    Image.linear_gradient("L").convert("RGB").resize((64, 64)).save(new)

    ask(shop, "ingest", tmp_path / "delivery", "--test-share", 0, "--val-share", 0)

    after = {row["id"]: row for row in pq.read_table(shop / "data" / "labels.parquet").to_pylist()}
    added = [row for photo, row in after.items() if photo not in {row["id"] for row in rows}]
    assert sorted(row["decision"] for row in added) == ["", "near-test"]
    for row in rows:
        now = after[row["id"]]
        assert {name: now[name] for name in row if name != "judge"} == {
            name: row[name] for name in row if name != "judge"
        }
        assert now.get("scored_by", now.get("judge")) == row["judge"]
    assert ask(shop, "data", "verify", "--all") == []


def test_models_are_read_verified_and_rolled_back(shop: Path) -> None:
    assert [(model["version"], model["serving"]) for model in ask(shop, "model", "log")] == [(2, False), (1, True)]
    assert (ask(shop, "verify")["broken"], ask(shop, "verify", 2)["broken"]) == ([], [])
    assert ask(shop, "model", "show", 1)["run"] == RUN
    assert ask(shop, "model", "rollback", 2)["serving"] == 2
    assert [model["serving"] for model in ask(shop, "model", "log")] == [True, False]


@pytest.mark.triton
def test_its_endpoint_answers(shop: Path, tmp_path: Path, triton_environment: Environment) -> None:
    photo = tmp_path / "photo.png"
    Image.new("RGB", (20, 20), (200, 30, 30)).save(photo)
    [alone] = ask(shop, "recognise", "--model", shop / "repository" / "products" / "1" / "model.onnx", photo)
    env = {"CLEANSHELF_TRITON_ENV": str(triton_environment.path)}
    ports = [word for name, port in free_ports().items() for word in (f"--{name.replace('_', '-')}", port)]
    try:
        started = cleanshelf("serve", "--detach", "--workspace", shop, *ports, env=env)
        assert started.returncode == 0, started.stderr
        [served] = ask(shop, "recognise", photo, env=env)
    finally:
        cleanshelf("serve", "--stop", "--workspace", shop, env=env)
    assert served["model_version"] == 1
    assert [each["label"] for each in served["products"]] == [each["label"] for each in alone["products"]]
    assert (shop / "repository" / "products-encoded" / "1" / "model.py").exists()


def test_a_run_whose_graph_is_gone_is_read_and_refused(shop: Path) -> None:
    assert RUN in refusal(cleanshelf("publish", RUN, "--workspace", shop))
