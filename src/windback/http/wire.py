"""The headers of a request and what an answer is worth, for the lane and for httpx.

Nothing here raises for what a network or a server does: every outcome is an Answer, which `delivery` judges.
"""

from __future__ import annotations

import codecs
import zlib
from typing import List, Mapping, Optional, Tuple
from urllib.parse import urlsplit

import orjson

from .. import __version__
from ..api.answer import Answer, Failure
from ..api.endpoints import Request
from ..config import Config
from . import egress

#: No answer of this API is larger, before or after it is unpacked; further bytes are not read.
MAX_ANSWER_BYTES = 8_000_000
#: A connection that was idle for longer is not used again (seconds). Longer than the default of httpx, so
#: that a low but steady stream of batches keeps its connection.
KEEPALIVE_S = 30.0
_PORTS = {"http": 80, "https": 443}
#: The `wbits` of zlib for the encodings that are unpacked.
_ENCODINGS = {"gzip": 31, "x-gzip": 31, "deflate": 15}


class NoAnswerError(Exception):
    """Why a request of the lane has no answer."""

    def __init__(self, failure: Failure, text: str) -> None:
        super().__init__(text)
        self.failure = failure


class Wire:
    """What the requests to one address have in common, and how their answers are read."""

    def __init__(self, config: Config) -> None:
        self._config = config
        address = urlsplit(config.base_url)
        self.host = address.hostname or ""
        self.port = address.port or _PORTS[address.scheme]
        self._origin = f"{address.scheme}://{address.netloc}"
        self._path = address.path
        is_usual = self.port == _PORTS[address.scheme]
        name = f"[{self.host}]" if ":" in self.host else self.host
        self._common = [
            (b"Host", (name if is_usual else f"{name}:{self.port}").encode()),
            (b"User-Agent", f"windback-python/{__version__}".encode()),
        ]

    def url(self, request: Request) -> str:
        """Return where a request goes."""
        return self._origin + self.target(request)

    def target(self, request: Request) -> str:
        """Return the path and the query of that."""
        path = self._path + request.path
        return f"{path}?{request.query}" if request.query else path

    def headers(self, request: Request) -> List[Tuple[bytes, bytes]]:
        """Return all headers of a request."""
        config = self._config
        # Without a key of its own kind a call is made with the one there is (both are documented to work).
        key = (config.public_key or config.api_key) if request.public else config.api_key
        headers: List[Tuple[bytes, bytes]] = [
            *self._common,
            (b"X-API-Key", b"" if key is None else key.reveal().encode()),
        ]
        if request.method != "GET":
            headers += (b"Content-Type", b"application/json"), (b"Content-Length", b"%d" % len(request.body))
        if request.idempotency_key is not None:
            headers.append((b"Idempotency-Key", request.idempotency_key.encode()))
        if request.gzip:
            headers.append((b"Content-Encoding", b"gzip"))
        return headers

    def read(self, request: Request, status: int, headers: Mapping[str, str], raw: Optional[bytes]) -> Answer:
        """Return the answer.

        raw: the received body; None if it could not be read to its end. A status of success counts without
        its body, because the server has processed the request: a repeat would double what it did. Only a GET
        does nothing, so it is repeated.
        """
        is_success = 200 <= status < 300
        body = None if raw is None else unpacked(raw, headers)
        if body is None:
            if is_success and request.method == "GET":
                return Answer(None, failure=Failure.BROKEN, detail="the body of the answer could not be read")
            return Answer(status, headers)
        if body.startswith(codecs.BOM_UTF8):  # no part of JSON, but some servers send it
            body = body[len(codecs.BOM_UTF8) :]
        if is_success and body.strip() and not is_json_object(body):
            kind = headers.get("content-type", "no content type").partition(";")[0]
            detail = f"{self.url(request)} answered {status} with {kind}: set base_url to the API"
            return Answer(None, failure=Failure.FOREIGN, detail=self._config.redact(detail))
        return Answer(status, headers, body)

    def read_failure(self, error: Exception, otherwise: Failure = Failure.BROKEN) -> Answer:
        """Return why there is no answer, without the key."""
        if isinstance(error, egress.RefusedError):
            return Answer(None, failure=Failure.FORBIDDEN, detail=str(error))
        if isinstance(error, NoAnswerError):
            return Answer(None, failure=error.failure, detail=self._config.redact(str(error)))
        # By their names, which httpx and its successor share.
        kinds = {kind.__name__ for kind in type(error).__mro__}
        if kinds & {"ConnectTimeout", "PoolTimeout"}:
            failure = Failure.CONNECT_TIMEOUT
        elif "TimeoutException" in kinds:
            failure = Failure.TIMEOUT
        elif kinds & {"ConnectError", "ProxyError"}:
            failure = Failure.CONNECT
        else:
            failure = otherwise
        name = type(error).__name__
        # httpx describes the failure in words; the text of other exceptions is often only a value.
        detail = (str(error) or name) if "HTTPError" in kinds else f"{name}: {error}"
        return Answer(None, failure=failure, detail=self._config.redact(detail))


def response_of(error: Exception) -> Optional[Answer]:
    """Return the answer that an exception of a user's client carries, as of httpx's `raise_for_status`."""
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if response is None or not isinstance(status, int):
        return None
    try:
        body = bytes(response.content)
    except Exception:  # noqa: BLE001 - it was not read, and now it can't be
        body = b""
    headers = {str(name).lower(): str(value) for name, value in dict(response.headers).items()}
    return Answer(status, headers, body)


def unpacked(raw: bytes, headers: Mapping[str, str]) -> Optional[bytes]:
    """Return a body without its content encoding; None if it cannot be unpacked or is too large.

    One encoding at most: each level of a body that was packed twice can make it a thousand times larger.
    """
    listed = map(str.strip, headers.get("content-encoding", "").lower().split(","))
    encodings = [each for each in listed if each not in ("", "identity")]
    if len(raw) > MAX_ANSWER_BYTES or len(encodings) > 1:
        return None
    if not encodings or not raw:
        return raw
    bits = _ENCODINGS.get(encodings[0])
    if bits is None:
        return None
    unpacker = zlib.decompressobj(bits)
    try:
        body = unpacker.decompress(raw, MAX_ANSWER_BYTES)
    except zlib.error:
        return None
    return body if unpacker.eof else None


def is_json_object(body: bytes) -> bool:
    """Return whether *body* is what the API answers with."""
    try:
        return isinstance(orjson.loads(body), dict)
    except orjson.JSONDecodeError:
        return False
