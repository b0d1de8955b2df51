"""An application that tracks posted events: POST /events, a JSON list of events.

It has no key. What it accepted is in its journal before it answers, and its worker hands it to Redis.
"""

from __future__ import annotations

import json
from typing import Callable, Iterable, List, Mapping, Tuple

from windback import InvalidEventError, Windback

#: WINDBACK_BROKER, WINDBACK_JOURNAL and WINDBACK_PROJECT_SLUG say where and whose.
client = Windback()

StartResponse = Callable[[str, List[Tuple[str, str]]], object]


def application(environ: Mapping[str, object], start_response: StartResponse) -> Iterable[bytes]:
    """Answer a request."""
    if environ["PATH_INFO"] == "/healthz":
        return _answer(start_response, "200 OK", {"status": "ok"})
    if environ["REQUEST_METHOD"] != "POST" or environ["PATH_INFO"] != "/events":
        return _answer(start_response, "404 Not Found", {"error": "POST /events"})
    body: object = environ["wsgi.input"]
    try:
        events = json.loads(body.read())  # type: ignore[attr-defined]  # a stream, says PEP 3333
        accepted = sum(client.track_event(**event) for event in events)
    except (InvalidEventError, TypeError, ValueError) as error:
        return _answer(start_response, "400 Bad Request", {"error": str(error)})
    # Refused is only what finds the journal full: Redis was away for long, and nobody waits for it here.
    status = "202 Accepted" if accepted == len(events) else "503 Service Unavailable"
    return _answer(start_response, status, {"accepted": accepted})


def _answer(start_response: StartResponse, status: str, answer: Mapping[str, object]) -> Iterable[bytes]:
    body = json.dumps(answer).encode()
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    start_response(status, headers)
    return [body]
