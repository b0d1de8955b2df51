"""The purchase log of the demos: how to read it, and which of its customers went quiet."""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime, timezone
from decimal import Decimal
from pathlib import Path
from typing import Dict, List, NamedTuple, Sequence

LOG = Path(__file__).resolve().parent / "data" / "CDNOW_sample.txt"

RULE = "purchases on 3 days or more, then a silence of over 90 days and over 4 times their usual one"


class Purchase(NamedTuple):
    """A line of the log.

    order: its number, from 1; some lines are equal and yet two purchases. at: the day, at midnight UTC.
    """

    order: int
    customer_email: str
    at: datetime
    cds: int
    cents: int

    @property
    def properties(self) -> Dict[str, int]:
        """The properties of the event."""
        return {"order": self.order, "cds": self.cds, "cents": self.cents}


class QuietCustomer(NamedTuple):
    """A customer who used to buy. usual_days: between two purchases; tenure_days: from first to last."""

    email: str
    purchases: int
    cents: int
    tenure_days: int
    usual_days: float
    silent_days: int

    @property
    def cents_a_month(self) -> int:
        """What 30 days brought while the customer was buying."""
        return self.cents * 30 // max(self.tenure_days, 30)

    def __str__(self) -> str:
        return (
            f"{self.email}: {self.purchases} purchases, ${self.cents / 100:,.2f}, "
            f"every {self.usual_days:.0f} days, silent for {self.silent_days}"
        )


def read_log() -> List[Purchase]:
    """Return all purchases, in the order of the log."""
    with LOG.open(encoding="ascii") as lines:
        return [_purchase(order, line) for order, line in enumerate(lines, 1)]


def _purchase(order: int, line: str) -> Purchase:
    _, customer, day, cds, dollars = line.split()
    at = datetime(int(day[:4]), int(day[4:6]), int(day[6:]), tzinfo=timezone.utc)
    cents = int(Decimal(dollars) * 100)  # exact: 29.33 as a float is a little less
    return Purchase(order, f"customer-{customer}@example.com", at, int(cds), cents)


def gone_quiet(purchases: Sequence[Purchase]) -> List[QuietCustomer]:
    """Return the customers to whom RULE applies on the last day of the log, the best ones first."""
    today = max(purchase.at for purchase in purchases)
    by_customer: Dict[str, List[Purchase]] = defaultdict(list)
    for purchase in purchases:
        by_customer[purchase.customer_email].append(purchase)
    quiet = []
    for email, theirs in by_customer.items():
        days = sorted({purchase.at for purchase in theirs})
        if len(days) < 3:
            continue
        tenure_days, silent_days = (days[-1] - days[0]).days, (today - days[-1]).days
        usual_days = tenure_days / (len(days) - 1)
        if silent_days > 90 and silent_days > 4 * usual_days:
            cents = sum(purchase.cents for purchase in theirs)
            quiet.append(QuietCustomer(email, len(theirs), cents, tenure_days, usual_days, silent_days))
    return sorted(quiet, key=lambda customer: customer.cents, reverse=True)
