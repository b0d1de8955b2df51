"""The OpenAPI document of the embedded server says what it does; schemathesis looks for where it does not."""

from __future__ import annotations

import http.client
import json
import re
import socket
import subprocess
import sys
import time
from contextlib import closing

import pytest

from windback.devserver import DevServer, openapi
from windback.devserver.app import _PATHS

SECRET = "sk_test_openapi"
#: Every operation of the API, in the words of the public docs; decline-offer has none.
OPERATIONS = {
    *(("post", "/track"), ("post", "/cancel-flow/submit"), ("post", "/cancel-flow/accept-offer")),
    *(("get", "/cancel-flow/offers"), ("get", "/projects/{slug}/stats")),
    *(("post", "/projects/{slug}/churn-events"), ("get", "/projects/{slug}/churn-events")),
    ("get", "/projects/{slug}/churn-events/{id}"),
    ("post", "/projects/{slug}/churn-events/{id}/recovered"),
    ("patch", "/projects/{slug}/churn-events/{id}/cancel-reason"),
    ("post", "/projects/{slug}/churn-events/{id}/generate"),
    ("get", "/projects/{slug}/churn-events/{id}/variants"),
    ("patch", "/projects/{slug}/churn-events/{id}/variants/{vid}"),
    ("post", "/projects/{slug}/churn-events/{id}/variants/{vid}/send"),
    *(("post", "/projects/{slug}/recovery-templates"), ("get", "/projects/{slug}/recovery-templates")),
    ("get", "/projects/{slug}/recovery-templates/{id}"),
    ("put", "/projects/{slug}/recovery-templates/{id}"),
    ("delete", "/projects/{slug}/recovery-templates/{id}"),
}


def call(server, method, path, body=None, **headers):
    """One request; its status and the JSON of the answer."""
    sent = {"x-api-key": SECRET, "content-type": "application/json", **headers}
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)) as connection:
        raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        connection.request(method, path, raw, sent)
        response = connection.getresponse()
        return response.status, json.loads(response.read())


def operations(paths):
    return {(method.lower(), path) for path, methods in paths.items() for method in methods}


def test_the_document_has_every_operation_and_the_server_serves_it():
    assert operations(openapi.document()["paths"]) == operations(_PATHS) == OPERATIONS


def test_each_reference_and_each_path_parameter_of_the_document_is_there():
    document = openapi.document()
    for reference in re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(document)):
        place = document
        for part in reference.split("/"):
            place = place[part]
    for path, methods in document["paths"].items():
        for operation in methods.values():
            named = {each["name"] for each in operation.get("parameters", ()) if each["in"] == "path"}
            assert named == set(re.findall(r"\{(\w+)\}", path))


WITH_BODY = sorted(
    (method, path)
    for path, endpoints in _PATHS.items()
    for method, endpoint in endpoints.items()
    if endpoint.has_body
)


@pytest.fixture(scope="module")
def server():
    with DevServer(max_body_bytes=10_000, generate_s=0) as running:
        yield running
    assert running.log() == "", "the server printed warnings or tracebacks"


def filled(path):
    return "/api/v1" + re.sub(r"\{\w+\}", "x", path)


@pytest.mark.parametrize(("method", "path"), WITH_BODY)
@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "VALIDATION_ERROR"),
        (b'{"customer_email": "jane@exam', 400, "INVALID_JSON"),
        (b"\xff", 400, "INVALID_JSON"),
        (b"[" * 5_000, 400, "INVALID_JSON"),
        (b"null", 400, "VALIDATION_ERROR"),
        (b"7", 400, "VALIDATION_ERROR"),
        (b"[{}]", 400, "VALIDATION_ERROR"),
        (b"{}", 400, "VALIDATION_ERROR"),
        (b'"' + b"x" * 10_000 + b'"', 413, "BODY_TOO_LARGE"),
    ],
    ids=["empty", "cut short", "no UTF-8", "deep", "null", "number", "list", "nothing in it", "too large"],
)
def test_a_body_that_cannot_be_read_is_refused_everywhere(server, method, path, body, status, code):
    answered, answer = call(server, method, filled(path), body)
    assert (answered, answer["code"]) == (status, code)


@pytest.mark.parametrize(("method", "path"), WITH_BODY)
@pytest.mark.parametrize("value", [None, 7, 1.5, True, [], {}, ""], ids=repr)
def test_fields_of_the_wrong_type_are_refused_everywhere(server, method, path, value):
    names = (
        *("customer_email", "cancel_reason", "offer_type", "event", "properties", "events"),
        *("name", "subject", "body", "is_active"),
    )
    answered, answer = call(server, method, filled(path), json.dumps(dict.fromkeys(names, value)).encode())
    assert (answered, answer["code"]) == (400, "VALIDATION_ERROR")


@pytest.mark.parametrize(("method", "path"), WITH_BODY)
def test_a_body_of_another_type_is_refused_everywhere(server, method, path):
    answered, answer = call(server, method, filled(path), b"{}", **{"content-type": "text/plain"})
    assert (answered, answer["code"]) == (415, "UNSUPPORTED_MEDIA_TYPE")


@pytest.mark.parametrize(("method", "path"), WITH_BODY)
def test_a_request_that_breaks_off_changes_nothing(server, method, path):
    server.reset()
    head = f"{method} {filled(path)} HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {SECRET}\r\n"
    head += "Content-Type: application/json\r\nContent-Length: 500\r\n\r\n"
    with closing(socket.create_connection(("127.0.0.1", server.port), timeout=20)) as connection:
        connection.sendall(head.encode() + b'{"customer_email": "jane@example.com", "cancel_reason": "oth')
    deadline = time.monotonic() + 10
    while [record.body_bytes > 0 for record in server.requests()] != [True]:
        assert time.monotonic() < deadline, "it was not taken in time"
        time.sleep(0.01)
    (record,) = server.requests()
    assert record.status is None
    counts = server.counts()
    assert (counts.events, counts.churn_events, counts.templates, counts.cancel_flows) == (0, 0, 0, 0)


def test_the_document_is_served_and_counts_as_no_request():
    with DevServer() as server:
        assert call(server, "GET", "/openapi.json") == (200, json.loads(json.dumps(openapi.document())))
        assert call(server, "GET", "/openapi.json", host="example.com")[0] == 421
        assert server.counts().requests == 0


def run_schemathesis(server, folder, *before, examples, options=()):
    return subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", *before, "run"),
            f"http://127.0.0.1:{server.port}/openapi.json",
            *("--checks", "all", "--header", f"X-API-Key: {SECRET}", "--no-color"),
            *("--seed", "1", "--max-examples", str(examples), "--generation-database", "none", *options),
        ],
        capture_output=True,
        text=True,
        encoding="utf-8",
        cwd=folder,
        timeout=240,
        check=False,
    )


# Its releases for older Pythons have other checks and options. The server is the same code on all of them,
# so what is found on one counts for each.
@pytest.mark.skipif(sys.version_info < (3, 11), reason="schemathesis of today needs Python 3.11")
@pytest.mark.timeout(300)
def test_schemathesis_finds_nothing_over_all_operations(tmp_path):
    with DevServer(generate_s=0) as server:
        event = "/api/v1/projects/shop/churn-events"
        body = {"customer_email": "jane@example.com"}
        event_id = call(server, "POST", event, body)[1]["data"]["id"]
        variants = call(server, "POST", f"{event}/{event_id}/generate")[1]["data"]["variants"]
        config = tmp_path / "schemathesis.toml"
        config.write_text(
            # In the wrong state a request without a fault is a documented 400.
            "[[operations]]\n"
            'include-operation-id = ["generateVariants", "markRecovered", "sendVariant", "updateVariant"]\n'
            'checks.positive_data_acceptance.expected-statuses = ["2xx", 400, 401, 403, 404, 409, 429]\n'
            # Ids that exist, where it can't come by any; what is sent can't be edited.
            + "".join(
                "[[operations]]\n"
                f'include-operation-id = "{name}"\n'
                f'parameters = {{ "path.slug" = "shop", "path.id" = "{event_id}",'
                f' "path.vid" = "{variant["id"]}" }}\n'
                for name, variant in zip(("sendVariant", "updateVariant"), variants)
            ),
            encoding="utf-8",
        )
        done = run_schemathesis(server, tmp_path, "--config-file", str(config), examples=15)
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"Tested: {len(OPERATIONS)}" in done.stdout
        counts = server.counts()
        assert "Traceback" not in server.log()
    # It got through to where things are made, changed and refused, and never to a failure of the server.
    assert {200, 201, 202, 204, 400, 401, 404, 405, 409, 415} <= set(counts.by_status)
    assert max(counts.by_status) < 500


@pytest.mark.skipif(sys.version_info < (3, 11), reason="schemathesis of today needs Python 3.11")
@pytest.mark.timeout(300)
def test_schemathesis_finds_nothing_where_bad_events_are_taken_and_marked(tmp_path):
    with DevServer(strict=False) as server:
        options = ("--include-operation-id", "track", "--phases", "coverage,fuzzing")
        done = run_schemathesis(server, tmp_path, examples=30, options=options)
        assert done.returncode == 0, done.stdout + done.stderr
        counts = server.counts()
        assert "Traceback" not in server.log()
    assert {200, 400} <= set(counts.by_status)
    assert max(counts.by_status) < 500
    assert counts.ignored > 0
