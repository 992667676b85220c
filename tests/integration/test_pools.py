"""prefect.yaml on a real server: every deployment fits its work pool, and a worker executes due runs."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from docker.types import HostConfig
from prefect import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL

from flows.orchestrator.server import end
from flows.scheduler.record import history
from flows.workspace import Workspace
from tests.command_line import ROOT
from tests.scheduling import wait_for_outcomes

pytestmark = pytest.mark.prefect
TRITON = ("CLEANSHELF_TRITON_URL", "CLEANSHELF_TRITON_TOKEN", "CLEANSHELF_TRITON_CONTROL_TOKEN")
HOME = {"PREFECT_HOME": "/tmp/prefect"}  # instead of the worker's, a folder that the container does not have
POOLS = {"retrain": "process", "retrain-docker": "docker", "retrain-kubernetes": "kubernetes"}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace without data."""
    return Workspace.init(tmp_path_factory.mktemp("pools") / "shop")


@pytest.fixture(scope="module")
def server(prefect_server: None) -> str:
    """Address of a server with the work pools and our job templates for containers."""
    with get_client(sync_client=True) as client:
        for name, kind in POOLS.items():
            client.create_work_pool(WorkPoolCreate(name=name, type=kind, base_job_template=template(kind)))
    return PREFECT_API_URL.value()


def template(kind: str) -> dict[str, Any]:
    file = ROOT / "pools" / f"{kind}.json"
    return json.loads(file.read_bytes()) if file.exists() else {}


@pytest.fixture(scope="module")
def environment(server: str, shop: Workspace) -> dict[str, str]:
    """Environment of the commands in compose.yaml."""
    settings = {
        "PREFECT_API_URL": server,
        "PREFECT_HOME": str(shop.state / "prefect"),
        "CLEANSHELF_WORKSPACE": str(shop.root),
    }
    paths = {"PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return os.environ | settings | paths


@pytest.fixture(scope="module")
def deployed(environment: dict[str, str]) -> dict[str, Any]:
    """Deployments by name, as the server lists them."""
    command = ["prefect", "--no-prompt", "deploy", "--all"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    with get_client(sync_client=True) as client:
        return {each.name: each for each in client.read_deployments()}


@pytest.mark.slow
def test_every_deployment_is_registered_with_the_pool_it_names(deployed: dict[str, Any], shop: Workspace) -> None:
    assert {each.work_pool_name for each in deployed.values()} == set(POOLS)
    assert {each.entrypoint for each in deployed.values()} == {"flows/scheduler/job.py:scheduled"}
    workspaces = {name: each.parameters["workspace"] for name, each in deployed.items()}
    assert workspaces == {"weekly": str(shop.root), "weekly-docker": "/workspace", "weekly-kubernetes": "/workspace"}
    assert deployed["weekly-docker"].job_variables["volumes"] == [f"{shop.root}:/workspace"]
    active = {name: [schedule.active for schedule in each.schedules] for name, each in deployed.items()}
    assert active == {"weekly": [True], "weekly-docker": [False], "weekly-kubernetes": [False]}
    assert {each.global_concurrency_limit.limit for each in deployed.values()} == {1}


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("weekly-docker", {"image": "cleanshelf-flows", "volumes": "/shop:/workspace"}),
        ("weekly-docker", {"image": "cleanshelf-flows", "image_pull_policy": "Sometimes"}),
        ("weekly-kubernetes", {"image": "cleanshelf-flows", "claim": "shop", "gpus": "one"}),
    ],
)
def test_a_pool_refuses_job_variables_that_do_not_fit(
    deployed: dict[str, Any], name: str, wrong: dict[str, Any]
) -> None:
    known = deployed[name]
    with get_client(sync_client=True) as client, pytest.raises(PrefectHTTPStatusError, match=r"409|422"):
        client.create_deployment(known.flow_id, "wrong", work_pool_name=known.work_pool_name, job_variables=wrong)


async def job_configuration(kind: str, configuration: Any, job_variables: dict[str, Any]) -> Any:
    return await configuration.from_template_and_values(template(kind), job_variables)


def test_the_docker_worker_makes_a_container_of_a_deployment(deployed: dict[str, Any]) -> None:
    worker = pytest.importorskip("prefect_docker.worker", reason="the extra `pools` is not installed")
    job = asyncio.run(
        job_configuration("docker", worker.DockerWorkerJobConfiguration, deployed["weekly-docker"].job_variables)
    )
    (gpus,) = HostConfig(version="1.43", device_requests=job.container_create_kwargs["device_requests"])[
        "DeviceRequests"
    ]

    assert (job.image, job.image_pull_policy) == ("cleanshelf-flows", "Never")
    assert job.volumes == deployed["weekly-docker"].job_variables["volumes"]
    assert (gpus["Count"], gpus["Capabilities"]) == (-1, [["gpu"]])
    assert job.container_create_kwargs["user"] == "1000:1000"
    assert job.env == dict.fromkeys(TRITON, "") | HOME


def test_the_kubernetes_worker_makes_a_job_of_a_deployment(deployed: dict[str, Any]) -> None:
    worker = pytest.importorskip("prefect_kubernetes.worker", reason="the extra `pools` is not installed")
    given = deployed["weekly-kubernetes"].job_variables
    job = asyncio.run(job_configuration("kubernetes", worker.KubernetesWorkerJobConfiguration, given))
    pod = job.job_manifest["spec"]["template"]["spec"]

    assert pod["containers"][0]["image"] == "cleanshelf-flows"
    assert pod["containers"][0]["resources"]["limits"] == {"memory": "8Gi", "nvidia.com/gpu": 1}
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "cleanshelf-workspace"}
    assert pod["securityContext"] == {"runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 1000}
    assert job.env == HOME
    assert "{{" not in str(job.job_manifest)


@pytest.mark.slow
def test_the_worker_of_compose_executes_due_runs(
    deployed: dict[str, Any], environment: dict[str, str], shop: Workspace
) -> None:
    """The workspace has no data, so the run ends soon with that reason."""
    line = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"]["worker"]["command"]
    with (shop.root / "worker.log").open("wb") as log:
        worker = subprocess.Popen(line, env=environment, cwd=ROOT, stdin=subprocess.PIPE, stdout=log, stderr=log,
                                  start_new_session=True)  # fmt: skip
    try:
        with get_client(sync_client=True) as client:
            client.create_flow_run_from_deployment(deployed["weekly"].id)
        assert wait_for_outcomes(shop.root, "failed"), (shop.root / "worker.log").read_text()
    finally:
        end(worker)
    (run,) = history(shop)
    assert "is not a data version" in run.why
