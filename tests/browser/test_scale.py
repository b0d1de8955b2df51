"""A hundred thousand events in the inbox."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection

import pytest

pytestmark = pytest.mark.timeout(240)  # a browser on a busy machine takes its time

EVENTS, BATCH = 100_000, 100


@pytest.fixture
def full(server):
    """A server with 100,000 events, each with its number."""

    def send(share: int) -> None:
        connection = HTTPConnection("127.0.0.1", server.port, timeout=60)
        head = {"content-type": "application/json", "x-api-key": "sk_test_scale"}
        for start in range(share * BATCH, EVENTS, 2 * BATCH):
            events = [
                {
                    "event": "login",
                    "customer_email": f"c{number}@example.com",
                    "properties": {"number": number},
                }
                for number in range(start, start + BATCH)
            ]
            connection.request("POST", "/api/v1/track", json.dumps({"events": events}), head)
            assert connection.getresponse().read()
        connection.close()

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(send, range(2)))
    assert server.counts().events == EVENTS
    return server


def test_a_hundred_thousand_events_scroll(open_page, full, until):
    page = open_page()
    page.locator("tr[data-id]").first.wait_for()
    assert page.locator("#total").inner_text() == "100,000 events"
    scroller = page.locator(".scroller")
    assert scroller.evaluate("element => element.scrollHeight") >= EVENTS * 32

    most = 0
    for share in (0.25, 0.5, 0.75, 1.0, 0.0):
        scroller.evaluate("(element, share) => element.scrollTop = share * element.scrollHeight", share)
        # Where the scroll bar stands is what is shown: ids are without gaps here.
        until(
            page,
            """() => {
              const element = document.querySelector(".scroller");
              const box = element.getBoundingClientRect();
              const row = document.elementFromPoint(box.left + 200, box.bottom - 60)?.closest("tr");
              if (!row?.dataset.id) return false;
              const place = (element.scrollTop + element.clientHeight - 60 - 28) / 32;
              return Math.abs(100000 - Number(row.dataset.id) - place) < 3;
            }""",
        )
        most = max(most, page.locator("table.list tr").count())
    assert most <= 150

    # Smooth: a wheel's steps through rows that are known, measured frame by frame, beside those of an element
    # that has nothing to draw anew.
    plain, slowest = page.evaluate(
        """async () => {
          const measure = async (element) => {
            const frames = [];
            let before = performance.now();
            for (let step = 0; step < 60; step += 1) {
              element.scrollTop += 100;
              await new Promise(requestAnimationFrame);
              frames.push(performance.now() - before);
              before = performance.now();
            }
            return frames.sort((one, other) => one - other)[Math.floor(frames.length * 0.9)];
          };
          const plain = document.createElement("div");
          plain.style = "position: fixed; width: 10px; height: 10px; overflow: auto";
          plain.append(document.createElement("div"));
          plain.firstChild.style.height = "10000px";
          document.body.append(plain);
          const times = [await measure(plain), await measure(document.querySelector(".scroller"))];
          plain.remove();
          return times;
        }"""
    )
    assert slowest < 5 * plain, (slowest, plain)

    page.keyboard.press("G")
    until(page, "() => document.activeElement.dataset?.id === '1'")
    page.get_by_role("searchbox").fill("number:77777")
    until(page, "() => document.querySelectorAll('tr[data-id]').length === 1")
