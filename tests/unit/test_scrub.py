"""The ready-made scrubbers: what each finds, what it leaves alone, and that no text takes long."""

from __future__ import annotations

import time

import pytest

from windback import scrub
from windback.scrub import SCRUBBED, STANDARD, Place, cards, emails, ip_addresses, keys, tokens

NOTE = Place("track_event", ("properties", "note"))

CARDS = {
    "4111111111111111": "[card]",
    "4111 1111 1111 1111": "[card]",
    "card: 5500-0000-0000-0004, thanks": "card: [card], thanks",
    "3782 822463 10005": "[card]",
    "30569309025904": "[card]",
    "6011.1111.1111.1117": "[card]",
    "3530111333300000": "[card]",
    "6200000000000005": "[card]",
    "2221000000000009": "[card]",
    "5018 0000 0009": "[card]",
    "4222222222222": "[card]",
    "4111\u00a01111\u20111111 - 1111": "[card]",
    "٤١١١١١١١١١١١١١١١": "[card]",
    "4111111111111111 5500000000000004": "[card] [card]",
    "4111 1111 1111 1111 5500 0000 0000 0004": "[card] [card]",
    "12 4111 1111 1111 1111 12/27": "12 [card] 12/27",
    # None of these is a card: the check digit, the scheme, the length.
    "4111 1111 1111 1112": None,
    "1764600000000": None,
    "9999999999999995": None,
    "41111111111111112222222222222": None,
    "+49 170 1234567": None,
    "2025-12-01T10:00:00.000Z": None,
    "4111 then 1111 then 1111 then 1111": None,
}


@pytest.mark.parametrize(("text", "wanted"), CARDS.items(), ids=CARDS)
def test_cards(text, wanted):
    assert cards(text, NOTE) == (text if wanted is None else wanted)


TOKENS = {
    "my key is sk_test_0123456789": "my key is [token]",
    "pub_live_abcdefgh": "[token]",
    "whsec_abcdefghijklmnop": "[token]",
    "Authorization: Bearer abcdefghijklmnop.123": "Authorization: [token]",
    "Authorization: Basic dXNlcjpwYXNz": "Authorization: Basic [token]",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl": "[token]",
    "ghp_abcdefghijklmnopqrstuvwxyz0123456789": "[token]",
    "AKIAIOSFODNN7EXAMPLE": "[token]",
    "AIzaSyA0123456789abcdefghijklmnopqrstuv": "[token]",
    "xoxb-123456789012-abc": "[token]",
    "sk-proj-abcdefghijklmnop": "[token]",
    "https://jane:hunter2@example.com/x": "https://jane:[token]@example.com/x",
    "redis://:hunter2@localhost": "redis://:[token]@localhost",
    "https://example.com/?token=abcdef&page=2": "https://example.com/?token=[token]&page=2",
    'it says {"password": "hunter2"}': 'it says {"password": "[token]"}',
    "api_key=12345 and API-Key: 67890": "api_key=[token] and API-Key: [token]",
    "PASSWORD=hunter2": "PASSWORD=[token]",
    "-----BEGIN RSA PRIVATE KEY-----\nMII\n-----END RSA PRIVATE KEY-----\nend": "[token]\nend",
    "-----BEGIN PRIVATE KEY-----\nMIIcut": "[token]",
    "I forgot my password, and the token is gone": None,
    "a basic subscription for the public": None,
    "the bearer of bad news": None,
    "see https://example.com/a?page=2": None,
    "sk_1": None,
}


@pytest.mark.parametrize(("text", "wanted"), TOKENS.items(), ids=TOKENS)
def test_tokens(text, wanted):
    assert tokens(text, NOTE) == (text if wanted is None else wanted)


EMAILS = {
    "write to bob@example.com!": "write to [email]!",
    "bob.b+c@mail.example.co.uk": "[email]",
    "<bob@example.com>,<eve@example.com>": "<[email]>,<[email]>",
    "bob%40example.com": "[email]",
    "bob@xn--bcher-kva.example": "[email]",
    "jané@exämple.com.": "[email].",
    '"bob b"@example.com': "[email]",
    "bob@[192.168.0.1]": "[email]",
    "bob\uff20example.com": "[email]",
    "thanks @bob": None,
    "3@4.50": None,
    "a@b": None,
}


@pytest.mark.parametrize(("text", "wanted"), EMAILS.items(), ids=EMAILS)
def test_emails(text, wanted):
    assert emails(text, NOTE) == (text if wanted is None else wanted)


def test_the_address_that_identifies_the_customer_stays():
    assert emails("bob@example.com", Place("create_churn_event", ("customer_email",))) == "bob@example.com"


@pytest.mark.parametrize("scrubber", [cards, tokens, emails, ip_addresses], ids=lambda each: each.__name__)
def test_what_you_write_to_your_customers_stays(scrubber):
    text = "4111 1111 1111 1111 sk_test_abcdefgh bob@example.com 10.0.0.1"
    assert scrubber(text, NOTE) != text
    assert scrubber(text, Place("create_recovery_template", ("body",))) == text


ADDRESSES = {
    "from 10.0.0.1:80": "from [ip]:80",
    "2001:db8::1, ::1": "[ip], [ip]",
    "::ffff:1.2.3.4": "[ip]",
    "999.1.1.1": None,
    "1.2.3.4.5": None,
    "12:30:45": None,
}


@pytest.mark.parametrize(("text", "wanted"), ADDRESSES.items(), ids=ADDRESSES)
def test_ip_addresses(text, wanted):
    assert ip_addresses(text, NOTE) == (text if wanted is None else wanted)


PRIVATE = [
    *("password", "Password", "userPassword", "user_password", "USER-PASSWORD", "password2", "mypassword"),
    *("password_hash", "api_key", "apiKey", "X-Api-Key", "access_token", "accesstoken", "Authorization"),
    *("client_secret", "cvc", "card_number", "cardNumber", "ssn", "iban", "Set-Cookie", "sessionId"),
    *("JSESSIONID", "csrftoken", "pin", "user_pin", "privateKey", "nickname", "nickName"),
]
PUBLIC = [
    *(
        "plan",
        "classname",
        "pin_color",
        "spin",
        "authMethod",
        "author",
        "tokens",
        "compass",
        "session_length",
    ),
    *("keyboard", "monkey", "secretary", "name", ""),
]


@pytest.mark.parametrize("name", PRIVATE)
def test_private_names(name):
    assert keys("nickname")("x", Place("track_event", ("properties", name))) == SCRUBBED
    assert keys("nickname")("x", Place("track_event", ("properties", name, 0, "below"))) == SCRUBBED


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names(name):
    assert keys("nickname")("x", Place("track_event", ("properties", name))) == "x"


def test_a_number_is_private_only_if_its_name_ends_so():
    scrubber = keys()
    assert scrubber("1234", Place("track_event", ("properties", "pin"), "number")) == SCRUBBED
    assert scrubber("1234", Place("track_event", ("properties", "token_count"), "number")) == "1234"
    assert scrubber("many", Place("track_event", ("properties", "token_count"))) == SCRUBBED


def test_names_of_the_api_are_not_private():
    assert keys()("annual", Place("submit_cancel_flow", ("cancel_reason",))) == "annual"


def test_a_name_itself_stays():
    assert keys()("password", Place("track_event", ("properties", "password"), "name")) == "password"


def test_any_number_of_names_takes_bounded_memory():
    scrubber = keys()
    for number in range(10_000):
        scrubber("x", Place("track_event", ("properties", f"n{number}")))
    assert len(scrubber._known) <= 2_048


def test_what_is_hidden_is_not_found_again():
    for text in ("[card]", "[token]", "[email]", "[ip]", SCRUBBED):
        for scrubber in (*STANDARD, ip_addresses):
            assert scrubber(text, NOTE) == text


#: Each of them makes a careless pattern look at the same characters again and again.
LONG = [
    *(
        "a",
        "1",
        "1 ",
        "4 ",
        "4111 ",
        "a@",
        "%40",
        "a.",
        "@a.",
        ".@",
        "A_",
        '"',
        "eyJ",
        "eyJaaaaaaaa.",
        "://a:",
    ),
    *(
        "://:",
        "password=",
        "token: ",
        "-----BEGIN PRIVATE KEY",
        "-----BEGIN A A ",
        "1.2.3.",
        "f:",
        ":",
        "sk_",
    ),
    *("bearer ", "passpass", "\n", "\u017f", "\u0130"),
]


@pytest.mark.parametrize(
    "scrubber", [*STANDARD, ip_addresses], ids=lambda each: getattr(each, "__name__", "")
)
@pytest.mark.parametrize("part", LONG)
def test_no_text_takes_more_than_its_length(scrubber, part):
    def took_s(size):
        text = (part * size)[:size]
        started = time.thread_time()
        for _ in range(3):
            scrubber(text, NOTE)
        return time.thread_time() - started

    # Eight times the text: eight times as long, or sixty-four times where it is quadratic.
    assert took_s(64_000) < 32 * max(took_s(8_000), 0.002)


def test_all_is_public():
    assert {"Place", "Scrubber", "STANDARD", "cards", "emails", "ip_addresses", "keys", "tokens"} < set(
        scrub.__all__
    )
