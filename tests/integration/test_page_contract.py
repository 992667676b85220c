"""The JSON API keeps to its own OpenAPI document: schemathesis in process, on a workspace with label issues."""

from __future__ import annotations

import logging

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case
from schemathesis.checks import FailureGroup, load_all_checks

from flows.pages.access import People
from flows.pages.app import create_app
from flows.pages.site import Site
from tests.cleaned import cleaned_workspace

pytestmark = pytest.mark.dvc
EXAMPLES = 12  # per operation
# Operations that start or stop processes, which the tests of the runs and of the endpoint try for real.
WITH_PROCESSES = {
    ("POST", "/api/runs"): "starts a retraining",
    ("POST", "/api/runs/stop"): "ends one",
    ("POST", "/api/runs/{run}/publish"): "starts a publication",
    ("POST", "/api/versions/models/{version}/promote"): "starts a promotion",
    ("POST", "/api/deliveries"): "reads folders of this machine, and starts an ingestion",
    ("POST", "/api/endpoint/start"): "starts Triton",
    ("POST", "/api/endpoint/stop"): "ends it",
    ("POST", "/api/map"): "starts the computation of a map",
}
# 503 says that no endpoint runs. Roles are not a security scheme of the document: on the loopback no token is asked for.
# What JSON allows and a rule of ours refuses is a 4XX too, so data that fit the schema may be refused.
NOT_CHECKED = ("not_a_server_error", "ignored_auth", "positive_data_acceptance", "negative_data_rejection")


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> schemathesis.BaseSchema:
    shop = cleaned_workspace(tmp_path_factory.mktemp("contract"))
    app = create_app(Site(shop), People(shop.state, open_to_all=True))
    return schemathesis.openapi.from_asgi("/api/openapi.json", app, headers={"host": "127.0.0.1"})


# The pages' own threads may draw random numbers while hypothesis makes a case, and it cannot tell theirs from a strategy's.
@pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")
def test_answers_are_as_documented(schema: schemathesis.BaseSchema, caplog: pytest.LogCaptureFixture) -> None:
    load_all_checks()
    excluded = [check for check in schemathesis.checks.CHECKS.get_all() if check.__name__ in NOT_CHECKED]
    tried, faults = [], []
    for found in schema.get_all_operations():
        operation = found.ok()
        if (operation.method.upper(), operation.path) in WITH_PROCESSES:
            continue
        tried.append(operation.path)

        @settings(
            max_examples=EXAMPLES,
            derandomize=True,
            deadline=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def check(case: Case) -> None:
            with caplog.at_level(logging.CRITICAL, logger="cleanshelf"):
                answer = case.call(headers={"host": "127.0.0.1"})
            assert answer.status_code in (*range(500), 503), f"{case.as_curl_command()}: {answer.text}"
            case.validate_response(answer, excluded_checks=excluded)

        try:
            check()
        except (Exception, FailureGroup) as error:  # of several operations all are shown
            faults.append(f"{operation.label}: {error} {[str(each) for each in getattr(error, 'exceptions', ())]}")

    assert not faults, "\n\n".join(faults)
    assert "/api/overview" in tried
