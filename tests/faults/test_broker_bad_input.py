"""A Redis that is not what the URL says, or not what is needed: told, without a secret, nothing lost."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading

import pytest
import redis
from tracking import numbers, track

from windback import ConfigurationError, Windback
from windback.broker.layout import keys_of
from windback.relay import BrokerRelay

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="it runs no redis-server"),
    pytest.mark.usefixtures("no_environment"),
]

EVENTS, DEAD, _ = keys_of(None)


def deliver(url, server):
    relay = BrokerRelay(url, "sk_test_1", base_url=server.url)
    assert relay.drain(20)
    relay.close()


# TLS


class Tls:
    """A Redis that speaks TLS alone, and the certificates around it."""

    def __init__(self, make_redis, folder, name="127.0.0.1"):
        trustme = pytest.importorskip("trustme", reason="it is left out on Python 3.8")
        authority = trustme.CA()
        certificate = authority.issue_cert(name)
        self.authority = folder / "ca.pem"
        authority.cert_pem.write_to_path(self.authority)
        certificate.cert_chain_pems[0].write_to_path(folder / "cert.pem")
        certificate.private_key_pem.write_to_path(folder / "key.pem")
        options = ("--tls-cert-file", folder / "cert.pem", "--tls-key-file", folder / "key.pem")
        plain = make_redis()
        plain.command[plain.command.index("--port")] = "--tls-port"
        plain.options += ["--port", "0", *map(str, options), "--tls-auth-clients", "no"]
        plain.client = redis.Redis(
            port=plain.port,
            protocol=2,
            decode_responses=True,
            ssl=True,
            ssl_ca_certs=str(self.authority),
            ssl_check_hostname=False,
        )
        plain.start()
        self.redis = plain
        self.place = f"rediss://127.0.0.1:{plain.port}/0"
        self.url = f"{self.place}?ssl_ca_certs={self.authority}"


@pytest.fixture
def make_tls(make_redis, tmp_path):
    def make_tls(**options):
        probe = make_redis()
        done = subprocess.run(
            [probe.command[0], "--tls-port", "0", "--port", "0", "--bogus"],
            capture_output=True,
            text=True,
            check=False,
        )
        if "tls-port" in done.stdout + done.stderr:
            pytest.skip("this redis-server was built without TLS")
        return Tls(make_redis, tmp_path, **options)

    return make_tls


def test_over_tls_events_arrive(make_tls, server):
    tls = make_tls()
    with Windback(broker=tls.url) as client:
        track(client, range(100))
        assert client.flush(20)
    assert tls.redis.client.xlen(EVENTS) >= 1
    deliver(tls.url, server)
    assert numbers(server) == list(range(100))


def refused(url, server, says):
    """Neither an application nor a relay talks to it; the application keeps its events and goes on."""
    with Windback(broker=url, timeout=1, max_retries=0, shutdown_timeout=0) as client:
        track(client, range(10))
        result = client.flush()
        assert (result.pending, result.delivered) == (10, 0)
        assert says in result.problem
        track(client, range(10))
    relay = BrokerRelay(url, "sk_test_1", base_url=server.url, timeout=1)
    assert not relay.drain(0.5)
    assert says in relay.stats().problem
    relay.close()


def test_a_certificate_that_nobody_known_has_signed_is_refused(make_tls, server):
    tls = make_tls()
    refused(tls.place, server, "CERTIFICATE_VERIFY_FAILED")
    assert tls.redis.client.xlen(EVENTS) == 0


def test_a_certificate_of_another_host_is_refused(make_tls, server):
    tls = make_tls(name="redis.example.com")
    refused(tls.url, server, "CERTIFICATE_VERIFY_FAILED")
    assert tls.redis.client.xlen(EVENTS) == 0
    with Windback(broker=f"{tls.url}&ssl_check_hostname=false") as client:  # whoever knows better may say so
        track(client, range(10))
        assert client.flush(20)


def test_without_tls_where_it_is_needed_and_the_other_way_round(make_tls, redis_server, server):
    tls = make_tls()
    place = f"redis://127.0.0.1:{tls.redis.port}/0"
    refused(place, server, place)
    place = redis_server.url.replace("redis://", "rediss://")
    refused(place, server, place)


# Too old


@pytest.mark.parametrize("missing", ["XADD", "XAUTOCLAIM"])
def test_a_redis_without_the_commands_is_reported_and_nothing_is_lost(make_redis, server, missing):
    """As one before 5.0, which has no streams, and one before 6.2."""
    old = make_redis("--rename-command", missing, "")
    old.start()
    if missing == "XADD":
        with Windback(broker=old.url, shutdown_timeout=0) as client:
            track(client, range(10))
            result = client.flush(20)
            assert (result.pending, result.delivered) == (10, 0)
            assert f"{old.url}: it is too old, 6.2 is needed" in result.problem
    else:
        relay = BrokerRelay(old.url, "sk_test_1", base_url=server.url)
        assert not relay.drain(2)
        assert f"{old.url}: it is too old, 6.2 is needed" in relay.stats().problem
        relay.close()


class Old:
    """What a Redis of long ago says of itself."""

    def __init__(self):
        import socketserver

        class Handler(socketserver.StreamRequestHandler):
            def handle(self):
                while True:
                    head = self.rfile.readline()
                    if not head:
                        return
                    words = []
                    for _ in range(int(head[1:])):
                        size = int(self.rfile.readline()[1:])
                        words.append(self.rfile.read(size + 2)[:-2].upper())
                    if words[0] == b"INFO":
                        text = b"# Server\r\nredis_version:5.0.14\r\n"
                        self.wfile.write(b"$%d\r\n%b\r\n" % (len(text), text))
                    else:
                        self.wfile.write(b"-ERR unknown command\r\n")

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"redis://127.0.0.1:{self._server.server_address[1]}/0"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def test_a_relay_does_not_start_on_a_redis_that_is_too_old(server):
    old = Old()
    try:
        with pytest.raises(ConfigurationError, match=r"Redis 5\.0\.14 is too old, 6\.2 is needed") as caught:
            BrokerRelay(old.url, "sk_test_1", base_url=server.url)
        assert old.url in str(caught.value)
    finally:
        old.close()


# Memory


def test_what_a_policy_deleted_is_lost_as_was_warned_and_all_goes_on(make_redis, server, eventually, caplog):
    caplog.set_level(logging.WARNING)
    redis_server = make_redis("--maxmemory-policy", "allkeys-lru")
    redis_server.start()
    relay = BrokerRelay(redis_server.url, "sk_test_1", base_url=server.url)
    with Windback(broker=redis_server.url) as client:
        track(client, range(10))
        assert client.flush(20)
        redis_server.client.config_set("maxmemory", "1")
        with pytest.raises(redis.OutOfMemoryError):
            redis_server.client.set("x", "y")
        assert redis_server.client.exists(EVENTS) == 0
        redis_server.client.config_set("maxmemory", "0")
        thread = threading.Thread(target=relay.run)
        thread.start()
        try:
            track(client, range(10, 20))
            assert client.flush(20)
            eventually(lambda: len(server.events()) == 10, 30)
        finally:
            relay.stop()
            thread.join()
    assert numbers(server) == list(range(10, 20))
    warned = [record.message for record in caplog.records if "maxmemory-policy" in record.message]
    assert [("allkeys-lru" in line, "set it to noeviction" in line) for line in warned] == [(True, True)] * 2
