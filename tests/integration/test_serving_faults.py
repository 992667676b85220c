"""Malformed requests to a real server: each is answered, and no other client notices."""

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
from tests.served import Load, Served, closed_loop, serve

pytestmark = [pytest.mark.triton, pytest.mark.faults]
IMAGE = golden_images(1)
BYTES = IMAGE.tobytes()
ENCODED: dict[str, Any] = {"name": "photo", "kind": "BYTES", "shape": (1, 1), "model": "products-encoded"}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, local_server: Callable[..., LocalServer]) -> Iterator[Served]:
    with serve(tmp_path_factory.mktemp("served"), local_server) as found:
        yield found


@pytest.fixture(scope="module")
def others(served: Served) -> Iterator[Load]:
    """Another client, which asks on and on while the faults happen."""
    with closed_loop(served, clients=1) as load:
        yield load


@pytest.fixture(autouse=True)
def _nobody_notices(others: Load) -> Iterator[None]:
    """After each fault the other client has rightly been answered, and goes on so."""
    yield
    assert others.meet(1)
    faults, others.faults = others.faults, []  # a fault is blamed on one test alone
    assert faults == []


def question(
    *,
    name: str = "image",
    kind: str = "UINT8",
    shape: tuple[int, ...] = IMAGE.shape,
    output: str = "ids",
    raw: bytes | None = BYTES,
    model: str = "products",
) -> service_pb2.ModelInferRequest:
    """A right request but for what is named."""
    return service_pb2.ModelInferRequest(
        model_name=model,
        inputs=[{"name": name, "datatype": kind, "shape": shape}] if name else [],
        outputs=[{"name": output}],
        raw_input_contents=[raw] if raw is not None else [],
    )


def ask(served: Served, request: service_pb2.ModelInferRequest) -> service_pb2.ModelInferResponse:
    with grpc.insecure_channel(served.access.address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        return stub.ModelInfer(request, timeout=10, metadata=tuple(served.access.headers().items()))


def strings(*lengths: int, data: bytes = b"photo") -> bytes:
    """BYTES elements of five bytes whose lengths are said to be these."""
    return b"".join(struct.pack("<I", length) + data for length in lengths)


def test_a_right_request(served: Served) -> None:
    assert ask(served, question()).model_version == "1"
    assert ask(served, question(**ENCODED, raw=strings(5))).model_version == "1"


@pytest.mark.parametrize(
    ("fault", "words"),
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
def test_a_malformed_grpc_request_is_refused(served: Served, fault: dict[str, Any], words: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        ask(served, question(**fault))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert words in caught.value.details()


def test_a_false_batch_size_spoils_its_batch_only(served: Served, others: Load) -> None:
    """Triton keeps 32 bits of a batch size, so this one looks like none until it has been joined with other requests."""
    for _ in range(30):
        with pytest.raises(grpc.RpcError, match="max allowed is 8"):
            ask(served, question(shape=(2**40, SIZE, SIZE, 3)))
    assert all("send it again" in fault for fault in others.faults)
    others.faults.clear()


def exchange(
    served: Served, body: bytes, *, path: str = "/v2/models/products/infer", header: str = ""
) -> tuple[int, str]:
    """Status and words of the server's answer to a POST; `header`: the said length of the JSON before the tensors."""
    connection = http.client.HTTPConnection("127.0.0.1", served.server.http_port, timeout=10)
    headers = {TOKEN_HEADER: served.access.token} | ({"Inference-Header-Content-Length": header} if header else {})
    try:
        connection.request("POST", path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(errors="replace")
    finally:
        connection.close()


def spoken(*, size: object = len(BYTES), **changes: object) -> bytes:
    """The JSON of a right HTTP request, whose pixels follow as bytes, but for what is named."""
    tensor = {"name": "image", "datatype": "UINT8", "shape": list(IMAGE.shape), **changes}
    inputs = [{**tensor, "parameters": {"binary_data_size": size}}]
    return json.dumps({"inputs": inputs, "outputs": [{"name": "ids"}]}).encode()


def test_a_right_http_request(served: Served) -> None:
    status, said = exchange(served, spoken() + BYTES, header=str(len(spoken())))
    assert (status, json.loads(said)["model_version"]) == (200, "1")


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
        spoken()[:-9],
        b'{"inputs": 7}',
        b'{"inputs": [7]}',
        spoken(shape="many"),
        spoken(shape=[1.5]),
        spoken(name=7),
        spoken(datatype=None),
        spoken(size=-1),
        spoken(size="x"),
        spoken(size=2**70),
    ],
    ids=range(17),
)
def test_garbage_in_http_is_refused(served: Served, body: bytes) -> None:
    status, said = exchange(served, body)
    assert status in (400, 500)  # Triton calls a fault of the JSON its own
    assert json.loads(said)["error"]


@pytest.mark.parametrize("header", ["-1", "0", "x", "10", "99999999", str(2**70)])
def test_a_lying_header_length_is_refused(served: Served, header: str) -> None:
    status, said = exchange(served, spoken() + BYTES, header=header)
    assert status in (400, 500)
    assert json.loads(said)["error"]


@pytest.mark.parametrize("size", [0, 1, len(BYTES) + 1, 2**40])
def test_a_lying_size_is_refused(served: Served, size: int) -> None:
    header = spoken(size=size)
    status, said = exchange(served, header + BYTES, header=str(len(header)))
    assert status == 400
    assert "additional" in said


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
def test_a_path_that_is_none_is_not_found(served: Served, path: str) -> None:
    assert exchange(served, spoken() + BYTES, path=path, header=str(len(spoken())))[0] == 404


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
    ids=["noise", "no version", "negative length", "endless", "broken off", "bad chunk", "long header", "long path"],
)
@pytest.mark.parametrize("port", ["http_port", "grpc_port"])
def test_what_is_no_http_ends_the_connection(served: Served, sent: bytes, port: str) -> None:
    with socket.create_connection(("127.0.0.1", getattr(served.server, port)), timeout=10) as connection:
        try:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass
        except TimeoutError:
            pytest.fail("the server waits for more")
        except OSError:
            pass  # it closed the connection before it had read everything


def test_clients_that_break_off_or_never_finish(served: Served) -> None:
    with_body = POST + f"{TOKEN_HEADER}: {served.access.token}\r\nContent-Length: 100000\r\n\r\n".encode()
    held = [socket.create_connection(("127.0.0.1", served.server.http_port), timeout=10) for _ in range(100)]
    for connection in held:
        connection.sendall(with_body + b"a tenth of it")
    served.endpoint.golden_check(served.repository, 1)
    for connection in held:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, not a goodbye
        connection.close()


def test_a_client_that_stops_reading(served: Served, others: Load) -> None:
    """It asks over a stream for 200 answers of 16 kB, takes one, and the others only much later."""
    requests = [question(shape=(8, SIZE, SIZE, 3), raw=8 * BYTES, output="embedding")] * 200
    with grpc.insecure_channel(served.access.address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        answers = stub.ModelStreamInfer(iter(requests), timeout=60, metadata=tuple(served.access.headers().items()))
        assert not next(answers).error_message
        assert others.meet(1, more=300)
        assert [answer.error_message for answer in answers] == [""] * 199
