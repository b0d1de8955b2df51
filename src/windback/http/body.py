"""Reads the body of an answer that came through httpx, and ends a connection on which more came than that.

What a server sends behind its answer would be taken for the answer to the next request: h11, below httpcore,
keeps it, and httpcore looks only at what is still in the socket. There is no public way to ask, so the
connection is found by the names of its attributes; where they are others, nothing is ended. The lane has h11
itself, and does the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Dict, Optional, cast

import httpx

from .interruption import raise_interruption
from .streams import has_unread
from .wire import MAX_ANSWER_BYTES

if TYPE_CHECKING:
    import httpcore

#: From a response of httpx down to the connection of httpcore that has an h11 connection.
_INNER = ("_stream", "_httpcore_stream", "_connection")
_MOST_LAYERS = 10


def read(response: httpx.Response, before: Optional[BaseException]) -> Optional[bytes]:
    """Return the body as it came, and close the answer. None if it can't be read to its end.

    before: the exception that the caller was handling when the request began.
    """
    body = bytearray()
    try:
        if response.is_stream_consumed:  # by a hook of a user's client
            return response.content
        for chunk in cast("httpx.SyncByteStream", response.stream):
            body += chunk
            if len(body) > MAX_ANSWER_BYTES:
                return bytes(body)
        if has_more(response):
            response.extensions["network_stream"].close()
    except Exception as error:  # noqa: BLE001 - the status has come, and it is the answer
        raise_interruption(error, before)
        return None
    finally:
        response.close()
    return bytes(body)


async def read_async(response: httpx.Response, before: Optional[BaseException]) -> Optional[bytes]:
    """Do the same in a task."""
    body = bytearray()
    try:
        if response.is_stream_consumed:
            return response.content
        async for chunk in cast("httpx.AsyncByteStream", response.stream):
            body += chunk
            if len(body) > MAX_ANSWER_BYTES:
                return bytes(body)
        network_stream = response.extensions.get("network_stream")
        if has_more(response) or has_unread(network_stream):
            await cast("httpcore.AsyncNetworkStream", network_stream).aclose()
    except Exception as error:  # noqa: BLE001 - as above
        raise_interruption(error, before)
        return None
    finally:
        await response.aclose()
    return bytes(body)


def headers_of(response: httpx.Response) -> Dict[str, str]:
    """Return the headers, for a body that `read` returned: what a hook has read is unpacked."""
    headers = dict(response.headers)
    if response.is_stream_consumed:
        headers.pop("content-encoding", None)
    return headers


def has_more(response: httpx.Response) -> bool:
    """Return whether the connection has received bytes behind the end of this answer."""
    layer: object = response.stream
    for _ in range(_MOST_LAYERS):
        conversation = getattr(layer, "_h11_state", None)
        if conversation is not None:
            return bool(conversation.trailing_data[0])
        inner = (getattr(layer, name, None) for name in _INNER)
        layer = next((each for each in inner if each is not None), None)
    return False
