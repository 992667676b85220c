"""Malformed requests to a real server: each is answered, and no other client is affected."""

from __future__ import annotations

import http.client
import json
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from serving.access import TOKEN_HEADER
from serving.server.server import LocalServer
from tests.graphs import SIZE, golden_images
from tests.triton import Load, Triton, closed_loop, triton_with_two_versions

pytestmark = [pytest.mark.triton, pytest.mark.faults]
IMAGE = golden_images(1)
BYTES = IMAGE.tobytes()
ENCODED: dict[str, Any] = {"name": "photo", "kind": "BYTES", "shape": (1, 1), "model": "products-encoded"}


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory, local_server: Callable[..., LocalServer]) -> Iterator[Triton]:
    with triton_with_two_versions(tmp_path_factory.mktemp("triton"), local_server) as triton:
        yield triton


@pytest.fixture(scope="module")
def others(triton: Triton) -> Iterator[Load]:
    """Another client, which keeps sending requests while the faults happen."""
    with closed_loop(triton, clients=1) as load:
        yield load


@pytest.fixture(autouse=True)
def _others_are_not_affected(others: Load) -> Iterator[None]:
    """Checks after each fault that the other client has had only right answers, and still gets answers."""
    yield
    assert others.wait_for_answers(1)
    faults, others.faults = others.faults, []  # so that only one test fails for it
    assert faults == []


def grpc_request(
    *,
    name: str = "image",
    kind: str = "UINT8",
    shape: tuple[int, ...] = IMAGE.shape,
    output: str = "ids",
    raw: bytes | None = BYTES,
    model: str = "products",
) -> service_pb2.ModelInferRequest:
    """Valid request, except for the arguments that are given."""
    return service_pb2.ModelInferRequest(
        model_name=model,
        inputs=[{"name": name, "datatype": kind, "shape": shape}] if name else [],
        outputs=[{"name": output}],
        raw_input_contents=[raw] if raw is not None else [],
    )


def infer(triton: Triton, request: service_pb2.ModelInferRequest) -> service_pb2.ModelInferResponse:
    with grpc.insecure_channel(triton.access.address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        return stub.ModelInfer(request, timeout=10, metadata=tuple(triton.access.headers().items()))


def strings(*lengths: int, data: bytes = b"photo") -> bytes:
    """BYTES elements of five bytes each, with headers that claim these lengths."""
    return b"".join(struct.pack("<I", length) + data for length in lengths)


def test_a_valid_grpc_request(triton: Triton) -> None:
    assert infer(triton, grpc_request()).model_version == "1"
    assert infer(triton, grpc_request(**ENCODED, raw=strings(5))).model_version == "1"


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"name": "picture"}, "unexpected inference input 'picture'"),
        ({"name": ""}, "expected 1 inputs but got 0"),
        ({"output": "price"}, "unexpected inference output 'price'"),
        ({"kind": "FP32"}, "data-type is 'FP32'"),
        ({"kind": "UINT9"}, "data-type is '<invalid>'"),
        ({"shape": (1, SIZE, SIZE, 3, 1)}, "unexpected shape"),
        ({"shape": (1, SIZE, SIZE, 2)}, "unexpected shape"),
        ({"shape": (-1, SIZE, SIZE, 3)}, "byte size mismatch"),
        ({"raw": BYTES[:-1]}, "Expected 768, got 767"),
        ({"raw": BYTES + b"!"}, "Expected 768, got 769"),
        ({"raw": None}, "unable to find data"),
        ({**ENCODED, "raw": strings(2**31)}, "expecting string of length 2147483648"),
        ({**ENCODED, "raw": strings(2)}, "incomplete string length indicator"),
        ({**ENCODED, "raw": strings(5, 5)}, "unexpected number of string elements 2"),
        ({**ENCODED, "raw": b""}, "expected 1 string elements"),
        ({**ENCODED, "raw": b"\1"}, "incomplete string length indicator"),
        ({**ENCODED, "raw": b"p", "kind": "UINT8"}, "data-type is 'UINT8'"),
        ({**ENCODED, "raw": strings(*[5] * 9), "shape": (9, 1)}, "batch-size must be <= 8"),
        ({**ENCODED, "raw": b"", "shape": (0, 1)}, "expected 1 string elements"),
        ({**ENCODED, "raw": strings(5, 5), "shape": (1, 2)}, "unexpected shape"),
        ({**ENCODED, "raw": strings(5), "name": "image"}, "unexpected inference input 'image'"),
    ],
)
def test_a_malformed_grpc_request_is_refused(triton: Triton, fault: dict[str, Any], message: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        infer(triton, grpc_request(**fault))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert message in caught.value.details()


def test_a_false_batch_size_affects_only_its_batch(triton: Triton, others: Load) -> None:
    """Triton keeps 32 bits of a batch size, so this one passes as 0 until it is joined with other requests."""
    for _ in range(30):
        with pytest.raises(grpc.RpcError, match="max allowed is 8"):
            infer(triton, grpc_request(shape=(2**40, SIZE, SIZE, 3)))
    assert others.wait_for_answers(1)  # so that requests joined with the last false one have ended too
    assert all("send it again" in fault for fault in others.faults)
    others.faults.clear()


def post(triton: Triton, body: bytes, *, path: str = "/v2/models/products/infer", header: str = "") -> tuple[int, str]:
    """Status and text of the server's answer to a POST; `header` claims a length of the JSON before the tensors."""
    connection = http.client.HTTPConnection("127.0.0.1", triton.server.http_port, timeout=10)
    headers = {TOKEN_HEADER: triton.access.token} | ({"Inference-Header-Content-Length": header} if header else {})
    try:
        connection.request("POST", path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(errors="replace")
    finally:
        connection.close()


def http_json(*, size: object = len(BYTES), **changes: object) -> bytes:
    """JSON of a valid HTTP request, whose pixels follow as bytes, except for the arguments that are given."""
    tensor = {"name": "image", "datatype": "UINT8", "shape": list(IMAGE.shape), **changes}
    inputs = [{**tensor, "parameters": {"binary_data_size": size}}]
    return json.dumps({"inputs": inputs, "outputs": [{"name": "ids"}]}).encode()


def test_a_valid_http_request(triton: Triton) -> None:
    status, text = post(triton, http_json() + BYTES, header=str(len(http_json())))
    assert (status, json.loads(text)["model_version"]) == (200, "1")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"{}",
        b"\xff\0" * 50,
        b"[" * 100_000,
        http_json()[:-9],
        b'{"inputs": 7}',
        b'{"inputs": [7]}',
        http_json(shape="many"),
        http_json(shape=[1.5]),
        http_json(name=7),
        http_json(datatype=None),
        http_json(size=-1),
        http_json(size="x"),
        http_json(size=2**70),
    ],
    ids=range(17),
)
def test_garbage_in_http_is_refused(triton: Triton, body: bytes) -> None:
    status, text = post(triton, body)
    assert status in (400, 500)  # Triton reports some faults of the JSON as its own
    assert json.loads(text)["error"]


@pytest.mark.parametrize("header", ["-1", "0", "x", "10", "99999999", str(2**70)])
def test_a_false_header_length_is_refused(triton: Triton, header: str) -> None:
    status, text = post(triton, http_json() + BYTES, header=header)
    assert status in (400, 500)
    assert json.loads(text)["error"]


@pytest.mark.parametrize("size", [0, 1, len(BYTES) + 1, 2**40])
def test_a_false_size_is_refused(triton: Triton, size: int) -> None:
    header = http_json(size=size)
    status, text = post(triton, header + BYTES, header=str(len(header)))
    assert status == 400
    assert "additional" in text


@pytest.mark.parametrize(
    "path",
    [
        "/v2/models/elsewhere/infer",
        "/v2/models/products/versions/9/infer",
        "/v2/models/products/versions/x/infer",
        "/v2/models/products%00/infer",
        "/v2/models/../../../../../../etc/passwd",
        "/v2/models/..%2f..%2fstate/infer",
    ],
)
def test_an_unknown_path_is_not_found(triton: Triton, path: str) -> None:
    assert post(triton, http_json() + BYTES, path=path, header=str(len(http_json())))[0] == 404


POST = b"POST /v2/models/products/infer HTTP/1.1\r\n"


@pytest.mark.parametrize(
    "sent",
    [
        b"\0\xff" * 500,
        b"GET\r\n\r\n",
        POST + b"Content-Length: -5\r\n\r\n",
        POST + b"Content-Length: 99999999999999999999\r\n\r\n",
        POST + b"Content-Length: 1000\r\n\r\nbroken off",
        POST + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n",
        POST + b"A: " + b"a" * 1_000_000 + b"\r\n\r\n",
        b"POST /" + b"a" * 1_000_000 + b" HTTP/1.1\r\n\r\n",
    ],
    ids=["noise", "no version", "negative length", "endless", "cut off", "bad chunk", "long header", "long path"],
)
@pytest.mark.parametrize("port", ["http_port", "grpc_port"])
def test_bytes_that_are_not_http_end_the_connection(triton: Triton, sent: bytes, port: str) -> None:
    with socket.create_connection(("127.0.0.1", getattr(triton.server, port)), timeout=10) as connection:
        try:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass
        except TimeoutError:
            pytest.fail("the server waits for more bytes")
        except OSError:
            pass  # it closed the connection before it had read all bytes


def test_clients_that_disconnect_or_never_finish(triton: Triton) -> None:
    with_body = POST + f"{TOKEN_HEADER}: {triton.access.token}\r\nContent-Length: 100000\r\n\r\n".encode()
    connections = [socket.create_connection(("127.0.0.1", triton.server.http_port), timeout=10) for _ in range(100)]
    for connection in connections:
        connection.sendall(with_body + b"a tenth of it")
    triton.endpoint.golden_check(triton.repository, 1)
    for connection in connections:
        connection.setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )  # a reset instead of an orderly end
        connection.close()


def test_a_client_that_stops_reading(triton: Triton, others: Load) -> None:
    """It requests 200 answers of 16 kB over a stream, reads one, and the others only much later."""
    requests = [grpc_request(shape=(8, SIZE, SIZE, 3), raw=8 * BYTES, output="embedding")] * 200
    with grpc.insecure_channel(triton.access.address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        answers = stub.ModelStreamInfer(iter(requests), timeout=60, metadata=tuple(triton.access.headers().items()))
        assert not next(answers).error_message
        assert others.wait_for_answers(1, more=300)
        assert [answer.error_message for answer in answers] == [""] * 199
