"""Deployment files agree with each other and with the code; checked without a container engine."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from contract.environment import NO_PROXY, PRIVATE, TELEMETRY_OFF
from flows.settings import Settings
from models.recipe.config import recipe_names
from serving.access import Access
from serving.server.command import QUANTILES, Listening, arguments

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")


def load(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def stages() -> dict[str, str]:
    """The lines of the Dockerfile by target."""
    parts = re.split(r"^FROM \S+ AS (\w+)$", DOCKERFILE, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def variables(stage: str) -> dict[str, str]:
    """Variables that a target sets by ENV."""
    return dict(
        re.findall(r"\b([A-Z_]+)=(\S+)", " ".join(re.findall(r"^ENV (.+)$", stages()[stage], flags=re.MULTILINE)))
    )


def copied(stage: str) -> list[str]:
    """Paths that a target copies from the repository."""
    lines = re.findall(r"^COPY (.+)$", stages()[stage], flags=re.MULTILINE)
    return [source for line in lines for source in line.split()[:-1]]


def test_everything_copied_exists_and_is_not_ignored() -> None:
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    sources = {source for stage in stages() for source in copied(stage)}

    assert sources
    assert [source for source in sources if not (ROOT / source).exists()] == []
    assert sources == let_in


def test_the_train_image_has_no_orchestrator() -> None:
    assert [name for name in ("flows", "serving") if name in copied("train")] == []
    assert 'pip install --no-cache-dir -c constraints.txt ".[train]"' in stages()["train"]


@pytest.mark.parametrize("target", ["train", "flows"])
def test_images_install_pinned_and_do_not_run_as_root(target: str) -> None:
    installs = re.findall(r"pip install (.+)$", stages()[target], flags=re.MULTILINE)

    assert installs
    assert [line for line in installs if "-c constraints.txt" not in line] == []
    assert stages()[target].rindex("USER shelf") > stages()[target].rindex("RUN ")


def test_images_switch_off_telemetry_as_the_flows_do() -> None:
    settings = (ROOT / "flows" / "orchestrator" / "isolation.py").read_text(encoding="utf-8")
    private = re.findall(r"\b(PREFECT_\w*(?:ANALYTICS|TELEMETRY|PROMOTIONAL)\w*)=(\w+)", stages()["flows"])

    assert len(private) == 4
    assert [name for name, value in private if f'"{name}": "{value}"' not in settings] == []
    assert PRIVATE.items() <= variables("base").items(), "all images are made from it"
    assert load("compose.yaml")["services"]["triton"]["environment"] == {TELEMETRY_OFF: "1"}


def test_images_import_nothing_from_the_current_folder() -> None:
    assert (variables("base")["PYTHONSAFEPATH"], variables("base")["PYTHONPATH"]) == ("1", "/app")
    local = load("prefect.yaml")["deployments"][0]
    assert local["work_pool"]["job_variables"] == {"env": {"PYTHONSAFEPATH": "1"}}


def test_constraints_pin_the_requirements_of_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins: dict[str, list[str]] = {}
    for line in lines:
        pin = Requirement(line)
        pins.setdefault(pin.name, []).append(str(pin.specifier).removeprefix("=="))
    required = [Requirement(text) for group in project["optional-dependencies"].values() for text in group]
    required += [Requirement(text) for text in project["dependencies"]]

    assert {"prefect", "fastapi", "dvc", "torch"} <= {each.name for each in required}
    for each in required:
        if each.name != project["name"]:
            assert each.name in pins, f"{each.name} is not pinned"
            assert all(each.specifier.contains(version) for version in pins[each.name]), str(each)


def test_prefect_is_one_version_everywhere() -> None:
    pinned = load("prefect.yaml")["prefect-version"]

    assert f"prefect=={pinned}" in (ROOT / "constraints.txt").read_text().splitlines()
    assert f'"prefect=={pinned}"' in (ROOT / "pyproject.toml").read_text()
    assert f"| prefect | {pinned} |" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"prefect             yes  {pinned}\n" in (ROOT / "docs" / "start" / "install.md").read_text(
        encoding="utf-8"
    )


@pytest.mark.parametrize(
    ("name", "works", "fails"),
    [
        pytest.param("sqlalchemy", "2.0.58", "2.1.9", id="schedules would never fire"),
        pytest.param(
            "whenever", "0.11.0", "0.10.5", id="cron schedules would end with an error on Python 3.11 and 3.12"
        ),
    ],
)
def test_versions_that_prefect_needs_but_does_not_require(name: str, works: str, fails: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    required = next(Requirement(text) for text in project["optional-dependencies"]["flows"] if text.startswith(name))

    assert required.specifier.contains(works)
    assert not required.specifier.contains(fails)


def test_deployments_name_a_flow_and_its_parameters() -> None:
    for deployment in load("prefect.yaml")["deployments"]:
        file, name = deployment["entrypoint"].split(":")
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        flow = next((node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name), None)

        assert flow is not None, f"{file} has no {name}"
        assert any("flow" in ast.unparse(decorator) for decorator in flow.decorator_list)
        assert deployment["parameters"]["recipe"] in recipe_names()
        assert set(deployment["parameters"]) <= {argument.arg for argument in [*flow.args.args, *flow.args.kwonlyargs]}


def test_the_worker_polls_the_pool_of_its_deployment_with_its_variables_set() -> None:
    line = load("compose.yaml")["services"]["worker"]["command"][-1]
    deployment = load("prefect.yaml")["deployments"][0]
    pool = deployment["work_pool"]["name"]
    variables = re.findall(r"\{\{ \$(\w+) \}\}", str(deployment["parameters"]))

    assert f"deploy --name {deployment['name']} " in line
    assert f"worker start --pool {pool} " in line
    assert f'"--pool", "{pool}"' in stages()["flows"]
    assert variables == ["CLEANSHELF_WORKSPACE"]
    assert "CLEANSHELF_WORKSPACE=/" in stages()["flows"]


def test_compose_builds_a_target_of_the_dockerfile() -> None:
    services = load("compose.yaml")["services"]
    built = {service["build"]["target"] for service in services.values() if "build" in service}

    assert built == {"flows"}
    assert built <= set(stages())


def test_triton_is_unmodified_and_serves_the_workspace_repository_read_only() -> None:
    triton = load("compose.yaml")["services"]["triton"]
    layout = (ROOT / "docs" / "inside" / "architecture.md").read_text(encoding="utf-8").partition("## A workspace")[2]

    assert "build" not in triton
    assert re.fullmatch(r"\$\{TRITON_IMAGE:\?[^}]+\}", triton["image"]), "a default would name a registry"
    assert re.search(r"^  repository/ +the Triton model repository", layout, flags=re.MULTILINE)
    assert [volume.partition("}")[2] for volume in triton["volumes"]] == ["/repository:/models:ro"]
    assert {"--model-repository=/models", "--model-control-mode=explicit", "--load-model=products"} <= set(
        triton["command"]
    )


def test_compose_restricts_protocols_as_our_own_server_does() -> None:
    command = load("compose.yaml")["services"]["triton"]["command"]
    restricted = {re.sub(r"\$\{(\w+):\?\}", r"<\1>", option) for option in command if "-restricted-" in option}
    ours = arguments(
        models=Path("/models"),
        load=(),
        listening=Listening(),
        ports={},
        access=Access("", "<CLEANSHELF_TRITON_TOKEN>", "<CLEANSHELF_TRITON_CONTROL_TOKEN>"),
        backends=(),
    )

    assert restricted == {option for option in ours if "-restricted-" in option}
    assert len(restricted) == 4
    assert QUANTILES in command
    assert QUANTILES in ours


@pytest.mark.parametrize("name", ["worker", "watchdog", "prefect"])
def test_services_ask_no_proxy_for_each_other(name: str) -> None:
    services = load("compose.yaml")["services"]
    for spelling in NO_PROXY:
        assert {"127.0.0.1", "prefect", "triton"} <= set(services[name]["environment"][spelling].split(","))


@pytest.mark.parametrize("name", ["worker", "watchdog"])
def test_services_that_control_the_server_have_its_settings(name: str) -> None:
    variables = load("compose.yaml")["services"][name]["environment"]
    fields = {key.removeprefix("CLEANSHELF_").lower() for key in variables if key.startswith("CLEANSHELF_")}

    assert variables["CLEANSHELF_TRITON_URL"] == "triton:8001"
    assert fields == {f"triton_{name}" for name in ("url", "token", "control_token", "accelerator", "gpu")}
    assert fields <= set(Settings.model_fields)


def test_a_gpu_changes_one_setting() -> None:
    base, gpu = load("compose.yaml")["services"], load("compose.gpu.yaml")["services"]
    default = "${CLEANSHELF_TRITON_ACCELERATOR:-cuda}"

    assert set(gpu) <= set(base)
    for name in ("worker", "watchdog"):
        assert gpu[name]["environment"] == {"CLEANSHELF_TRITON_ACCELERATOR": default}
    for name in ("triton", "worker"):
        assert gpu[name]["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]
    assert gpu["triton"]["volumes"] == [f"engines:{Settings().triton_engines}"]


def test_shared_memory_of_clients_adds_one_option() -> None:
    shell, option, script = load("compose.shm.yaml")["services"]["triton"]["entrypoint"]
    told = script.replace("$$", "$").replace("/opt/nvidia/nvidia_entrypoint.sh", "printf '%s\\n'")
    command = load("compose.yaml")["services"]["triton"]["command"]
    done = subprocess.run(
        [shell, option, told.replace("exec ", ""), *command], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [*command, "--allow-client-shm=true"]


def test_services_mount_the_workspace_where_the_image_expects_it() -> None:
    services = load("compose.yaml")["services"]
    path = re.search(r"CLEANSHELF_WORKSPACE=(\S+)", stages()["flows"])

    assert path
    for name in ("prefect", "worker", "watchdog"):
        assert [volume.rpartition(":")[2] for volume in services[name]["volumes"]] == [path[1]]


def test_no_port_is_open_to_other_machines() -> None:
    ports = [port for service in load("compose.yaml")["services"].values() for port in service.get("ports", ())]

    assert len(ports) == 4
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []


def test_hooks_run_tools_that_are_pinned() -> None:
    hooks = [hook for repo in load(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    tools = {hook["entry"].split()[0].removeprefix(".venv/bin/") for hook in hooks if ".venv/bin/" in hook["entry"]}
    distributions = {"lint-imports": "import-linter"}
    pinned = {line.partition("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines()}

    assert tools == {"ruff", "lint-imports", "codespell"}
    assert [tool for tool in tools if distributions.get(tool, tool) not in pinned] == []
