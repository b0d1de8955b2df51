"""Anything passed to track_event ends in bytes or in InvalidEventError: no crash, no other exception.

A crash of the interpreter ends the process, so they are tried in one of their own: with the orjson that is
installed, and with the oldest and the newest that the registry has for this Python.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import orjson
import pytest
from packaging.requirements import Requirement  # pytest brings it

import windback
from windback.event.encode import encode

PROGRAM = """
import collections, dataclasses, datetime, enum, gc, os, sys, threading, uuid
from decimal import Decimal
import windback

@dataclasses.dataclass
class Box:
    v: object = None

@dataclasses.dataclass
class Slotted:
    __slots__ = ("v",)
    v: object

class Mapping(collections.UserDict): pass
class MyDict(dict): pass
class MyList(list): pass
class MyTuple(tuple): pass
class MyStr(str): pass
class MyInt(int): pass
Point = collections.namedtuple("Point", "v")

class Endless(collections.abc.Mapping):
    def __iter__(self): return iter("a")
    def __len__(self): return 1
    def __getitem__(self, key): return Endless()

class Unending(collections.abc.Mapping):
    def __iter__(self):
        number = 0
        while True:
            yield str(number)
            number += 1
    def __len__(self): return 1
    def __getitem__(self, key): return 1

class UnendingSet(set):
    def __iter__(self):
        while True:
            yield 1

class Model:
    def model_dump(self): return {"m": (self,)}

class Rude:
    def __getattr__(self, name): raise RuntimeError(name)
    def __str__(self): raise RuntimeError("str")
    __repr__ = __str__

class Fspath:
    def __fspath__(self): return "x"
    def __str__(self): raise ValueError("no")

class Liar(dict):
    def items(self): raise RuntimeError("items")

class RudeEnum(enum.Enum):
    A = 1
    @property
    def value(self): raise RuntimeError("value")

class Weekday(enum.Enum):
    MONDAY = 1

class Zone(datetime.tzinfo):
    calls = 0
    def utcoffset(self, moment):
        self.calls += 1
        if self.calls > 1:  # the first is for the hash
            raise RuntimeError("offset")

def hide(kind, value, key=1):
    class Hides(kind):
        def items(self): return []
        values = keys = items
        def __iter__(self): return iter(())
        def __len__(self): return 0
    return Hides({key: value}) if issubclass(kind, dict) else Hides([value])

def odd_uuid(number):
    made = uuid.uuid4()
    object.__setattr__(made, "int", number)
    return made

@dataclasses.dataclass
class Unset:
    v: object = dataclasses.field(init=False)

def nest(make, levels, value=1):
    for _ in range(levels):
        value = make(value)
    return value

def enum_of(value):
    return enum.Enum("E", {"A": value}).A

def cycle_of_tuple():
    inner = []
    outer = (inner,)
    inner.append(outer)
    return outer

def cycle_of_enum():
    inner = []
    member = enum_of((inner,))
    inner.append(member)
    return member

def old_tuple(levels, make=lambda v: (v,)):
    value = 1
    for _ in range(levels):
        value = make(value)
        gc.collect(0)  # which stops tracking a tuple of plain values
    assert not gc.is_tracked(value)
    return value

def self_of(make, put):
    value = make()
    put(value)
    return value

def braid():
    a, b = [], {}
    c = Box((a, b))
    a.append(c); b["c"] = (c, a)
    return c

VALUES = {
    "tuple in itself": cycle_of_tuple,
    "enum in itself": cycle_of_enum,
    "braid": braid,
    "dict in itself": lambda: self_of(dict, lambda v: v.update(v=v)),
    "list in itself": lambda: self_of(list, lambda v: v.append(v)),
    "dict of a subclass in itself": lambda: self_of(MyDict, lambda v: v.update(v=(v,))),
    "list of a subclass in itself": lambda: self_of(MyList, lambda v: v.append((v,))),
    "dataclass in itself": lambda: self_of(Box, lambda v: setattr(v, "v", (v,))),
    "mapping in itself": lambda: self_of(Mapping, lambda v: v.update(v=v)),
    "endless mapping": Endless,
    "mapping without an end": Unending,
    "set without an end": lambda: UnendingSet([1]),
    "model in itself": Model,
    "rude object": Rude,
    "rude key": lambda: {Rude(): 1},
    "rude path": Fspath,
    "lying dict": lambda: Liar(a=1, b=object()),
    "dataclass, list in itself": lambda: self_of(Box, lambda v: setattr(v, "v", [v])),
    "dataclass, list in itself, one lower": lambda: [self_of(Box, lambda v: setattr(v, "v", [v]))],
    "dataclass, dict in itself": lambda: self_of(Box, lambda v: setattr(v, "v", {"v": v})),
    "dataclass, dict in itself, one lower": lambda: [self_of(Box, lambda v: setattr(v, "v", {"v": v}))],
    "mappings of deep dataclasses": lambda: nest(lambda v: Mapping(v=nest(lambda w: Box([w]), 90, v)), 240),
    "deep key": lambda: {nest(lambda v: (v,), 5000): 1},
    "deep frozenset key": lambda: {nest(lambda v: frozenset([v]), 500): 1},
    "deep tuple in a set": lambda: {nest(lambda v: (v,), 3000)},
    "deep tuple in a mapping": lambda: Mapping(v=nest(lambda v: (v,), 3000)),
    "deep tuple in a namedtuple": lambda: Point(nest(lambda v: (v,), 3000)),
    "deep tuple of a dict key type": lambda: {1: nest(lambda v: (v,), 3000)},
    "wide and deep": lambda: nest(lambda v: (v, v), 3000),
    "str subclass": lambda: MyStr("x"),
    "int subclass": lambda: MyInt(5),
    "huge int": lambda: 10 ** 5000,
    "surrogates": lambda: ["\\ud800", {"\\udfff": 1}],
    "memoryview": lambda: memoryview(b"x" * 10)[::2],
    "type": lambda: type,
    "module": lambda: sys,
    "generator": lambda: (each for each in ()),
    "frame": lambda: sys._getframe(),
    "NotImplemented": lambda: NotImplemented,
    "Ellipsis": lambda: ...,
    "bytes": lambda: b"\\xff\\x00",
    "range": lambda: range(3),
    "exception": lambda: ValueError("x"),
    "weird enum": lambda: enum_of(object()),
    "rude enum": lambda: RudeEnum.A,
    "rude enum as a key": lambda: {RudeEnum.A: 1},
    "rude enum in a tuple": lambda: [(RudeEnum.A,)],
    "rude enum in a set": lambda: {RudeEnum.A},
    "rude enum in a dataclass": lambda: Box({"a": [RudeEnum.A]}),
    "rude enum in a mapping": lambda: Mapping({RudeEnum.A: RudeEnum.A}),
    "half-made enum": lambda: object.__new__(Weekday),
    "UUID without a number": lambda: object.__new__(uuid.UUID),
    "UUIDs of wrong numbers": lambda: [odd_uuid("x"), odd_uuid(2 ** 200), odd_uuid(-1)],
    "UUID of text": lambda: [odd_uuid("x")],
    "UUID of too much": lambda: [odd_uuid(2 ** 200)],
    "rude zone in a key": lambda: {datetime.time(1, tzinfo=Zone()): 1},
    "rude zone in a key's date": lambda: {datetime.datetime(2020, 1, 1, tzinfo=Zone()): 1},
    "rude zone": lambda: datetime.datetime(2020, 1, 1, tzinfo=Zone()),
    "dict that hides what it has": lambda: hide(MyDict, RudeEnum.A),
    "dict that hides its depth": lambda: hide(MyDict, nest(lambda v: (v,), 3000)),
    "list that hides what it has": lambda: hide(MyList, RudeEnum.A),
    "tuple that hides what it has": lambda: hide(MyTuple, RudeEnum.A),
    "dict that hides its key": lambda: hide(MyDict, 1, RudeEnum.A),
    "deep enum as a key": lambda: {nest(enum_of, 300): 1},
    "dataclass without its field": lambda: Unset(),
    "endless lists": lambda: nest(lambda v: [v, v], 100),
    "endless dicts": lambda: nest(lambda v: {"a": v, "b": v}, 100),
    "endless tuples": lambda: nest(lambda v: (v, v), 100),
    "endless dataclasses": lambda: nest(lambda v: Box([v, v]), 50),
    "endless mappings": lambda: nest(lambda v: Mapping(a=v, b=v), 100),
    "endless behind a key": lambda: {1: nest(lambda v: Mapping(a=v, b=v), 100)},
    "endless behind a wrong value": lambda: [object(), nest(lambda v: {"a": v, "b": v}, 100)],
    "endless old tuples": lambda: old_tuple(100, lambda v: (v, v)),
    "endless old tuples in a dict of a list": lambda: [{"a": old_tuple(100, lambda v: (v, v))}],
    "wide": lambda: [[0] * 100_000] * 100_000,
    "wide dicts": lambda: [dict.fromkeys(map(str, range(100_000)), 0)] * 100_000,
    "huge Decimals": lambda: [Decimal("1E400"), Decimal("-1E999999"), Decimal("sNaN"), Decimal("1" * 9999)],
}
for levels in (100, 200, 260, 1100, 2000, 20000):
    if levels < 10000:
        VALUES[f"{levels} old tuples"] = lambda levels=levels: old_tuple(levels)
    for name, make in {
        "tuples": lambda v: (v,),
        "lists": lambda v: [v],
        "dicts": lambda v: {"v": v},
        "tuple, list": lambda v: ([v],),
        "tuple, dict": lambda v: ({"v": v},),
        "tuples of a subclass": lambda v: MyTuple((v,)),
        "lists of a subclass": lambda v: MyList([v]),
        "dicts of a subclass": lambda v: MyDict(v=v),
        "dataclasses": Box,
        "slotted": Slotted,
        "dataclass, tuple": lambda v: Box((v,)),
        "dataclass, list": lambda v: Box([v]),
        "list, dataclass": lambda v: [Box(v)],
        "dataclass, dict": lambda v: Box({"v": v}),
        "slotted, list": lambda v: Slotted([v]),
        "three lists, dataclass": lambda v: [[[Box(v)]]],
        "namedtuples": Point,
        "mappings": lambda v: Mapping(v=v),
    }.items():
        VALUES[f"{levels} {name}"] = lambda levels=levels, make=make: nest(make, levels)
for levels in (100, 300):
    VALUES[f"{levels} enums"] = lambda levels=levels: nest(enum_of, levels)
    VALUES[f"{levels} enums, tuples"] = lambda levels=levels: nest(lambda v: enum_of((v,)), levels)
try:
    import numpy
except ImportError:
    pass
else:
    def array(value):
        made = numpy.empty(1, dtype=object)
        made[0] = value
        return made
    VALUES["numpy of tuples"] = lambda: array(nest(lambda v: (v,), 3000))
    VALUES["numpy in itself"] = lambda: self_of(lambda: numpy.empty(1, dtype=object), lambda v: v.fill(v))
    VALUES["deep numpy"] = lambda: nest(array, 300)
    VALUES["numpy void"] = lambda: numpy.void(b"abc")
    VALUES["numpy of NaN"] = lambda: numpy.array([float("nan")])

def hook(event):
    return event

def attempt(client, place, value):
    try:
        if place == "property":
            client.track_event("e", "a@b.co", {"x": value})
        elif place == "properties":
            client.track_event("e", "a@b.co", value)
        elif place == "event":
            client.track_event(value, "a@b.co", {})
        elif place == "email":
            client.track_event("e", value, {})
        elif place == "timestamp":
            client.track_event("e", "a@b.co", {}, timestamp=value)
        else:
            client.track_events([value])
    except windback.InvalidEventError:
        pass

def main():
    options = dict(base_url="http://127.0.0.1:9/api/v1", shutdown_timeout=0.01, max_retries=0, timeout=0.2)
    clients = [windback.Windback("sk_test_1", before_send=each, **options) for each in (None, hook)]
    for name, make in VALUES.items():
        if len(sys.argv) > 1 and name not in sys.argv[1:]:
            continue
        print(name, end=": ", flush=True)
        value = make()
        for client in clients:
            for place in ("property", "properties", "event", "email", "timestamp", "list"):
                if place != "list" or not isinstance(value, windback.InvalidEventError):
                    attempt(client, place, value)
            thread = threading.Thread(target=attempt, args=(client, "property", value))
            thread.start(); thread.join()
        print("ok", flush=True)
    print("done", flush=True)
    os._exit(0)  # values of 20,000 levels are not to be freed one by one

main()
"""


def attempt(python, tmp_path, *names, path=()):
    """Run the program, or what of it is named; its output."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM, encoding="utf-8")
    environment = {**os.environ, "PYTHONMALLOC": "debug", "PYTHONPATH": os.pathsep.join(map(str, path))}
    done = subprocess.run(
        [python, str(program), *names],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=environment,
    )
    assert done.returncode == 0, f"{done.stdout[-200:]}\n{done.returncode} {done.stderr[-2000:]}"
    assert done.stdout.endswith("done\n"), done.stdout[-200:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.timeout(300)
def test_no_value_ends_the_process_or_raises_anything_else(tmp_path):
    assert attempt(sys.executable, tmp_path).count(": ok") > 100


FRAGMENTS = """
import collections, sys
import orjson, windback
from windback.devserver import DevServer

F = orjson.Fragment
BAD = [
    b"nope", b"NaN", b"", b"1,2", b'{"a":1', b"\\xff", "\\ud800", b"1" * 400, 7, None,
    b'1},"customer_email":"other@b.co","z":{"a":1',
    b'1}},{"event":"forged","customer_email":"o@b.co","properties":{"x":1',
]
GOOD = [b"1", b'{"a":[1,2,null]}', '"text"', b" [ ] "]
PLACES = {
    "a property": lambda v: v,
    "a list": lambda v: [1, v],
    "a dict in a list": lambda v: [{"a": {"b": v}}],
    "the last of many rows": lambda v: [*({"a": 1, "b": "x"} for _ in range(50)), {"a": 1, "b": v}],
    "a tuple in a dict": lambda v: {"a": (1, v)},
    "a tuple": lambda v: ((v,),),
    "a set": lambda v: {v},
    "a mapping": lambda v: collections.UserDict(a=v),
}

def main(first_event):
    with DevServer() as server:
        client = windback.Windback("sk_test_1", base_url=server.url)
        expected = 0
        for _ in range(first_event):
            client.track_event("plain", "a@b.co", {"x": [{"a": 1}]})
        for place, put in PLACES.items():
            for content in BAD:
                try:
                    client.track_event(place, "a@b.co", {"x": put(F(content))})
                except windback.InvalidEventError as error:
                    assert "Fragment" in str(error), (place, content, str(error))
                else:
                    raise AssertionError((place, content))
            for content in GOOD:
                assert client.track_event(place, "a@b.co", {"x": put(F(content))}), (place, content)
                expected += 1
        assert client.flush(30)
        stats = client.stats()
        assert stats.rejected == stats.dropped == 0 and stats.delivered == expected + first_event, stats
        names = {event.event for event in server.events()}
        assert "forged" not in names and set(PLACES) <= names, names
    print("done", flush=True)

main(int(sys.argv[1]))
"""


@pytest.mark.timeout(120)
@pytest.mark.parametrize("earlier", [0, 1_500])
def test_a_fragment_is_one_json_value_or_an_error(earlier, tmp_path):
    """Whatever is in it, nothing else of the event or of its batch changes. So it is with later events."""
    program = tmp_path / "program.py"
    program.write_text(FRAGMENTS, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(program), str(earlier)],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.stdout == "done\n", done.stdout + done.stderr[-2000:]


def lowest():
    """The oldest orjson that pyproject.toml allows here."""
    text = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    requirements = map(Requirement, re.findall(r'^  "(orjson>=[^"]+)"', text, re.MULTILINE))
    (wanted,) = [each for each in requirements if each.marker is None or each.marker.evaluate()]
    (bound,) = [each.version for each in wanted.specifier if each.operator == ">="]
    return f"orjson=={bound}"


def test_a_number_that_no_reader_takes_is_an_error_and_the_largest_one_is_sent():
    """A Decimal is written as it is, and an API that cannot read it would refuse its whole batch."""
    with windback.Windback(
        "sk_test_1", base_url="http://127.0.0.1:9/api/v1", shutdown_timeout=0.01
    ) as client:
        for wrong in ("1.8E308", "-1E+400", "1E999999", "1" * 400):
            with pytest.raises(windback.InvalidEventError, match=r"properties.x.*send it as a string"):
                client.track_event("e", "a@b.co", {"x": Decimal(wrong)})
    for right in ("1.79E308", "-1.79E308", "1E-400", "0E+999999", "1" * 309, "-0"):
        data = encode("e", "a@b.co", {"x": Decimal(right)}, None, 1_000)
        assert orjson.loads(data)["properties"]["x"] == float(right)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("which", ["oldest", "newest"])
def test_the_oldest_and_the_newest_orjson_pass_the_same(which, tmp_path):
    """The newest one is asked of the registry, so that this fails when a version breaks another type."""
    wanted = lowest() if which == "oldest" else "orjson"
    target = tmp_path / "packages"
    uv = shutil.which("uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if uv is not None:
        command = [uv, "pip", "install", "-q", "-p", sys.executable]
    else:
        command = [sys.executable, "-m", "pip", "install", "-q"]
    subprocess.run([*command, "--no-deps", "--target", str(target), wanted], check=True, timeout=120)
    seen = attempt(sys.executable, tmp_path, path=[target, Path(windback.__file__).parents[1]])
    assert seen.count(": ok") > 100
