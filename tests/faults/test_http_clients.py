"""http_client=: a client of httpx, or of httpx2, its successor; known by what it does, not by its class."""

from __future__ import annotations

import anyio
import pytest
from tracking import numbers, track

from windback import (
    AsyncWindback,
    ConfigurationError,
    Windback,
    WindbackConnectionError,
    WindbackTimeoutError,
)

OPTIONS = {"api_key": "sk_test_1", "project_slug": "my-project", "shutdown_timeout": 0}


class Wrapped:
    """A client of the user's that is no subclass of anything."""

    def __init__(self, client):
        self._client = client

    def build_request(self, *arguments, **options):
        return self._client.build_request(*arguments, **options)

    def send(self, *arguments, **options):
        return self._client.send(*arguments, **options)

    def close(self):
        self._client.close()


def test_events_and_calls_go_through_it(server, httpx_package):
    with httpx_package.Client(headers={"X-Mine": "yes"}) as http_client:
        client = Windback(**OPTIONS, base_url=server.url, http_client=http_client)
        track(client, range(10))
        assert client.flush(20)
        assert client.get_recovery_stats() is not None
        client.close()
        assert not http_client.is_closed
    assert numbers(server) == list(range(10))


def test_one_that_wraps_another_will_do(server, httpx_package):
    with httpx_package.Client() as http_client:
        client = Windback(**OPTIONS, base_url=server.url, http_client=Wrapped(http_client))
        track(client, range(3))
        assert client.flush(20)
        client.close()
    assert numbers(server) == list(range(3))


def test_the_async_client_takes_an_async_one(server, httpx_package):
    async def main():
        async with httpx_package.AsyncClient() as http_client:
            client = AsyncWindback(**OPTIONS, base_url=server.url, http_client=http_client)
            for n in range(5):
                await client.track_event("login", "jane@example.com", {"n": n})
            assert await client.flush(20)
            assert await client.get_recovery_stats() is not None
            await client.close()
            assert not http_client.is_closed

    anyio.run(main)
    assert numbers(server) == list(range(5))


def test_its_failures_are_distinguished(dead_url, silent_url, httpx_package):
    with httpx_package.Client() as http_client:
        options = {**OPTIONS, "http_client": http_client, "timeout": 0.5, "max_retries": 0}
        with pytest.raises(WindbackTimeoutError):
            Windback(**options, base_url=silent_url).get_recovery_stats()
        with pytest.raises(WindbackConnectionError, match="connect") as caught:
            Windback(**options, base_url=dead_url).get_recovery_stats()
        assert not isinstance(caught.value, WindbackTimeoutError)


def test_one_of_the_other_kind_is_refused(httpx_package):
    with httpx_package.Client() as http_client, pytest.raises(
        ConfigurationError, match=r"httpx\.AsyncClient"
    ):
        AsyncWindback(**OPTIONS, http_client=http_client)
    with pytest.raises(ConfigurationError, match=r"httpx\.Client, not an AsyncClient"):
        Windback(**OPTIONS, http_client=httpx_package.AsyncClient())


@pytest.mark.parametrize("value", [3, "client", object(), OPTIONS], ids=["number", "text", "object", "dict"])
def test_what_can_not_send_is_refused(value):
    with pytest.raises(ConfigurationError, match=r"http_client must be an httpx\.Client, not "):
        Windback(**OPTIONS, http_client=value)
