"""Events about data and models reach a real Prefect server, and its automations act on them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from prefect import get_client
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.events.schemas.automations import AutomationCore
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.data.versions import DataVersions
from flows.delivery.build import build_version
from flows.endpoint.folder import SCHEMA
from flows.orchestrator.events import happened, post, scheduler_server
from flows.registry.repository import repository
from flows.registry.versions import ModelVersions
from flows.workspace import Workspace
from flows.workspace.ledger import Ledger
from serving.server.process import until
from tests.command_line import ROOT, cleanshelf
from tests.deliveries import deliver
from tests.graphs import LABELS, write_versions
from tests.prefect_api import events, post_json
from tests.scheduling import PATIENCE_S, scheduler, scheduler_log, wait_for_outcomes

pytestmark = [pytest.mark.dvc, pytest.mark.prefect]
NEVER = "0 3 29 2 *"


@pytest.fixture
def shop(tmp_path: Path) -> Workspace:
    """Workspace with two data versions, and two models of the second, which has more than 100 test photos."""
    shop = Workspace.init(tmp_path / "shop")
    versions = DataVersions(shop)
    for number in (1, 2):
        base = versions.materialise("selected") if versions.selected() else None
        folder, source = (
            versions.new_folder(),
            deliver(tmp_path / str(number), {LABELS[0]: 150, LABELS[1]: 150}, first_seed=1000 * number),
        )
        build_version(source, base=base, out=folder, parent=base.name if base else None, test_share=0.4)
        versions.commit(folder, step="ingest", message=source.name)
    models = ModelVersions(Ledger(shop.root))
    write_versions(repository(shop), tmp_path, 1, 2)
    for number in (1, 2):
        models.register({"version": number, "data_version": versions.selected()})
        models.promote(number)
    return shop


@pytest.fixture
def received() -> Iterator[tuple[str, list[str]]]:
    """Address of an HTTP server, and the bodies of the requests that it received."""
    bodies: list[str] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Receiver) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/", bodies
        server.shutdown()


def automate(url: str, receiver: str) -> None:
    """Creates the automations of docs/tasks/schedule.md."""
    example = (ROOT / "docs" / "tasks" / "schedule.md").read_text().split("```yaml\n")[1].split("```")[0]
    with temporary_settings({PREFECT_API_URL: url}), get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name("scheduled/retrain").id
        block = CustomWebhookNotificationBlock(
            name="us", url=receiver, json_data={"text": "{{subject}} {{body}}"}
        ).save("us")
        for each in yaml.safe_load(example.replace("BLOCK_ID", str(block)).replace("DEPLOYMENT_ID", str(deployment))):
            client.create_automation(AutomationCore.model_validate(each))


def write_answers(path: Path) -> Path:
    """Writes answers of low probability, as `recognise DIR --out` does."""
    rows = [dict.fromkeys(SCHEMA.names) | {"label": LABELS[0], "probability": float(p), "score": float(p)}
            for p in np.random.default_rng(0).uniform(0, 0.01, 200)]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path)
    return path


def test_events_arrive_and_automations_act(shop: Workspace, tmp_path: Path, received: tuple[str, list[str]]) -> None:
    recipe = Path(shutil.copy(ROOT / "models" / "recipes" / "smoke.toml", tmp_path / "ours.toml"))
    old, workspace = DataVersions(shop).log()[1].id, ("-w", shop.root)
    with scheduler(shop.root, recipe, "--cron", NEVER):
        assert until(lambda: (shop.state / "schedule.json").exists(), timeout_s=PATIENCE_S), scheduler_log(shop.root)
        recipe.write_text("name = 1")  # so that runs fail at once
        server = scheduler_server(shop)
        assert server is not None
        automate(server.url, received[0])

        for command in (["drift", write_answers(tmp_path / "answers.parquet")], ["data", "rollback", old], ["model", "rollback"],
                        ["ingest", deliver(tmp_path / "more", {LABELS[0]: 2}, first_seed=5000)]):  # fmt: skip
            done = cleanshelf(*command, *workspace)
            assert done.returncode == 0, done.stderr
        post(shop, happened("model.refused", to="run", name="a run", reasons=["it is worse"]))

        names = ("drift.found", "data.rolled-back", "model.rolled-back", "data.ingested", "model.refused")
        expected = {f"cleanshelf.{name}" for name in names}
        assert until(lambda: set(events(server.url)) == expected, timeout_s=30)
        found = events(server.url)
        assert found["cleanshelf.data.rolled-back"]["payload"]["data_version"] == old
        assert found["cleanshelf.model.rolled-back"]["payload"] == {"model_version": 1, "instead_of": 2}
        assert found["cleanshelf.drift.found"]["payload"]["shifts"][0]["verdict"] == "drifted"
        assert found["cleanshelf.data.ingested"]["payload"]["parent"] == old
        (artifact,) = post_json(f"{server.url}/artifacts/filter", {"artifacts": {"key": {"any_": ["drift"]}}})
        assert artifact["data"].startswith("# drifted\n\n200 recent photos")

        assert until(lambda: received[1] != [], timeout_s=30)
        assert json.loads(received[1][0]) == {"text": "CleanShelf refused a model a run: ['it is worse']"}
        assert wait_for_outcomes(shop.root, "failed", "failed"), "one run for the drift, one for the new data"


def test_commands_work_while_the_server_is_down(shop: Workspace, tmp_path: Path) -> None:
    url = "http://127.0.0.1:9/api"
    down, workspace = {"PREFECT_API_URL": url}, ("-w", shop.root)
    done = cleanshelf("drift", write_answers(tmp_path / "answers.parquet"), *workspace, env=down)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "drifted")
    assert f"drift: {url} does not answer as Prefect's API does" in done.stderr
    done = cleanshelf("model", "rollback", *workspace, env=down)
    serve = "no endpoint is running, and `cleanshelf serve` starts one with it"
    assert (done.returncode, done.stdout) == (0, f"model version 1 is the current model; {serve}\n")
    assert done.stderr.startswith(f"cleanshelf.model.rolled-back: {url} did not accept the event: ")
