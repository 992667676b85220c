"""Triton's metrics as the page of the endpoint reads them."""

from __future__ import annotations

import pytest

from flows.endpoint.metrics import ModelMetrics, parse, read_metrics
from flows.errors import WorldError

PAGE = """\
# HELP nv_inference_request_success Number of successful inference requests, all batch sizes
# TYPE nv_inference_request_success counter
nv_inference_request_success{model="products",version="3"} 40
nv_inference_request_success{model="products-encoded",version="1"} 2
# TYPE nv_inference_request_failure counter
nv_inference_request_failure{model="products",reason="OTHER",version="3"} 1
nv_inference_request_failure{model="products",reason="BACKEND",version="3"} 2
nv_inference_request_failure{model="products",reason="REJECTED",version="3"} 7
# TYPE nv_inference_count counter
nv_inference_count{model="products",version="3"} 80
# TYPE nv_inference_exec_count counter
nv_inference_exec_count{model="products",version="3"} 20
# TYPE nv_inference_request_duration_us counter
nv_inference_request_duration_us{model="products",version="3"} 9000
# TYPE nv_inference_queue_duration_us counter
nv_inference_queue_duration_us{model="products",version="3"} 1000
# TYPE nv_inference_compute_infer_duration_us counter
nv_inference_compute_infer_duration_us{model="products",version="3"} 6000
nv_inference_compute_input_duration_us{model="products",version="3"} 500
# TYPE nv_inference_request_summary_us summary
nv_inference_request_summary_us{model="products",version="3",quantile="0.5"} 2500
nv_inference_request_summary_us{model="products",version="3",quantile="0.99"} Nan
# TYPE nv_inference_pending_request_count gauge
nv_inference_pending_request_count{model="products",version="3"} 4
# TYPE nv_cpu_utilization gauge
nv_cpu_utilization 0.2
"""


def test_counters_of_each_version_are_read() -> None:
    products, encoded = parse(PAGE)
    assert products == ModelMetrics(
        "products",
        3,
        answered=40,
        failed=3,
        rejected=7,
        photos=80,
        batches=20,
        pending=4,
        request_us=9000,
        queue_us=1000,
        compute_us=6500,
        quantiles_ms={"0.5": 2.5, "0.99": None},
    )
    assert (encoded.model, encoded.answered, encoded.quantiles_ms) == ("products-encoded", 2, {})
    assert parse("") == []


def test_a_server_that_does_not_answer_is_named() -> None:
    with pytest.raises(WorldError, match="metrics at port 9 cannot be read"):
        read_metrics(9)
