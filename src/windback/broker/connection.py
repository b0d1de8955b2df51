"""A minimal interface to Redis: a command goes out, an answer or a BrokerError comes back.

Only this module uses redis-py. The library's own retries are off: `delivery` decides about retries.
"""

from __future__ import annotations

import contextlib
import logging
from typing import Callable, Dict, List, Mapping, Optional, Sequence, Tuple, Union, cast

import redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.exceptions import MovedError
from redis.retry import Retry
from redis.sentinel import Sentinel

from ..api.answer import Failure
from ..http import egress as guard
from ..secrets import BrokerAddress, Secret, without_frames
from .layout import BrokerError, Keys, Value

logger = logging.getLogger("windback")

#: The values for "no" in a URL, as in redis-py.
_FALSE = ("0", "f", "false", "n", "no")

#: The version that introduced XAUTOCLAIM.
_OLDEST = (6, 2)

#: The messages of Redis; the first of these that is in the text counts. A script's errors contain the same
#: words.
_REFUSALS = {
    "WRONGPASS": "wrong user name or password",
    "invalid username-password": "wrong user name or password",
    "invalid password": "wrong user name or password",
    "NOAUTH": "it needs a password",
    "Authentication required": "it needs a password",
    "unauthenticated": "it needs a password",  # said of a command with many arguments
    "without any password configured": "a password was given, but none is configured there",
    "NOPERM": "the user may not run the commands or touch the keys that are needed",
    "has no permissions": "the user may not run the commands or touch the keys that are needed",
    "WRONGTYPE": "one of the keys contains something other than a stream",
    "MOVED": "it is a node of a Redis Cluster, whose URL starts with redis+cluster://",
    "cluster support disabled": "it is not a Redis Cluster",
    "Cluster mode is not enabled": "it is not a Redis Cluster",
    "unknown command": "it is too old, 6.2 is needed",
    "Unknown Redis command": "it is too old, 6.2 is needed",
    "DB index is out of range": "it has no database of that number",
}


class Connection:
    """A pool of connections to one Redis, safe to share between threads. It connects at the first command."""

    def __init__(self, address: BrokerAddress, timeout_s: float) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._client: Union[redis.Redis, RedisCluster, None] = None

    def within(self, timeout_s: float) -> Connection:
        """Return this one; or, if its timeout is longer, a separate one for a single command."""
        return self if timeout_s >= self._timeout_s else Connection(self._address, timeout_s)

    def call(self, *command: Value) -> object:
        """Run one command. Raises BrokerError."""
        try:
            for host, _ in self._address.nodes:
                guard.check(host)
            client = self._client
            if client is None:
                client = self._client = _open(self._address, self._timeout_s)
            execute: Callable[..., object] = client.execute_command
            return execute(*command)
        except Exception as error:  # noqa: BLE001 - any exception means that there is no answer
            failed = self._read(error)
        except BaseException as error:  # noqa: BLE001 - an interrupt or a cancellation
            raise without_frames(error)  # noqa: B904 - the frames of redis-py contain the password
        raise failed  # not in the handler, or the exception of redis-py would be its context

    def script(self, text: str, keys: Sequence[str], *arguments: Value) -> object:
        """Run a script, which is atomic. Raises BrokerError."""
        return self.call("EVAL", text, len(keys), *keys, *arguments)

    def _read(self, error: Exception) -> BrokerError:
        """Return the error without the password."""
        said = self._address.redact(str(error) or type(error).__name__)
        if isinstance(error, MovedError):  # redis-py removes that word
            said = f"MOVED {said}"
        place = self._address.place
        if isinstance(error, guard.RefusedError):
            return BrokerError(Failure.FORBIDDEN, f"{place}: {said}")
        if "OOM command not allowed" in said or "used memory > 'maxmemory'" in said:
            text = (
                f"{place}: Redis is out of memory (maxmemory) and accepts no more; "
                "raise maxmemory or start a relay"
            )
            return BrokerError(Failure.FULL, text)
        for words, meaning in _REFUSALS.items():
            if words in said:
                return BrokerError(Failure.REFUSED, f"{place}: {meaning} ({said})")
        text = f"{place}: {said}"
        if isinstance(error, redis.TimeoutError):
            is_connect = "connecting" in said
            return BrokerError(Failure.CONNECT_TIMEOUT if is_connect else Failure.TIMEOUT, text)
        is_nowhere = " connecting to " in said or "No master found" in said
        if isinstance(error, redis.ConnectionError) and is_nowhere:
            return BrokerError(Failure.CONNECT, text)
        no_group = "NOGROUP" in said or "no such key" in said
        return BrokerError(Failure.BROKEN, text, no_group=no_group)

    def warn_of_eviction(self) -> bool:
        """Log a warning if Redis may delete undelivered events. Returns whether it could be asked."""
        try:
            policy = str(self._info("memory").get("maxmemory_policy", ""))
        except BrokerError:  # the user may not be allowed to ask
            return False
        if policy.startswith("allkeys"):
            logger.warning(
                "broker %s: its maxmemory-policy is %s, so it may delete events that are not delivered; "
                "set it to noeviction",
                self._address.place,
                policy,
            )
        return True

    def check(self, keys: Keys) -> None:
        """Raise BrokerError if a relay of these keys can't work with this Redis."""
        version = ""
        with contextlib.suppress(
            BrokerError
        ):  # the user may not be allowed to ask; other problems are found below
            version = str(self._info("server").get("redis_version", ""))
        numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
        if numbers and numbers < _OLDEST:
            text = f"{self._address.place}: Redis {version} is too old, 6.2 is needed"
            raise BrokerError(Failure.REFUSED, text)
        for key in (keys.events, keys.dead):
            kind = self.call("TYPE", key)
            if kind not in (b"none", b"stream", "none", "stream"):
                kind = kind.decode() if isinstance(kind, bytes) else kind
                text = f"{self._address.place}: {key} must be a stream, but is a {kind} (WRONGTYPE)"
                raise BrokerError(Failure.REFUSED, text)

    def _info(self, section: str) -> Mapping[str, object]:
        answer = self.call("INFO", section)
        return answer if isinstance(answer, dict) else {}

    def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            self._client.close()
            self._client = None


def _open(address: BrokerAddress, timeout_s: float) -> Union[redis.Redis, RedisCluster]:
    common: Dict[str, object] = {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
    }
    if address.is_verified:  # before 6.0 redis-py checks only who signed a certificate, and not its host name
        common["ssl_check_hostname"] = True
    common.update(_revealed(address.tls))
    account = _account(address.user, address.password)
    if address.is_cluster:
        make_node = cast("Callable[[str, int], ClusterNode]", ClusterNode)
        make_cluster = cast("Callable[..., RedisCluster]", RedisCluster)  # which connects
        nodes = [make_node(host, port) for host, port in address.nodes]
        return make_cluster(startup_nodes=nodes, ssl=address.is_tls, **common, **account)
    if address.is_sentinel:
        common["ssl"] = address.is_tls
        make_sentinel = cast("Callable[..., Sentinel]", Sentinel)
        theirs = _account(address.sentinel_user, address.sentinel_password)
        sentinel = make_sentinel(address.nodes, sentinel_kwargs={**common, **theirs})
        master_for = cast("Callable[..., redis.Redis]", sentinel.master_for)
        return master_for(address.service, db=address.database, **common, **account)
    return cast("Callable[..., redis.Redis]", redis.Redis.from_url)(address.place, **common, **account)


class _Account(redis.CredentialProvider):
    """Gives redis-py the password when it connects, so that none of its objects contains it."""

    def __init__(self, user: Optional[Secret], password: Optional[Secret]) -> None:
        self._user, self._password = user, password

    def get_credentials(self) -> Union[Tuple[str], Tuple[str, str]]:
        password = "" if self._password is None else self._password.reveal()
        return (password,) if self._user is None else (self._user.reveal(), password)


def _account(user: Optional[Secret], password: Optional[Secret]) -> Dict[str, _Account]:
    return {"credential_provider": _Account(user, password)} if user or password else {}


def _revealed(tls: Mapping[str, Union[str, Secret]]) -> Dict[str, object]:
    """Return options of TLS in the form of redis-py: those of a URL are texts."""
    given: Dict[str, object] = {
        name: value.reveal() if isinstance(value, Secret) else value for name, value in tls.items()
    }
    if "ssl_check_hostname" in given:
        given["ssl_check_hostname"] = str(given["ssl_check_hostname"]).lower() not in _FALSE
    return given


def pairs(found: object) -> List[Tuple[bytes, Dict[bytes, bytes]]]:
    """Return the entries in an answer, also of a script: ids with fields, without deleted ones."""
    entries: List[Tuple[bytes, Dict[bytes, bytes]]] = []
    for each in found if isinstance(found, (list, tuple)) else ():
        entry_id, fields = each
        if isinstance(fields, list):
            fields = dict(zip(fields[::2], fields[1::2]))
        if isinstance(entry_id, bytes) and isinstance(fields, dict):
            entries.append((entry_id, fields))
    return entries
