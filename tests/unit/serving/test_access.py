from __future__ import annotations

import threading
from pathlib import Path

import pytest

from serving.access import Access, keep_token
from serving.errors import BadRequest
from serving.server.command import Listening, arguments
from tests.breaking import ways


def test_a_client_carries_only_the_tokens_that_it_has() -> None:
    prefix = "triton-grpc-protocol-cleanshelf"
    assert Access("h:1").headers() == {}
    assert Access("h:1", "ask").headers() == {f"{prefix}-token": "ask"}
    assert Access("h:1", "ask", "load").headers() == {f"{prefix}-token": "ask", f"{prefix}-control-token": "load"}


def test_a_scheme_means_tls(tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_text("")
    plain, secured = Access.of("127.0.0.1:1"), Access("grpcs://h:1", ca=ca)
    assert (plain.address, plain.options()["ssl"]) == ("127.0.0.1:1", False)
    assert (secured.address, secured.options()["ssl"], secured.options()["root_certificates"]) == ("h:1", True, ca)
    assert ("grpc.enable_http_proxy", 0) in plain.options()["channel_args"]
    assert ("grpc.enable_http_proxy", 0) not in secured.options()["channel_args"]
    with pytest.raises(BadRequest, match="write grpcs://h:1"):
        Access("h:1", ca=ca)
    with pytest.raises(BadRequest, match="no such file"):
        Access("grpcs://h:1", ca=tmp_path / "absent")


@pytest.mark.parametrize(("host", "is_ours"), [("127.0.0.2", True), ("[::1]", True), ("192.0.2.1", False)])
def test_a_proxy_is_not_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch, host: str, is_ours: bool) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
    assert (("grpc.enable_http_proxy", 0) in Access(f"{host}:8001").options()["channel_args"]) == is_ours


def test_one_token_is_made_however_many_ask_at_once(tmp_path: Path) -> None:
    path, found = tmp_path / "state" / "token", []
    threads = [threading.Thread(target=lambda: found.append(keep_token(path))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found) == {path.read_text().strip()}
    assert len(found[0]) == 64
    assert path.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in path.parent.iterdir()] == ["token"]


@pytest.mark.faults
def test_a_token_that_is_none_any_more_is_made_anew(tmp_path: Path) -> None:
    """An empty token would admit every client; one with a flipped bit is another token, which is refused (I21)."""
    path = tmp_path / "token"
    first = keep_token(path)
    for way in ways(path, flips=16):
        found = keep_token(path)
        assert found != first, way
        assert len(found) >= 32, way
        assert found == keep_token(path)
    path.write_text("the owner's-own\n".replace(" ", "-"))
    assert keep_token(path) == "the-owner's-own"


def test_http_never_leaves_the_loopback_and_grpc_only_with_tls(tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    for path in (cert, key):
        path.write_text("")
    listening = Listening("0.0.0.0", cert, key)  # what is tested
    line = arguments(models=tmp_path, load=["products"], listening=listening, ports={}, access=Access(""), backends=())
    assert {"--grpc-address=0.0.0.0", "--grpc-use-ssl=true", f"--grpc-server-cert={cert}"} <= set(line)
    assert {"--http-address=127.0.0.1", "--metrics-address=127.0.0.1", "--load-model=products"} <= set(line)
    assert (listening.reached_at, listening.authority) == ("127.0.0.1", cert)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"host": "10.0.0.7"}, "tokens would cross the network readable"),
        ({"certificate": Path("/absent")}, "give both"),
        ({"certificate": Path("/absent"), "key": Path("/absent")}, "/absent: no such file"),
    ],
)
def test_what_would_not_be_safe_is_refused(given: dict, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        Listening(**given)
