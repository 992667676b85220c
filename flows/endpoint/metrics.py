"""Metrics of a Triton server of this workspace, from its Prometheus page: counters of each loaded model version."""

from __future__ import annotations

import http.client
import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from flows.errors import WorldError
from serving.server.command import HOST

TIMEOUT_S = 3.0
REJECTED = "REJECTED"  # value of the label `reason`: the queue was full, or the request waited too long
PREFIX = "nv_inference_"


@dataclass
class ModelMetrics:
    """Counters of one model version since it was loaded; times are sums over all requests, in microseconds.

    failed: requests without an answer, other than rejected ones.
    photos, batches: photos that were recognised, and computations that did it.
    pending: requests in the queue now.
    quantiles_ms: time within which a share of the recent requests was answered, by share ("0.5"), without the network; None
        for no recent requests, and empty if the server measures means only.
    """

    model: str
    version: int
    answered: int = 0
    failed: int = 0
    rejected: int = 0
    photos: int = 0
    batches: int = 0
    pending: int = 0
    request_us: int = 0
    queue_us: int = 0
    compute_us: int = 0
    quantiles_ms: dict[str, float | None] = field(default_factory=dict)


def read_metrics(port: int) -> list[ModelMetrics]:
    """The metrics of the server on this machine whose metrics are at `port`.

    Raises:
        WorldError: it does not answer there.
    """
    connection = http.client.HTTPConnection(HOST, port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        return parse(text)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise WorldError(
            f"the endpoint's metrics at port {port} cannot be read ({error}); `cleanshelf doctor` says more"
        ) from None
    finally:
        connection.close()


def parse(text: str) -> list[ModelMetrics]:
    """Metrics of each model version on a Prometheus page of Triton, by name and version."""
    found: dict[tuple[str, int], ModelMetrics] = {}
    for sample in _samples(text):
        model, version = sample.labels.get("model", ""), sample.labels.get("version", "")
        if sample.name.startswith(PREFIX) and version.isdecimal():
            key = (model, int(version))
            _add(found.setdefault(key, ModelMetrics(*key)), sample)
    return [found[key] for key in sorted(found)]


def _samples(text: str) -> Iterable[Sample]:
    for family in text_string_to_metric_families(text):
        yield from family.samples


COUNTERS = {
    "count": "photos",
    "exec_count": "batches",
    "pending_request_count": "pending",
    "request_success": "answered",
    "request_duration_us": "request_us",
    "queue_duration_us": "queue_us",
    "compute_input_duration_us": "compute_us",
    "compute_infer_duration_us": "compute_us",
    "compute_output_duration_us": "compute_us",
}


def _add(metrics: ModelMetrics, sample: Sample) -> None:
    """Adds a sample to the metrics of its model version. Samples of one counter differ in other labels, such as a GPU."""
    name = sample.name.removeprefix(PREFIX).removesuffix("_total")
    if name == "request_summary_us" and "quantile" in sample.labels:
        is_known = not math.isnan(sample.value)  # NaN: a quantile of no requests
        metrics.quantiles_ms[sample.labels["quantile"]] = sample.value / 1000 if is_known else None
    elif name == "request_failure":
        field_name = "rejected" if sample.labels.get("reason") == REJECTED else "failed"
        setattr(metrics, field_name, getattr(metrics, field_name) + int(sample.value))
    elif name in COUNTERS:
        setattr(metrics, COUNTERS[name], getattr(metrics, COUNTERS[name]) + int(sample.value))
