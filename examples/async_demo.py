"""The demo with AsyncWindback: replay a purchase log from 8 tasks, win back customers, let the server count.

python examples/async_demo.py             with a server that works
python examples/async_demo.py --faults    with one that fails a fifth of the requests

The exit code is 0 if server and client agree on every number.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from typing import List, Sequence, Tuple

from purchases import RULE, Purchase, QuietCustomer, gone_quiet, read_log
from scoreboard import FAULTS, Calls, Client, compare, show, show_faults, show_speed
from tqdm import tqdm

from windback import AsyncWindback, DeliveryReport, WindbackConnectionError
from windback.devserver import DevServer

TASKS = 8
REASONS = ("too_expensive", "missing_features", "not_using_enough", "technical_issues", "other")


def main() -> int:
    """Run the demo; the exit code."""
    parser = argparse.ArgumentParser(description="Replay a purchase log to an embedded Windback server.")
    parser.add_argument("--faults", action="store_true", help="let the server fail a fifth of the requests")
    faults: bool = parser.parse_args().faults

    purchases = read_log()
    quiet = gone_quiet(purchases)
    with DevServer() as server:
        if faults:
            server.faults(FAULTS)
        client = asyncio.run(run(server.url, purchases, quiet, faults=faults))
        all_right = show(compare(purchases, Calls(5, 5, 5, len(REASONS)), client, server))
        show_speed(client)
        if faults:
            show_faults(client, server)
    return 0 if all_right else 1


async def run(
    url: str, purchases: Sequence[Purchase], quiet: Sequence[QuietCustomer], *, faults: bool
) -> Client:
    """Send everything, and return the client's counts."""

    def draw(_: DeliveryReport) -> None:
        bar.n = client.stats().delivered
        bar.refresh()

    client = AsyncWindback(
        "sk_test_demo",
        "cdnow",
        base_url=url,
        on_delivery=draw,
        batch_size=20 if faults else 100,  # more requests, so that more of them can fail
        max_retries=6 if faults else 3,  # with 3, one call in 600 would come to nothing
        timeout=30,
    )
    bar = tqdm(total=len(purchases), desc="delivered", unit=" purchases", disable=None)
    async with client:
        started_s = time.perf_counter()
        tracked = await asyncio.gather(*(track(client, purchases[start::TASKS]) for start in range(TASKS)))
        await client.flush(timeout=60)
        seconds = time.perf_counter() - started_s
        stats = client.stats()
        bar.update(stats.delivered - bar.n)
        bar.close()
        calls = await win_back(client, quiet)
    took_ns = [ns for times, _ in tracked for ns in times]
    return Client(stats, sum(cents for _, cents in tracked), took_ns, seconds, calls)


async def track(client: AsyncWindback, purchases: Sequence[Purchase]) -> Tuple[List[int], int]:
    """Track purchases; return the nanoseconds of each call, and the cents of the accepted events."""
    took_ns, cents = [], 0
    for purchase in purchases:
        properties = purchase.properties
        started_ns = time.perf_counter_ns()
        accepted = await client.track_event(
            "purchase", purchase.customer_email, properties, timestamp=purchase.at
        )
        took_ns.append(time.perf_counter_ns() - started_ns)
        cents += purchase.cents if accepted else 0
    return took_ns, cents


async def win_back(client: AsyncWindback, quiet: Sequence[QuietCustomer]) -> Calls:
    """Tell Windback about the ten best of the quiet customers, five in each of two ways."""
    print(f"\n{len(quiet)} customers went quiet: {RULE}.\nThe best of them:")
    for customer in quiet[:10]:
        print(f"  {customer}")

    events = await asyncio.gather(
        *(
            client.create_churn_event(
                customer.email,
                event_type="cancellation",
                cancel_reason=f"nothing for {customer.silent_days} days",
                mrr=customer.cents_a_month,
                currency="usd",
                tenure_days=customer.tenure_days,
            )
            for customer in quiet[:5]
        )
    )
    reported = await asyncio.gather(
        *(report_reason(client, customer.email, "not_using_enough") for customer in quiet[:5])
    )
    flows = await asyncio.gather(
        *(
            client.submit_cancel_flow(
                customer.email, "too_expensive", "I found the same CDs for less", selected_offer="discount"
            )
            for customer in quiet[5:10]
        )
    )
    templates = await asyncio.gather(
        *(
            client.create_recovery_template(
                reason,
                f"We miss you ({reason})",
                "Come back, {{customer_name}}",
                "We read: {{cancel_reason}}.",
            )
            for reason in REASONS
        )
    )
    return Calls(len(events), sum(flow.created for flow in flows), sum(reported), len(templates))


async def report_reason(client: AsyncWindback, email: str, reason: str) -> bool:
    """Report a reason; whether that went well within 5 tries.

    The client itself repeats no report that may have arrived, since it can start an email to the customer.
    Here a second email would do no harm, so we repeat it.
    """
    for _ in range(5):
        try:
            await client.report_cancel_reason(email, reason)
        except WindbackConnectionError:
            continue
        return True
    return False


if __name__ == "__main__":
    sys.exit(main())
