"""Replay a real purchase log from 8 threads, win back customers who went quiet, and let the server count.

python examples/demo.py             with a server that works
python examples/demo.py --faults    with one that fails a fifth of the requests
python examples/demo.py --keep      and keeps the server, whose page shows all that arrived, until Ctrl-C

The exit code is 0 if server and client agree on every number.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import List, Sequence, Tuple

from purchases import RULE, Purchase, QuietCustomer, gone_quiet, read_log
from scoreboard import FAULTS, Calls, Client, compare, show, show_faults, show_speed
from tqdm import tqdm

from windback import DeliveryReport, Windback, WindbackConnectionError
from windback.devserver import DevServer

THREADS = 8
REASONS = ("too_expensive", "missing_features", "not_using_enough", "technical_issues", "other")


def main() -> int:
    """Run the demo; the exit code."""
    parser = argparse.ArgumentParser(description="Replay a purchase log to an embedded Windback server.")
    parser.add_argument("--faults", action="store_true", help="let the server fail a fifth of the requests")
    parser.add_argument("--keep", action="store_true", help="keep the server running until Ctrl-C")
    arguments = parser.parse_args()
    faults: bool = arguments.faults

    purchases = read_log()
    quiet = gone_quiet(purchases)
    with DevServer() as server:
        if faults:
            server.faults(FAULTS)
        client = run(server.url, purchases, quiet, faults=faults)
        all_right = show(compare(purchases, Calls(5, 5, 5, len(REASONS)), client, server))
        show_speed(client)
        if faults:
            show_faults(client, server)
        page = f"http://127.0.0.1:{server.port}/"
        if arguments.keep:
            print(f"\nLook at it, until Ctrl-C: {page}", flush=True)
            with suppress(KeyboardInterrupt):
                threading.Event().wait()
        else:
            print(f"\nKEEP=1 keeps the server running. Its page was at {page}")
    return 0 if all_right else 1


def run(url: str, purchases: Sequence[Purchase], quiet: Sequence[QuietCustomer], *, faults: bool) -> Client:
    """Send everything, and return the client's counts."""

    def draw(_: DeliveryReport) -> None:
        bar.n = client.stats().delivered
        bar.refresh()

    client = Windback(
        "sk_test_demo",
        "cdnow",
        base_url=url,
        on_delivery=draw,
        batch_size=20 if faults else 100,  # more requests, so that more of them can fail
        max_retries=6 if faults else 3,  # with 3, one call in 600 would come to nothing
        timeout=30,
    )
    bar = tqdm(total=len(purchases), desc="delivered", unit=" purchases", disable=None)
    with client:
        started_s = time.perf_counter()
        with ThreadPoolExecutor(THREADS) as threads:
            shares = [purchases[start::THREADS] for start in range(THREADS)]
            tracked = list(threads.map(lambda share: track(client, share), shares))
        client.flush(timeout=60)
        seconds = time.perf_counter() - started_s
        stats = client.stats()
        bar.update(stats.delivered - bar.n)
        bar.close()
        calls = win_back(client, quiet)
    took_ns = [ns for times, _ in tracked for ns in times]
    return Client(stats, sum(cents for _, cents in tracked), took_ns, seconds, calls)


def track(client: Windback, purchases: Sequence[Purchase]) -> Tuple[List[int], int]:
    """Track purchases; return the nanoseconds of each call, and the cents of the accepted events."""
    took_ns, cents = [], 0
    for purchase in purchases:
        properties = purchase.properties
        started_ns = time.perf_counter_ns()
        accepted = client.track_event("purchase", purchase.customer_email, properties, timestamp=purchase.at)
        took_ns.append(time.perf_counter_ns() - started_ns)
        cents += purchase.cents if accepted else 0
    return took_ns, cents


def win_back(client: Windback, quiet: Sequence[QuietCustomer]) -> Calls:
    """Tell Windback about the ten best of the quiet customers, five in each of two ways."""
    print(f"\n{len(quiet)} customers went quiet: {RULE}.\nThe best of them:")
    for customer in quiet[:10]:
        print(f"  {customer}")

    events = [
        client.create_churn_event(
            customer.email,
            event_type="cancellation",
            cancel_reason=f"nothing for {customer.silent_days} days",
            mrr=customer.cents_a_month,
            currency="usd",
            tenure_days=customer.tenure_days,
        )
        for customer in quiet[:5]
    ]
    reported = [report_reason(client, customer.email, "not_using_enough") for customer in quiet[:5]]
    flows = [
        client.submit_cancel_flow(
            customer.email, "too_expensive", "I found the same CDs for less", selected_offer="discount"
        )
        for customer in quiet[5:10]
    ]
    templates = [
        client.create_recovery_template(
            reason, f"We miss you ({reason})", "Come back, {{customer_name}}", "We read: {{cancel_reason}}."
        )
        for reason in REASONS
    ]
    return Calls(len(events), sum(flow.created for flow in flows), sum(reported), len(templates))


def report_reason(client: Windback, email: str, reason: str) -> bool:
    """Report a reason; whether that went well within 5 tries.

    The client itself repeats no report that may have arrived, since it can start an email to the customer.
    Here a second email would do no harm, so we repeat it.
    """
    for _ in range(5):
        try:
            client.report_cancel_reason(email, reason)
        except WindbackConnectionError:
            continue
        return True
    return False


if __name__ == "__main__":
    sys.exit(main())
