"""Remove private data from every text that a client sends: `Windback(scrub=scrub.STANDARD)`.

A scrubber is a function `(text, place) -> text`. It gets every text that is about to leave the process, every
number as text, and every name inside `properties`, and returns the text to send instead. `place` is the call
sends it, and under which path. Several scrubbers run one after the other: `scrub=[*scrub.STANDARD, mine]`.

Pure, and each scrubber needs time in proportion to the text.
"""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import ip_address
from typing import Dict, FrozenSet, List, Match, Sequence, Tuple

from .event.scrubbing import SCRUBBED, Place, Scrubber

__all__ = [
    "SCRUBBED",
    "STANDARD",
    "Place",
    "Scrubber",
    "cards",
    "emails",
    "ip_addresses",
    "keys",
    "tokens",
]

#: Their texts are yours and not a customer's: an address in a template is meant to be there.
_TEMPLATES = frozenset({"create_recovery_template", "update_recovery_template", "update_variant"})

# -- Cards ---------------------------------------------------------------------------------------------

_GAP = r"[ \t\u00a0\u2000-\u200b\u202f\u2060\ufeff._/\u2010-\u2015\u2212-]"
_CARD_MIN, _CARD_MAX = 12, 19
#: At least the digits of the shortest card.
_DIGITS = re.compile(rf"\d(?:{_GAP}{{0,3}}\d){{11,}}")
_GROUP = re.compile(r"\d+")
#: The digits of twice a digit, added: Luhn's check.
_DOUBLED = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)


def cards(text: str, place: Place) -> str:
    """Replace the numbers of payment cards by "[card]": scheme, length and check digit (Luhn) are right.

    Digits of any script count, with spaces, hyphens or dots between them.
    """
    if len(text) < _CARD_MIN or place.call in _TEMPLATES:
        return text
    return _DIGITS.sub(_hide_cards, text)


def _hide_cards(run: Match[str]) -> str:
    """Replace the cards in a run of groups of digits, which may be longer than one card."""
    text = run.group()
    groups = [(found.start(), found.end()) for found in _GROUP.finditer(text)]
    digits = [int(digit) for start, end in groups for digit in text[start:end]]  # of any script
    even, odd = _sums(digits, 0), _sums(digits, 1)

    def count(first: int, start: int) -> int:
        """Return how many groups from *first* on, whose digits begin at *start*, make the longest card."""
        lengths = _lengths("".join(map(str, digits[start : start + 4])))
        found, end = 0, start
        for place in range(first, len(groups) if lengths else first):
            end += groups[place][1] - groups[place][0]
            if end - start > _CARD_MAX:
                break
            sums = odd if end % 2 else even
            if end - start in lengths and (sums[end] - sums[start]) % 10 == 0:
                found = place + 1 - first
        return found

    parts: List[str] = []
    copied = first = start = 0
    while first < len(groups):
        groups_of_card = count(first, start)
        if groups_of_card:
            parts += [text[copied : groups[first][0]], "[card]"]
            copied = groups[first + groups_of_card - 1][1]
        for _ in range(groups_of_card or 1):
            start += groups[first][1] - groups[first][0]
            first += 1
    return "".join([*parts, text[copied:]])


def _sums(digits: Sequence[int], parity: int) -> List[int]:
    """Return Luhn's sum before each digit, of cards that end before a place of this *parity*."""
    total, sums = 0, [0]
    for place, digit in enumerate(digits):
        total += _DOUBLED[digit] if place % 2 == parity else digit
        sums.append(total)
    return sums


@lru_cache(maxsize=10_000)
def _lengths(prefix: str) -> FrozenSet[int]:
    """Return how long the cards are whose first four digits are *prefix*; none if no scheme has them.

    Without the schemes, a tenth of all long numbers were cards.
    """
    number = int(prefix) if len(prefix) == 4 else 0
    schemes = (
        (number // 1000 == 4, (13, 16, 19)),  # Visa
        (5100 <= number <= 5599 or 2221 <= number <= 2720, (16,)),  # Mastercard
        (number // 100 in (34, 37), (15,)),  # American Express
        (number // 100 in (36, 38, 39) or 3000 <= number <= 3059 or number == 3095, range(14, 20)),  # Diners
        (3528 <= number <= 3589 or 2200 <= number <= 2204, range(16, 20)),  # JCB, Mir
        (
            number // 1000 == 6 or number // 100 in (50, 56, 57, 58),
            range(12, 20),
        ),  # Maestro, Discover, UnionPay
    )
    return frozenset(length for has_prefix, lengths in schemes if has_prefix for length in lengths)


# -- Tokens --------------------------------------------------------------------------------------------

_SHAPES = re.compile(
    r"""
      (?<![A-Za-z0-9])(?:
        (?:sk|pk|rk|pub|whsec)_(?:(?:live|test|prod)_[\w-]{8,}|[A-Za-z0-9]{16,})
      | eyJ[\w-]{8,}(?:\.[\w-]*){1,4}                             # JWT, JWE
      | gh[oprsu]_\w{20,} | github_pat_\w{20,} | glpat-[\w-]{16,} # GitHub, GitLab
      | xox[a-z]-[\w-]{10,} | xapp-[\w-]{10,}                     # Slack
      | A(?:KIA|SIA|BIA|CCA)[A-Z0-9]{16}                          # AWS
      | AIza[\w-]{30,} | ya29\.[\w-]{16,} | GOCSPX-[\w-]{16,}     # Google
      | sk-[\w-]{16,} | hf_\w{20,}                                # OpenAI, Anthropic, Hugging Face
      | npm_\w{20,} | pypi-[\w-]{16,}                             # registries
      | SG\.[\w-]{16,}\.[\w-]{16,} | key-[0-9a-f]{32}             # SendGrid, Mailgun
      | (?:SK|AC)[0-9a-f]{32}                                     # Twilio
      | shp[a-z]{2}_[0-9A-Fa-f]{32} | sq0[a-z]{3}-[\w-]{16,}      # Shopify, Square
      | do[opr]_v1_[0-9a-f]{32,} | dapi[0-9a-f]{32}               # DigitalOcean, Databricks
      | (?i:bearer)\s{1,3}[\w.~+/=-]{16,}
      )
    | -----BEGIN\ [A-Z ]{0,20}PRIVATE\ KEY(?:.*?-----END\ [A-Z ]{0,20}PRIVATE\ KEY-----|.*)
    """,
    re.VERBOSE | re.DOTALL,
)
#: What all shapes but PEM have and most texts do not, so that these are not searched.
_LONG_WORD = re.compile(r"[A-Za-z0-9_.+/=~-]{16}")
_URL_PASSWORD = re.compile(r"(://[^\s/@:]{0,256}:)[^\s/@]{1,256}(?=@)")
#: The first characters of `_NAMED`: a cheaper test.
_NAME = re.compile("passw|passphrase|passcode|pwd|secret|token|jwt|authorization|cookie|key|session")
_NAMED = re.compile(
    r"((?:passw(?:or)?d|passphrase|passcode|pwd|secret|token|jwt|authorization|cookie"
    r"|(?:api|access|private|signing)[ _-]?key|session[ _-]?id)"
    r"[\"']?\s{0,3}[=:]\s{0,3}[\"']?(?:(?:bearer|basic|token|digest)\s{1,3})?)"
    r"[^\s\"'&;,]{4,}",
    re.IGNORECASE,
)
_TOKEN_MIN = 8


def tokens(text: str, place: Place) -> str:
    """Replace keys and tokens by "[token]", by their shape or by what is before them.

    Shapes: keys of Windback, Stripe, AWS, Google, GitHub, GitLab, Slack, OpenAI, SendGrid, Twilio, Shopify
    and more, JSON web tokens, private keys in PEM. Also texts after `Bearer `, `password=`, `api_key:` and
    the like, and the password in a URL.
    """
    if len(text) < _TOKEN_MIN or place.call in _TEMPLATES:
        return text
    if _LONG_WORD.search(text) or "-----BEGIN" in text:
        text = _SHAPES.sub("[token]", text)
    if "://" in text:
        text = _URL_PASSWORD.sub(r"\1[token]", text)
    if ("=" in text or ":" in text) and _NAME.search(text.lower()):
        text = _NAMED.sub(r"\1[token]", text)
    return text


# -- Addresses -----------------------------------------------------------------------------------------

_LOCAL = r"\w.+'%-"
# Each part begins where none of its characters is before it, so that no text is scanned twice.
_EMAIL = re.compile(
    rf"(?:(?<![{_LOCAL}])[{_LOCAL}]+|\"[^\"\r\n]{{1,64}}\")"
    r"(?:[@\uff20]|%40)(?:(?:[\w-]+\.)+[^\W\d_][\w-]*|\[[0-9A-Fa-f:.]{2,45}\])"
)


def emails(text: str, place: Place) -> str:
    """Replace email addresses by "[email]", but the customer_email, which identifies the customer."""
    if "@" not in text and "%40" not in text and "\uff20" not in text:
        return text
    if place.path == ("customer_email",) or place.call in _TEMPLATES:
        return text
    return _EMAIL.sub("[email]", text)


_IP = re.compile(
    r"(?<![\w.:])(?:\d{1,3}(?:\.\d{1,3}){3}(?!\w|\.\d)|[0-9A-Fa-f:]{2,39}(?:\.\d{1,3}){0,3}(?![\w:]|\.\d))"
)


def ip_addresses(text: str, place: Place) -> str:
    """Replace IP addresses by "[ip]". Not in STANDARD: the version "1.2.3.4" looks the same."""
    if place.kind == "number" or place.call in _TEMPLATES or (text.count(".") < 3 and text.count(":") < 2):
        return text
    return _IP.sub(_hide_ip, text)


def _hide_ip(found: Match[str]) -> str:
    try:
        ip_address(found.group())
    except ValueError:
        return found.group()
    return "[ip]"


# -- Names ---------------------------------------------------------------------------------------------

#: Private wherever they are in a name: `password`, `userPassword`, `password_hash`.
_ANYWHERE = """
    password passwd passphrase passcode pwd mysqlpwd secret credential credentials
    privatekey secretkey apikey accesskey signingkey encryptionkey token jwt bearer authorization oauth
    cookie cookies setcookie sessionid sessid csrf xsrf
    cardnumber creditcard ccnumber ccnum cvv cvc cvv2 cvc2 iban accountnumber routingnumber sortcode
    ssn socialsecurity taxid passport nationalid driverslicense dateofbirth
"""
#: Private at the end of a name: `user_pin`, but not `pin_color`.
_AT_END = ("pin", "otp", "totp", "auth", "session", "sid", "csc", "dob", "pass")
_LONG = 5  # a word of this length counts without a word boundary, too: `mypassword`
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+|[^\W\d_A-Za-z]+")
_MOST_WORDS, _MOST_NAMES = 3, 2_048


class _Names:
    """The scrubber that `keys` makes. Remembers the names it has seen."""

    def __init__(self, names: Sequence[str]) -> None:
        self._anywhere: FrozenSet[str] = frozenset((*_ANYWHERE.split(), *map(_joined, names)))
        self._at_end = frozenset(_AT_END)
        #: A word is in the name; one is at its end.
        self._known: Dict[str, Tuple[bool, bool]] = {}

    def __call__(self, text: str, place: Place) -> str:
        if place.kind == "name" or place.call != "track_event":
            return text  # the other calls have the API's names alone
        is_number = place.kind == "number"
        for part in place.path:
            if isinstance(part, str) and (self._known.get(part) or self._look(part))[is_number]:
                return SCRUBBED
        return text

    def _look(self, name: str) -> Tuple[bool, bool]:
        words = [word.lower() for word in _WORDS.findall(name[:256])]
        while len(words) > 1 and words[-1].isdigit():
            words.pop()  # password2
        text = "".join(words)
        tails = {"".join(words[-count:]) for count in range(1, _MOST_WORDS + 1)}
        tails |= {each for each in self._anywhere if len(each) >= _LONG and text.endswith(each)}
        at_end = not tails.isdisjoint(self._anywhere) or not tails.isdisjoint(self._at_end)
        found = at_end or any(
            "".join(words[start : start + count]) in self._anywhere
            for start in range(len(words))
            for count in range(1, _MOST_WORDS + 1)
        )
        if len(self._known) >= _MOST_NAMES:
            self._known.clear()
        self._known[name] = (found, at_end)
        return found, at_end


def keys(*names: str) -> Scrubber:
    """Return a scrubber that replaces values by their names, and everything below them.

    `password`, `userPassword`, `api-key` and `card_number` are found however they are written. A number is
    replaced only where the name ends so: `token_count` stays. Booleans stay.

    Args:
        names: Names of your own beside the usual ones, such as "nickname".

    Raises:
        TypeError: A name is not a string, such as where `keys` is given as a scrubber in place of `keys()`.
    """
    if not all(isinstance(name, str) for name in names):
        raise TypeError("keys makes a scrubber of names: write scrub=[keys()] or keys('nickname')")
    return _Names(names)


def _joined(name: str) -> str:
    return "".join(_WORDS.findall(name)).lower()


#: What most applications want. Emails come after tokens, so that a password in a URL is found first.
STANDARD: Tuple[Scrubber, ...] = (keys(), cards, tokens, emails)
#: By name, for the command line.
NAMED: Dict[str, Scrubber] = {
    "keys": STANDARD[0],
    "cards": cards,
    "tokens": tokens,
    "emails": emails,
    "ip_addresses": ip_addresses,
}
