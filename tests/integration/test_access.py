"""Access to a real server: tokens for inference and for control, TLS, and a server on another machine."""

from __future__ import annotations

import http.client
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tritonclient.utils import InferenceServerException

from flows.doctor import examine
from flows.endpoint.server import access, endpoint, start_endpoint
from flows.errors import InputError
from flows.recognise import ask_endpoint
from flows.registry.repository import repository
from flows.registry.versions import ModelVersions
from flows.rollback import rollback_model
from flows.watch import Watch
from flows.workspace import Workspace
from flows.workspace.ledger import Ledger
from serving.access import CONTROL_HEADER, TOKEN_HEADER, Access
from serving.errors import Forbidden, ModelNotReady, ServerUnavailable, Untrusted
from serving.repository.accelerator import Accelerator
from serving.repository.repository import ModelRepository
from serving.server import process
from serving.server.command import Listening
from serving.server.control import Endpoint
from serving.server.server import LocalServer, RunningServer
from serving.wire import connect, infer, translate
from tests.certificates import certificate
from tests.graphs import golden_images, write_versions

pytestmark = pytest.mark.triton
MakeServer = Callable[..., LocalServer]


@dataclass
class Remote:
    """Server with TLS that serves the workspace's model repository, and whose state directory is elsewhere."""

    server: LocalServer
    running: RunningServer
    workspace: Workspace

    @property
    def access(self) -> Access:
        return self.running.access

    def answering_version(self, access: Access) -> int:
        with connect(access) as client:
            return infer(
                client, golden_images(1), url=access.url, model="products", outputs=["ids"], timeout_s=5
            ).version

    def http_status(self, method: str, path: str, **headers: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.http_port, timeout=5)
        try:
            connection.request(method, path, headers=headers)
            return connection.getresponse().status
        finally:
            connection.close()


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory, local_server: MakeServer) -> Iterator[Remote]:
    """Server of version 1; versions 1 and 2 are registered."""
    folder = tmp_path_factory.mktemp("remote")
    workspace = Workspace.init(folder / "shop")
    models, versions = ModelVersions(Ledger(workspace.root)), ModelRepository(workspace.repository)
    write_versions(versions, folder, 1, 2)
    for version in (1, 2):
        models.register({"version": version, "data_version": f"data{version}", "graph_sha256": str(version)})
    for version in (2, 1):
        models.promote(version)
    versions.configure([1])
    cert, key = certificate(folder / "tls")
    server = replace(
        local_server(workspace.repository, folder / "elsewhere"), listening=Listening(certificate=cert, key=key)
    )
    started = server.start()
    try:
        yield Remote(server, started, workspace)
    finally:
        process.kill([started.pid])  # a normal stop would wait for processes of failed loads
        server.stop()


@pytest.fixture
def remote_workspace(remote: Remote, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """Workspace whose settings name the remote server; it runs no server itself."""
    access = remote.access
    for name, value in {
        "URL": access.url,
        "TOKEN": access.token,
        "CONTROL_TOKEN": access.control_token,
        "CA": access.ca,
    }.items():
        monkeypatch.setenv(f"CLEANSHELF_TRITON_{name}", str(value))
    return remote.workspace


@pytest.mark.parametrize("token", ["", "guess", "control"])
def test_inference_needs_its_own_token(remote: Remote, token: str) -> None:
    wrong = replace(remote.access, token=remote.access.control_token if token == "control" else token)
    with pytest.raises(Forbidden, match=r"docs/tasks/security\.md") as caught:
        remote.answering_version(wrong)
    assert isinstance(caught.value, ValueError), "a retry would not help"
    assert remote.access.token not in str(caught.value)
    assert remote.answering_version(replace(remote.access, control_token="")) in (1, 2)


@pytest.mark.parametrize("token", ["", "inference"])
def test_the_inference_token_does_not_permit_control(remote: Remote, token: str) -> None:
    wrong = replace(remote.access, control_token=remote.access.token if token else "")
    with Endpoint(wrong) as control, connect(wrong) as client:
        for forbidden in (control.load, control.active, control._start_unloading):
            with pytest.raises(Forbidden):
                forbidden()
        with pytest.raises(InferenceServerException) as caught:
            client.register_system_shared_memory("mine", "/anything", 8)
    assert isinstance(translate(caught.value, "here"), Forbidden)
    assert remote.answering_version(remote.access) in (1, 2)


def test_http_requires_the_same_tokens(remote: Remote) -> None:
    infer, load = "/v2/models/products/infer", "/v2/repository/models/products/load"
    token, control = {TOKEN_HEADER: remote.access.token}, {CONTROL_HEADER: remote.access.control_token}
    assert [remote.http_status("POST", infer), remote.http_status("POST", infer, **control)] == [403, 403]
    assert remote.http_status("POST", infer, **token) == 400, "the token is accepted, the empty request is not"
    assert [remote.http_status("POST", load), remote.http_status("POST", load, **token)] == [403, 403]
    assert remote.http_status("POST", load, **control) == 200
    assert [remote.http_status("GET", path, **token) for path in ("/v2/logging", "/v2/trace/setting")] == [403, 403]
    assert remote.http_status("GET", "/v2/health/ready") == 200


@pytest.mark.parametrize(
    "path", ["/v2/models/..%2f..%2fetc%2fpasswd/infer", "/v2/models/products/versions/..%2f1/infer"]
)
def test_no_path_of_a_request_reaches_the_files(remote: Remote, path: str) -> None:
    assert remote.http_status("POST", path, **{TOKEN_HEADER: remote.access.token}) in (400, 404)


def test_tokens_are_kept_and_private(remote: Remote) -> None:
    files = [remote.server.state / name for name in ("triton.token", "triton.control-token")]
    assert [path.stat().st_mode & 0o777 for path in files] == [0o600, 0o600]
    assert [path.read_text().strip() for path in files] == [remote.access.token, remote.access.control_token]
    assert remote.access.token != remote.access.control_token
    assert remote.access.token not in repr(remote.access)
    assert remote.access.token not in (remote.server.state / "triton.json").read_text()


def test_a_server_whose_certificate_no_authority_signed_is_refused(remote: Remote, tmp_path: Path) -> None:
    other, _ = certificate(tmp_path / "other")
    for wrong in (replace(remote.access, ca=other), replace(remote.access, ca=None)):
        with pytest.raises(Untrusted, match="name the authority"):
            remote.answering_version(wrong)
    with pytest.raises(ServerUnavailable):
        remote.answering_version(replace(remote.access, url=remote.access.address, ca=None))


def test_a_restart_would_use_the_same_settings(remote: Remote) -> None:
    assert remote.running.again(remote.server.environment) == remote.server


def test_the_same_verbs_control_a_remote_server(remote: Remote, remote_workspace: Workspace, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    Image.fromarray(np.full((20, 20, 3), 90, np.uint8)).save(photo)
    for version in (2, 1):
        assert rollback_model(remote_workspace, version) == version
        [answer] = ask_endpoint(remote_workspace, [photo])
        assert (answer["model_version"], answer["data_version"]) == (version, f"data{version}")
    with endpoint(remote_workspace) as found:
        assert found == remote.access
    checks = {check.part: (check.ok, check.detail) for check in examine(remote_workspace)}
    assert checks["endpoint"] == (True, f"gRPC at {remote.access.url}, model version 1 answers")
    with pytest.raises(InputError, match="unset it to run one here"):
        start_endpoint(remote_workspace, http_port=1, grpc_port=2, metrics_port=3)


@pytest.mark.faults
def test_a_remote_server_is_healed(remote: Remote, remote_workspace: Workspace) -> None:
    with Endpoint(remote.access) as control:
        control.unload()
        with pytest.raises(ModelNotReady):
            remote.answering_version(remote.access)
        watch = Watch(remote_workspace, None)
        watch.reconcile()
        assert control.active() == (), "a single check must not unload a model that others may wait for"
        watch.reconcile()
        assert control.active() == (1,)


@pytest.mark.parametrize("version", [1, 2])
def test_a_missing_gpu_is_an_error_and_not_a_silent_cpu(remote: Remote, version: int) -> None:
    versions = replace(repository(remote.workspace), accelerator=Accelerator("cuda"))
    with Endpoint(remote.access) as control:
        before, text = control.active(), versions.configuration()
        with pytest.raises(ModelNotReady, match="GPU"):
            control.switch(versions, version)
        assert (control.active(), versions.configuration()) == (before, text)
        control.golden_check(versions, *before)


def test_a_changed_setting_reaches_the_server(remote_workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLEANSHELF_TRITON_INSTANCES", "3")
    Watch(remote_workspace, None).reconcile()
    with Endpoint(access(remote_workspace) or "") as control:
        assert control.active() == (1,)
        assert control._client.get_model_config("products").config.instance_group[0].count == 3
