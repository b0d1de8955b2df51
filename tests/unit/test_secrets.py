"""A secret is shown by nothing but `reveal`; a text is redacted of a key in any case and of parts of it."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import traceback

import orjson
import pytest

from windback.secrets import Secret, broker_address, hidden, read_keys, redact

TEXT = "sk_live_5ecret0f7hep1ace"
URL = "rediss+sentinel://us3rname:pa55w0rd@a,b/main?sentinel_password=pa55w0rd2&ssl_password=pa55w0rd3"
PARTS = (TEXT[8:], TEXT[8:16], "us3rname", "pa55w0rd")


def hides(text):
    text = text.decode("latin-1") if isinstance(text, bytes) else text
    return not any(part in text for part in PARTS)


def everything_of(value, depth=0):
    """Yield every object that attributes of *value* lead to, without calling `reveal`."""
    yield value
    if depth > 4 or isinstance(value, (str, bytes, int, type, type(None))):
        return
    if isinstance(value, dict):
        children = [*value, *value.values()]
    elif isinstance(value, (list, tuple, set, frozenset)):
        children = list(value)
    else:
        children = [
            getattr(value, name)
            for name in dir(value)
            if name != "reveal" and not (name.startswith("__") and name.endswith("__"))
        ]
    for child in children:
        if not callable(child):
            yield from everything_of(child, depth + 1)


@pytest.mark.parametrize("make", [lambda: Secret(TEXT), lambda: broker_address(URL)], ids=["key", "address"])
def test_nothing_of_a_secret_shows_its_text(make):
    secret = make()
    shown = [repr(secret), str(secret), f"{secret}", f"{secret!r:>40}", "{} {!r}".format(secret, secret)]  # noqa: UP032 - one more way
    shown += [format(secret, spec) for spec in ("", "s", ">40") if isinstance(secret, Secret)]
    shown += [repr(each) for each in everything_of(secret)]
    shown += [str(each) for each in everything_of(secret)]
    shown.append(json.dumps([secret], default=repr))
    if dataclasses.is_dataclass(secret):
        shown.append(repr(dataclasses.asdict(secret)))
    for slicing in (lambda: secret[:5], lambda: secret[0], lambda: "".join(secret), lambda: "" + secret):
        with pytest.raises(TypeError) as caught:
            slicing()
        shown.append(repr(caught.value))
    for text in shown:
        assert hides(text)


def test_no_copy_and_no_pickle_of_a_secret_holds_its_text():
    secret = Secret(TEXT)
    assert copy.copy(secret) is secret
    assert copy.deepcopy([secret])[0] is secret
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        for value in (secret, broker_address(URL)):
            with pytest.raises(TypeError, match="can't be pickled") as caught:
                pickle.dumps(value, protocol)
            shown = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
            assert all(hides(str(frame.locals)) for frame in shown.stack if "/windback/" in frame.filename)
    with pytest.raises(TypeError):
        orjson.dumps(secret)


def test_a_secret_is_equal_to_one_of_the_same_text_and_to_nothing_else():
    assert Secret(TEXT) == Secret(TEXT)
    assert hash(Secret(TEXT)) == hash(Secret(TEXT))
    assert Secret(TEXT) != Secret("sk_live_other")
    assert Secret(TEXT) != TEXT
    assert Secret(TEXT).reveal() == TEXT
    assert Secret("").reveal() == ""
    assert Secret("\udcff\x00é").reveal() == "\udcff\x00é"


def test_a_secret_shows_its_kind():
    assert repr([Secret(TEXT)]) == "['sk_***']"
    assert f"{Secret(TEXT)}" == "sk_***"
    assert Secret("pub_live_1").hint == "pub_***"
    assert Secret("shapeless").hint == "***"


def test_hiding_is_done_once():
    secret = Secret(TEXT)
    assert hidden(secret) is secret
    assert hidden(None) is None
    assert hidden(5) is int
    assert hidden(hidden(5)) is int


KEY = Secret(TEXT)


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        (f"bad key {TEXT}", "bad key sk_***"),
        (f"bad key {TEXT.upper()}.", "bad key sk_***."),
        (f"{TEXT}{TEXT}", "sk_***sk_***"),
        (f"{TEXT[:-4]}…", "sk_***…"),
        (f"{TEXT[:12]}", "sk_***"),
        (f"{TEXT[:9]} is short", "sk_*** is short"),
        (f"…{TEXT[9:]}", "…sk_***"),
        (f"…{TEXT[10:20]}…", "…sk_***…"),
        ("keys start with sk_live_", "keys start with sk_live_"),
        ("İ" + TEXT, "İsk_***"),
        ("nothing", "nothing"),
        ("", ""),
    ],
)
def test_a_key_is_found_in_any_case_and_where_a_part_is_missing(text, redacted):
    assert redact(text, [KEY]) == redacted


def test_a_short_key_does_not_eat_other_text():
    assert redact("1 event of sk_test_1, sk_test_", [Secret("sk_test_1")]) == "1 event of sk_***, sk_test_"
    assert redact("a banana", [Secret("")]) == "a banana"


def test_the_passwords_of_a_broker_are_found_as_text_and_as_in_a_url():
    address = broker_address("redis+sentinel://u:s3cr%40t@a/main?sentinel_password=0ther%40s")
    said = "AUTH s3cr@t S3CR%40T 0ther@s 0ther%40s"
    assert address.redact(said) == "AUTH *** *** *** ***"
    assert "s3cr" not in address.redact(f"no {address.url.reveal()}")


@pytest.mark.parametrize(
    "content", [b"a=sk_live_5ecret0f7hep1ace\n\xff", b"a=sk_1\na=sk_live_5ecret0f7hep1ace"]
)
def test_no_error_about_a_file_of_keys_holds_them(tmp_path, content):
    file = tmp_path / "keys"
    file.write_bytes(content)
    file.chmod(0o600)
    with pytest.raises(ValueError, match="keys") as caught:
        read_keys(str(file))
    error = caught.value
    assert error.__cause__ is error.__context__ is None
    shown = traceback.TracebackException.from_exception(error, capture_locals=True)
    assert all(hides(str(frame.locals)) for frame in shown.stack if "/windback/" in frame.filename)
