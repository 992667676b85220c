"""Work pools agree with their templates, the image and Prefect's own templates; checked without an engine."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from typing import Any

import pytest
import yaml

from tests.command_line import ROOT

CONTAINERS = ("docker", "kubernetes")
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
# Variables of prefect-docker 0.7.4; Prefect 3.8.8 contains the metadata of an earlier release.
LATER = {"container_create_kwargs"}


def template(kind: str) -> dict[str, Any]:
    return json.loads((ROOT / "pools" / f"{kind}.json").read_bytes())


def deployments() -> dict[str, dict[str, Any]]:
    """The deployments of prefect.yaml by the kind of their work pool."""
    listed = yaml.safe_load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))["deployments"]
    return {each["work_pool"]["name"].removeprefix("retrain").lstrip("-") or "process": each for each in listed}


def placeholders(part: object) -> set[str]:
    return set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(part)))


@pytest.mark.parametrize("kind", CONTAINERS)
def test_a_template_uses_settings_that_its_worker_knows(kind: str) -> None:
    shipped = json.loads(
        (files("prefect") / "server/api/collections_data/views/aggregate-worker-metadata.json").read_bytes()
    )
    known = shipped[f"prefect-{kind}"][kind]["default_base_job_configuration"]["job_configuration"]
    ours = template(kind)

    assert set(ours["job_configuration"]) <= set(known) | LATER
    assert placeholders(ours["job_configuration"]) | {"env"} == set(ours["variables"]["properties"])
    assert set(ours["variables"]["required"]) <= set(ours["variables"]["properties"])


@pytest.mark.parametrize("kind", CONTAINERS)
def test_job_variables_are_those_of_the_template(kind: str) -> None:
    given = deployments()[kind]["work_pool"]["job_variables"]
    variables = template(kind)["variables"]

    assert set(variables["required"]) <= set(given) <= set(variables["properties"])
    assert given["image_pull_policy"] in variables["properties"]["image_pull_policy"]["enum"]


@pytest.mark.parametrize("kind", CONTAINERS)
def test_a_container_finds_code_and_workspace_where_the_image_has_them(kind: str) -> None:
    deployment, workspace = deployments()[kind], re.search(r"CLEANSHELF_WORKSPACE=(\S+)", DOCKERFILE)
    (step,) = deployment["pull"]

    assert workspace
    assert f"WORKDIR {step['prefect.deployments.steps.set_working_directory']['directory']}\n" in DOCKERFILE
    assert deployment["parameters"]["workspace"] == workspace[1]
    job = deployment["work_pool"]["job_variables"]
    mounts = template("kubernetes")["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]["containers"][0]
    volumes = {"docker": job.get("volumes"), "kubernetes": [f":{mounts['volumeMounts'][0]['mountPath']}"]}[kind]
    assert [volume.rpartition(":")[2] for volume in volumes] == [workspace[1]]


@pytest.mark.parametrize("kind", CONTAINERS)
def test_the_image_is_the_one_that_compose_builds(kind: str) -> None:
    built = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["x-flows"]["image"]

    assert deployments()[kind]["work_pool"]["job_variables"]["image"] == built


def test_one_schedule_is_switched_on() -> None:
    switched_on = [kind for kind, each in deployments().items() if each["schedules"][0].get("active", True)]

    assert set(deployments()) == {"process", *CONTAINERS}
    assert switched_on == ["process"]


def test_no_token_is_written_into_a_deployment() -> None:
    assert "token" not in (ROOT / "prefect.yaml").read_text(encoding="utf-8").lower()
