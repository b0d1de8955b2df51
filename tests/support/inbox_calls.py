"""Requests to the inbox of the local server, and its stream."""

from __future__ import annotations

import http.client
import itertools
import json
from typing import Dict, Mapping, Optional
from urllib.parse import urlencode

from calls import Reply, call

from windback.devserver import DevServer

_number = itertools.count()


def get(server: DevServer, path: str, **query: object):
    """The JSON of an answer of the control plane that must be 200."""
    reply = call(server, "GET", f"/_dev/{path}?{urlencode(query)}")
    assert reply.status == 200, reply.raw
    return reply.json


def track(server: DevServer, key: str, *events: Mapping[str, object], **headers: str) -> Reply:
    """Send events, each with an email unless it says otherwise."""
    body = {"events": [{"customer_email": "jane@example.com", **event} for event in events]}
    return call(
        server,
        "POST",
        "/api/v1/track",
        body,
        {"x-api-key": key, **{name.replace("_", "-"): value for name, value in headers.items()}},
    )


class Stream:
    """An open stream; its messages as (event, data), and the last id."""

    def __init__(self, server: DevServer, query: str = "", last_id: Optional[str] = None) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        headers = {} if last_id is None else {"last-event-id": last_id}
        self._connection.request("GET", "/_dev/stream" + query, headers=headers)
        # Before the head is read: http.client gives its socket away to an answer without a length.
        self.socket = self._connection.sock
        self.response = self._connection.getresponse()
        assert self.response.status == 200
        self.last_id = last_id

    def __iter__(self):
        name, data = "", ""
        for raw in self.response:
            line = raw.decode().rstrip("\n")
            if line.startswith("id: "):
                self.last_id = line[4:]
            elif line.startswith("event: "):
                name = line[7:]
            elif line.startswith("data: "):
                data += line[6:]
            elif not line and data:
                yield name, json.loads(data)
                name, data = "", ""

    def until(self, wanted: str):
        """The data of the next message of this kind."""
        for name, data in self:
            if name == wanted:
                return data
        raise AssertionError("the stream has ended")

    def close(self) -> None:
        self.response.close()
        self._connection.close()


def create(server: DevServer, key: str, slug: str = "p", **fields: object) -> Dict[str, object]:
    body = {"customer_email": "jane@example.com", **fields}
    reply = call(server, "POST", f"/api/v1/projects/{slug}/churn-events", body, {"x-api-key": key})
    assert reply.status == 201, reply.raw
    return reply.json["data"]


def move(server: DevServer, event: Mapping[str, object], to: str) -> Reply:
    return call(server, "POST", f"/_dev/churn-events/{event['id']}/move", {"to": to})
