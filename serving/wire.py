"""gRPC calls to the server, with the errors of the client library translated into those of serving."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from grpc import RpcError
from grpc.aio import InternalError, UsageError
from numpy.typing import NDArray
from tritonclient import grpc
from tritonclient.grpc import aio
from tritonclient.utils import InferenceServerException

from contract import LIVE, encoded_name
from serving.access import Access, Tokens
from serving.errors import (
    BadRequest,
    BatchTooLarge,
    Forbidden,
    ModelNotReady,
    RequestRejected,
    RequestTimeout,
    ServerUnavailable,
    ServingError,
    Untrusted,
)

NO_CONNECTION = (
    "failed to connect",
    "connection refused",
    "socket closed",
    "connection reset",
    "connection timed out",
    "broken pipe",
    "goaway",
    "errors resolving",
    "uri is not valid",
    "server is stopping",
    "received http2 header",  # from a server that is not Triton
)
NO_TRUST = ("ssl handshake failed", "certificate_verify_failed", "peer did not return a certificate", "hostname verif")


@dataclass(frozen=True)
class Answer:
    """Result of one inference: arrays by name, batch dimension first, and the version that computed them."""

    arrays: dict[str, NDArray[Any]]
    version: int


def connect(access: Access | str) -> grpc.InferenceServerClient:
    """Client that sends the tokens with every call; opens no connection yet."""
    access = Access.of(access)
    client = grpc.InferenceServerClient(access.address, **access.options())
    client.register_plugin(Tokens(access))
    return client


def connect_async(access: Access | str) -> aio.InferenceServerClient:
    """Same as `connect` for asyncio; the client belongs to the running loop."""
    access = Access.of(access)
    client = aio.InferenceServerClient(access.address, **access.options())
    client.register_plugin(Tokens(access))
    return client


def infer(
    client: grpc.InferenceServerClient,
    image: NDArray[Any],
    *,
    url: str,
    model: str,
    outputs: Sequence[str],
    version: str = "",
    timeout_s: float,
) -> Answer:
    """Requests `outputs` for a batch of images (B, S, S, 3); version "" means the current model.

    Raises:
        ServingError: every error, as `translate` maps it.
    """
    with errors_named(url):
        arguments = question(tensor_of(image), model=model, outputs=outputs, version=version, timeout_s=timeout_s)
        return answer(client.infer(**arguments), outputs)


def infer_encoded(
    client: grpc.InferenceServerClient,
    photos: Sequence[bytes],
    *,
    url: str,
    model: str,
    outputs: Sequence[str],
    timeout_s: float,
) -> Answer:
    """Requests `outputs` for a batch of encoded photos in any format of `pixels`; the server decodes them.

    A bad photo does not affect the others: its row of `error`, which is always returned, gives the reason. The version of
    the answer is 0 if all photos are bad.

    Raises:
        ServingError: every error of the request as a whole, as `translate` maps it.
    """
    names = [*outputs, *({"error", "version"} - set(outputs))]
    with errors_named(url):
        arguments = question(tensor_of_files(photos), model=encoded_name(model), outputs=names, timeout_s=timeout_s)
        arrays = answer(client.infer(**arguments), names).arrays
    arrays["error"] = texts(arrays["error"])
    return Answer(arrays, int(arrays["version"].max()))


def question(
    tensor: grpc.InferInput,
    *,
    model: str,
    outputs: Sequence[str],
    version: str = "",
    timeout_s: float,
    priority: int = LIVE,
) -> dict[str, Any]:
    """Arguments for the method `infer` of a tritonclient client, sync or async.

    The server gets the deadline too, so that it does not compute a request whose client has given up.

    Args:
        priority: LIVE or BULK of the contract; servers of earlier releases have one queue for both.
    """
    return {
        "model_name": model,
        "inputs": [tensor],
        "model_version": version,
        "outputs": [grpc.InferRequestedOutput(name) for name in outputs],
        "client_timeout": timeout_s,
        "timeout": int(timeout_s * 1_000_000),
        "priority": priority,
    }


def answer(result: grpc.InferResult, outputs: Sequence[str]) -> Answer:
    """Answer made of the result of a tritonclient client's `infer`, sync or async."""
    return Answer({name: result.as_numpy(name) for name in outputs}, int(result.get_response().model_version))


def tensor_of(image: NDArray[Any]) -> grpc.InferInput:
    """Input tensor of a batch of images (B, S, S, 3)."""
    tensor = grpc.InferInput("image", list(image.shape), _type_name(image))
    tensor.set_data_from_numpy(np.ascontiguousarray(image))
    return tensor


def tensor_of_files(photos: Sequence[bytes]) -> grpc.InferInput:
    """Input tensor of a batch of encoded photos."""
    tensor = grpc.InferInput("photo", [len(photos), 1], "BYTES")
    tensor.set_data_from_numpy(np.array([*photos], object).reshape(-1, 1))
    return tensor


def texts(array: NDArray[Any]) -> NDArray[Any]:
    """Strings decoded from an array of bytes, of the same shape."""
    return np.array([text.decode() for text in array.flat], object).reshape(array.shape)


@contextmanager
def errors_named(url: str) -> Iterator[None]:
    """Translates every exception of tritonclient and gRPC into a ServingError."""
    try:
        yield
    except InferenceServerException as error:
        raise translate(error, url) from error
    except (ValueError, UsageError, InternalError) as error:  # gRPC raises these on a closed channel
        if isinstance(error, ServingError):
            raise
        raise BadRequest(f"{url}: the request cannot be sent ({error}); connect again after a close") from error
    except RpcError as error:
        raise ServerUnavailable(
            f"{url}: the connection broke during the call ({error}); send the request again"
        ) from error


def translate(error: InferenceServerException, url: str) -> ServingError:
    """ServingError for an error of the client library or the server; its message quotes the original one."""
    text = " ".join(error.message().split())
    words = text.lower()
    status = str(error.status() or "").removeprefix("StatusCode.")
    if status == "DEADLINE_EXCEEDED" or "timeout expired" in words:
        return RequestTimeout(f"{url}: no answer in time ({text}); allow more time, or send fewer photos at once")
    if "is restricted, expecting header" in words:
        return Forbidden(
            f"{url} requires another token for this call ({text}); see docs/tasks/security.md for the two tokens"
        )
    if any(phrase in words for phrase in NO_TRUST):
        return Untrusted(
            f"{url}: the connection is not trusted ({text}); name the authority that signed its certificate"
        )
    if words.startswith("load failed"):
        return ModelNotReady(f"{url}: {text}; keep the current model and publish this graph again")
    if "maximum queue size" in words:
        return RequestRejected(f"{url}: the queue is full ({text}); try again later")
    if "max allowed is" in words:  # Triton notices a batch size of 2**32 * n only after it has joined several requests
        return RequestRejected(
            f"{url}: the server joined this request with one of a false batch size ({text}); send it again"
        )
    if "batch-size must be <=" in words:
        return BatchTooLarge(f"{url}: {text}; send fewer photos at once")
    if status == "UNAVAILABLE" and any(phrase in words for phrase in NO_CONNECTION):
        return ServerUnavailable(f"no server answers at {url} ({text}); start one with `cleanshelf serve`")
    if status in ("", "INVALID_ARGUMENT", "OUT_OF_RANGE", "RESOURCE_EXHAUSTED"):
        return BadRequest(f"{url} refuses the request: {text}")
    if status == "CANCELLED":
        return ServerUnavailable(f"{url}: the request was cancelled ({text}); send it again")
    return ModelNotReady(f"{url}: the model does not answer ({text}); see the server's log")


def _type_name(array: NDArray[Any]) -> str:
    names = {"uint8": "UINT8", "int64": "INT64", "float32": "FP32", "float64": "FP64"}
    if array.dtype.name not in names:
        raise BadRequest(f"image: arrays of type {array.dtype} cannot be sent; convert them to uint8")
    return names[array.dtype.name]
