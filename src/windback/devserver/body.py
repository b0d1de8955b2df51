"""From the bytes of a request to its JSON value, within limits."""

from __future__ import annotations

import zlib
from typing import Awaitable, Callable, List, Mapping, MutableMapping, Optional, Tuple, cast

import orjson

from .errors import ApiError, invalid, too_large, unsupported_encoding

Headers = Mapping[str, str]

Receive = Callable[[], Awaitable[MutableMapping[str, object]]]


async def read(receive: Receive, limit: int) -> Tuple[Optional[bytes], int, bool]:
    """Read a body to its end: its bytes, their number, and whether the client stayed until then.

    More than *limit* bytes are read and forgotten (None stands for them): an answer given while the client
    is still sending would reach many clients as a broken pipe.
    """
    chunks: List[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None, size, False
        chunk = cast("bytes", message.get("body", b""))
        size += len(chunk)
        if size > limit:
            chunks.clear()
        else:
            chunks.append(chunk)
        if not message.get("more_body", False):
            return (None if size > limit else b"".join(chunks)), size, True


def decode(body: Optional[bytes], headers: Headers, *, limit: int, gzip: str) -> bytes:
    """The body without its content encoding.

    Raises `ApiError` 413 over *limit* bytes (None is over), 415 for an encoding that is not taken, 400 for
    broken gzip.
    """
    if body is None:
        raise too_large(limit)
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding == "identity":
        return body
    if encoding == "gzip":
        if gzip == "accept":
            return _gunzip(body, limit)
        if gzip == "400":
            raise ApiError(400, "INVALID_JSON", "body is not valid JSON")
    raise unsupported_encoding(encoding)


def _gunzip(body: bytes, limit: int) -> bytes:
    plain = b""
    while True:  # a gzip body may have several members (RFC 1952, section 2.2)
        stream = zlib.decompressobj(wbits=31)
        try:
            plain += stream.decompress(body, limit + 1 - len(plain))
        except zlib.error as error:
            raise ApiError(400, "INVALID_ENCODING", f"body is not valid gzip: {error}") from None
        if len(plain) > limit:
            raise too_large(limit)
        if not stream.eof:
            raise ApiError(400, "INVALID_ENCODING", "body is not valid gzip: it ends too early")
        body = stream.unused_data
        if not body:
            return plain


def parse(body: bytes, headers: Headers) -> object:
    """The JSON value of a decoded body.

    Raises `ApiError` 415 for another content type, 400 for broken JSON.
    """
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise ApiError(415, "UNSUPPORTED_MEDIA_TYPE", "the content type must be application/json")
    if not body:
        raise invalid("body: is empty")
    try:
        value: object = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ApiError(400, "INVALID_JSON", f"body is not valid JSON: {error}") from None
    return value
