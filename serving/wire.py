"""gRPC to the server: one call for an inference, and one place where its errors get our names."""

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

from contract import encoded_name
from serving.access import Access, Tokens
from serving.errors import (
    BadRequest,
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
    "received http2 header",  # by something that is not Triton
)
NO_TRUST = ("ssl handshake failed", "certificate_verify_failed", "peer did not return a certificate", "hostname verif")


@dataclass(frozen=True)
class Answer:
    """What one inference returned: named arrays, batch first, and the version that computed them."""

    arrays: dict[str, NDArray]
    version: int


def connect(access: Access | str) -> grpc.InferenceServerClient:
    """A client that carries the tokens with every call; nothing is sent yet."""
    access = Access.of(access)
    client = grpc.InferenceServerClient(access.address, **access.options())
    client.register_plugin(Tokens(access))
    return client


def connect_async(access: Access | str) -> aio.InferenceServerClient:
    """The same for asyncio; belongs to the loop that runs now."""
    access = Access.of(access)
    client = aio.InferenceServerClient(access.address, **access.options())
    client.register_plugin(Tokens(access))
    return client


def infer(
    client: grpc.InferenceServerClient,
    image: NDArray,
    *,
    url: str,
    model: str,
    outputs: Sequence[str],
    version: str = "",
    timeout_s: float,
) -> Answer:
    """Ask for `outputs` of a batch of images; version "" is whichever the server now serves.

    Raises:
        ServingError: every fault, as `translate` names it.
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
    """Ask for `outputs` of a batch of photos in any format that `pixels` decodes; the server decodes them.

    A photo that cannot be used fails alone: its row of `error`, which always comes, says why. The version is 0 where all do.

    Raises:
        ServingError: every fault of the whole request, as `translate` names it.
    """
    names = [*outputs, *({"error", "version"} - set(outputs))]
    with errors_named(url):
        arguments = question(tensor_of_files(photos), model=encoded_name(model), outputs=names, timeout_s=timeout_s)
        arrays = answer(client.infer(**arguments), names).arrays
    arrays["error"] = texts(arrays["error"])
    return Answer(arrays, int(arrays["version"].max()))


def question(
    tensor: grpc.InferInput, *, model: str, outputs: Sequence[str], version: str = "", timeout_s: float
) -> dict[str, Any]:
    """The arguments of `infer` of a tritonclient client, sync or async.

    The deadline is told to the server too, so that a request nobody waits for is not computed.
    """
    return {
        "model_name": model,
        "inputs": [tensor],
        "model_version": version,
        "outputs": [grpc.InferRequestedOutput(name) for name in outputs],
        "client_timeout": timeout_s,
        "timeout": int(timeout_s * 1_000_000),
    }


def answer(result: grpc.InferResult, outputs: Sequence[str]) -> Answer:
    """What `infer` of a tritonclient client, sync or async, returned."""
    return Answer({name: result.as_numpy(name) for name in outputs}, int(result.get_response().model_version))


def tensor_of(image: NDArray) -> grpc.InferInput:
    """A batch of images (B, S, S, 3) as it is sent."""
    tensor = grpc.InferInput("image", list(image.shape), _type_name(image))
    tensor.set_data_from_numpy(np.ascontiguousarray(image))
    return tensor


def tensor_of_files(photos: Sequence[bytes]) -> grpc.InferInput:
    """A batch of photos as their files' bytes, as it is sent."""
    tensor = grpc.InferInput("photo", [len(photos), 1], "BYTES")
    tensor.set_data_from_numpy(np.array([*photos], object).reshape(-1, 1))
    return tensor


def texts(array: NDArray) -> NDArray:
    """Strings of what Triton sent as bytes."""
    return np.array([text.decode() for text in array.flat], object).reshape(array.shape)


@contextmanager
def errors_named(url: str) -> Iterator[None]:
    """Let no exception of tritonclient or gRPC through."""
    try:
        yield
    except InferenceServerException as error:
        raise translate(error, url) from error
    except (ValueError, UsageError, InternalError) as error:  # gRPC's word for a channel that its owner closed
        if isinstance(error, ServingError):
            raise
        raise BadRequest(f"{url}: nothing can be sent ({error}); connect again after a close") from error
    except RpcError as error:
        raise ServerUnavailable(f"{url}: the call broke off ({error}); send it again") from error


def translate(error: InferenceServerException, url: str) -> ServingError:
    """Our name for what the client library or the server said; the server's own words are kept."""
    text = " ".join(error.message().split())
    words = text.lower()
    status = str(error.status() or "").removeprefix("StatusCode.")
    if status == "DEADLINE_EXCEEDED" or "timeout expired" in words:
        return RequestTimeout(f"{url}: no answer in time ({text}); allow more, or send less at once")
    if "is restricted, expecting header" in words:
        return Forbidden(
            f"{url} wants another token for this ({text}); see docs/tasks/security.md for which and where it is"
        )
    if any(phrase in words for phrase in NO_TRUST):
        return Untrusted(f"{url}: no trusted connection ({text}); name the authority that signed its certificate")
    if words.startswith("load failed"):
        return ModelNotReady(f"{url}: {text}; keep the version that served and stage this graph again")
    if "maximum queue size" in words:
        return RequestRejected(f"{url}: the queue is full ({text}); try again later")
    if "max allowed is" in words:  # Triton sees a batch size of 2**32 * n only when it has joined several requests
        return RequestRejected(
            f"{url}: the server joined this with a request of a false batch size ({text}); send it again"
        )
    if status == "UNAVAILABLE" and any(phrase in words for phrase in NO_CONNECTION):
        return ServerUnavailable(f"no server answers at {url} ({text}); start it with `cleanshelf serve`")
    if status in ("", "INVALID_ARGUMENT", "OUT_OF_RANGE", "RESOURCE_EXHAUSTED"):
        return BadRequest(f"{url} refuses the request: {text}")
    if status == "CANCELLED":
        return ServerUnavailable(f"{url}: the request was cancelled ({text}); send it again")
    return ModelNotReady(f"{url}: the model does not answer ({text}); see the server's log")


def _type_name(array: NDArray) -> str:
    names = {"uint8": "UINT8", "int64": "INT64", "float32": "FP32", "float64": "FP64"}
    if array.dtype.name not in names:
        raise BadRequest(f"image: type {array.dtype} cannot be sent; want uint8")
    return names[array.dtype.name]
