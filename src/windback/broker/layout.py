"""The contents of Redis: the keys, the fields of an entry, and the scripts for steps that must be atomic.

    {windback:SLUG}:events   a stream, an entry for each batch; the consumer group `relays` reads it
        v        1, the version of this layout
        key      the Idempotency-Key, the same for every try of these events, by any relay
        count    how many events
        project  the slug of the project, empty if the application has none
        events   the events as they were tracked, one per line: JSON contains no line end
    {windback:SLUG}:dead     a stream, an entry for each event that the API will never accept
        reason, status, message, key, project, entry, event; for a foreign entry its fields,
        each with `of:` before its name
    {windback:SLUG}:pause    exists while the API wants no relay of that project to send; expires by itself
    {windback}:projects      a set of all slugs that applications have written under

SLUG is the project's. An application without one has {windback}:events and so on. The braces put the
keys of a project into one slot of a Redis Cluster, because a script may access only one. An entry is deleted
when it is acknowledged, so the length of the stream is the number of waiting batches, and nothing is ever
trimmed. The work of a relay frees memory, so it must not fail for lack of memory: no MULTI, which Redis
refuses then.
"""

from __future__ import annotations

from itertools import islice
from typing import List, Mapping, NamedTuple, Optional, Sequence, Tuple, Union

import orjson

from ..api.answer import Failure
from ..event.batch import is_key
from ..stats import DeliveryReport

Value = Union[str, bytes, int]


class Numbers(NamedTuple):
    """The contents of a broker for one project: batches, seconds since the oldest arrived, dead letters."""

    project: str
    batches: int
    oldest_s: Optional[float]
    dead_letters: int


PROJECTS = "{windback}:projects"
GROUP = "relays"

VERSION = b"1"
#: If all events of a project are rejected, they must not fill Redis.
MAX_DEAD = 20_000
#: How many fields of a foreign entry are kept: the number of a script's arguments is limited.
_MAX_FOREIGN = 100


class Keys(NamedTuple):
    """The keys of one project."""

    events: str
    dead: str
    pause: str


def keys_of(project: Optional[str]) -> Keys:
    """Return the keys of the project with that slug, or of the applications that have none."""
    tag = f"{{windback:{project}}}" if project else "{windback}"
    return Keys(f"{tag}:events", f"{tag}:dead", f"{tag}:pause")


#: Appends an entry, unless there are too many already. KEYS: events. ARGV: how many there may be, then the
#: arguments of XADD.
APPEND = """\
if redis.call('XLEN', KEYS[1]) >= tonumber(ARGV[1]) then return false end
return redis.call('XADD', KEYS[1], '*', unpack(ARGV, 2))
"""

#: Reads new entries, unless the project has a pause. KEYS: events, pause. ARGV: the group, the consumer, how
#: many entries. Returns the milliseconds of the pause, negative if there is none, and the result of
#: XREADGROUP.
READ = """\
local left = redis.call('PTTL', KEYS[2])
local found = false
if left <= 0 and tonumber(ARGV[3]) > 0 then
  found = redis.call('XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', ARGV[3], 'STREAMS', KEYS[1], '>')
end
return {left, found}
"""

#: Makes all relays of a project wait, unless they already wait for longer. KEYS: pause. ARGV: the
#: milliseconds. DEL goes first: out of memory, Redis refuses SET to a script that has written nothing.
PAUSE = """\
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[1]) then
  redis.call('DEL', KEYS[1])
  redis.call('SET', KEYS[1], 1, 'PX', ARGV[1])
end
return 0
"""

#: Acknowledges entries and removes them. KEYS: events. ARGV: the group, the entries.
SETTLE = """\
redis.call('XACK', KEYS[1], unpack(ARGV))
redis.call('XDEL', KEYS[1], unpack(ARGV, 2))
return 0
"""

#: Writes dead letters and removes the entry they were in, both or none, and once. Returns how many letters
#: there was no room for. KEYS: events, dead. ARGV:
#: the group, the entry, how many letters there may be, then for each letter the number of its values, and
#: those. XLEN fails before anything is written, if the key is not a stream. The entry goes first: out of
#: memory, Redis refuses XADD to a script that has written nothing, and not to one that has.
MOVE_TO_DEAD_LETTERS = """\
if #redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[2], ARGV[2], 1) == 0 then return 0 end
local room = tonumber(ARGV[3]) - redis.call('XLEN', KEYS[2])
redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
redis.call('XDEL', KEYS[1], ARGV[2])
local at = 4
while at <= #ARGV and room > 0 do
  local last = at + tonumber(ARGV[at])
  redis.call('XADD', KEYS[2], '*', unpack(ARGV, at + 1, last))
  at = last + 1
  room = room - 1
end
local dropped = 0
while at <= #ARGV do
  at = at + tonumber(ARGV[at]) + 1
  dropped = dropped + 1
end
return dropped
"""

#: Sets how long entries have been idle, if they still belong to this consumer. KEYS: events. ARGV: the group,
#: the consumer, the milliseconds, the entries.
TOUCH = """\
for i = 4, #ARGV do
  local found = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1)
  if found[1] and found[1][2] == ARGV[2] then
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[i], 'IDLE', ARGV[3], 'JUSTID')
  end
end
return 0
"""

#: Removes a consumer without entries; any entries of it would be lost with it. KEYS: events. ARGV: the group,
#: the consumer.
FORGET = """\
if #redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 1, ARGV[2]) == 0 then
  redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
end
return 0
"""


#: Counts. KEYS: events, dead. Returns how many entries there are, the first, the dead letters, and the time.
COUNT = """\
local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)
return {redis.call('XLEN', KEYS[1]), first, redis.call('XLEN', KEYS[2]), redis.call('TIME')}
"""

#: Turns a dead letter into an event again, once. KEYS: events, dead. ARGV: the letter, then the arguments of
#: XADD.
REVIVE = """\
if #redis.call('XRANGE', KEYS[2], ARGV[1], ARGV[1]) == 0 then return 0 end
redis.call('XADD', KEYS[1], '*', unpack(ARGV, 2))
redis.call('XDEL', KEYS[2], ARGV[1])
return 1
"""


class Entry(NamedTuple):
    """One batch in the stream."""

    id: bytes
    key: str
    project: str
    records: Sequence[bytes]


class BrokerError(Exception):
    """Redis did not execute a command. The text has the place and no password."""

    def __init__(self, failure: Failure, text: str, *, no_group: bool = False) -> None:
        super().__init__(text)
        self.failure = failure
        self.text = text
        #: There is no group, as in a new Redis, or after a restart of one without persistence.
        self.no_group = no_group


class ForeignError(Exception):
    """An entry that this package did not write, or that a later version did. The text names the mistake."""


def fields_of(records: Sequence[bytes], key: str, project: Optional[str]) -> Tuple[Value, ...]:
    """Return the fields of an entry and their values, as arguments of XADD."""
    events = b"\n".join(records)
    return "v", VERSION, "key", key, "count", len(records), "project", project or "", "events", events


def entry_of(entry_id: bytes, fields: Mapping[bytes, bytes], project: Optional[str]) -> Entry:
    """Read an entry of the stream of *project*. Raises ForeignError."""
    for name in (b"v", b"key", b"count", b"project", b"events"):
        if name not in fields:
            raise ForeignError(f"it has no field {name.decode()!r}")
    if fields[b"v"] != VERSION:
        raise ForeignError(f"its layout is version {fields[b'v'][:20]!r}, and this package reads {VERSION!r}")
    records = fields[b"events"].split(b"\n")
    if fields[b"count"] != b"%d" % len(records) or not all(records):
        raise ForeignError("its count is not the number of its events")
    if not all(map(_is_object, records)):
        raise ForeignError("one of its events is not a JSON object")
    key = fields[b"key"].decode("latin-1")
    if fields[b"project"].decode("utf-8", "replace") != (
        project or ""
    ):  # otherwise it would get another project's key
        raise ForeignError(f"it belongs to the project {fields[b'project'][:100]!r}, whose stream is another")
    if not is_key(key):
        raise ForeignError("its key is not an Idempotency-Key")
    return Entry(entry_id, key, project or "", records)


def _is_object(record: bytes) -> bool:
    """Whether *record* is exactly one JSON object: more could change the body of a request."""
    try:
        return isinstance(orjson.loads(record), dict)
    except orjson.JSONDecodeError:
        return False


def letters_of(
    entry: Entry, records: Sequence[bytes], key: str, report: DeliveryReport
) -> List[Tuple[Value, ...]]:
    """Return dead letters for events that the API rejected, as arguments of XADD."""
    return [
        (
            *("reason", report.reason, "status", report.status or "", "message", report.message or ""),
            *("key", key, "project", entry.project, "entry", entry.id, "event", record),
        )
        for record in records
    ]


def foreign_letter(entry_id: bytes, fields: Mapping[bytes, bytes], why: str) -> Tuple[Value, ...]:
    """Return the dead letter for a foreign entry, with its contents."""
    letter: List[Value] = ["reason", "foreign", "message", why, "entry", entry_id]
    for name, value in islice(fields.items(), _MAX_FOREIGN):
        letter += b"of:" + name, value
    return tuple(letter)
