"""The section Webhooks: alerts with the answers of their receiver, sent again from the page."""

from __future__ import annotations

import http.server
import threading
from http.client import HTTPConnection

import pytest

from windback.devserver import DevServer


@pytest.fixture
def receiver():
    """Answers as `statuses` says, then 200; keeps the bodies."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            server.bodies.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(server.statuses.pop(0) if server.statuses else 200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.bodies, server.statuses = [], []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def server(receiver):
    url = f"http://127.0.0.1:{receiver.server_address[1]}/windback"
    with DevServer(strict=False, webhook_url=url, webhook_delays=()) as server:
        yield server


def test_an_alert_is_sent_from_the_page_and_sent_again_after_it_failed(open_page, receiver, until):
    receiver.statuses += [500]
    page = open_page("/?s=webhooks")
    page.get_by_label("Customer").fill("tom@brightpath.example")
    page.get_by_label("Risk score").fill("91")
    page.get_by_role("button", name="Send an alert").click()
    alert = page.locator("li.alert")
    alert.get_by_text("failed").wait_for()
    assert alert.get_by_text("91, critical").is_visible()
    assert alert.get_by_label("Answers").get_by_text("500").is_visible()
    page.get_by_role("button", name="Send the alert about tom@brightpath.example again").click()
    alert.get_by_text("delivered").wait_for()
    assert len(receiver.bodies) == 2
    assert receiver.bodies[0] == receiver.bodies[1], "byte for byte, as the API repeats it"


def test_an_alert_with_markup_is_text(open_page, server):
    server.send_alert("<img/src/onerror=alert(1)>@example.com", 50, signals=[{"name": "<b>", "weight": 0.5}])
    page = open_page("/?s=webhooks")
    alert = page.locator("li.alert")
    alert.get_by_text("<img/src/onerror=alert(1)>@example.com", exact=True).wait_for()
    assert alert.locator("img, b").count() == 0


@pytest.mark.parametrize(("alert", "status"), [("alert_none", 404), ("..%2f..%2fcounts", 404)])
def test_an_alert_that_is_not_there_can_not_be_sent_again(server, alert, status):
    connection = HTTPConnection("127.0.0.1", server.port, timeout=30)
    headers = {"content-type": "application/json"}
    connection.request("POST", f"/_dev/webhooks/{alert}/resend", b"{}", headers)
    assert connection.getresponse().status == status
    connection.close()
