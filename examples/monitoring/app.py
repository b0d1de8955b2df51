"""An application with metrics: it tracks logins, and answers a scrape of Prometheus on port 9100.

    pip install 'windback[metrics]'
    WINDBACK_API_KEY=sk_... WINDBACK_PROJECT_SLUG=shop python examples/monitoring/app.py

`--per-second`, `--queue` and `--port` change what it does; it ends with Ctrl-C.
"""

import argparse
import contextlib
import time
from typing import Dict, Optional

from prometheus_client import start_http_server

import windback
from windback.prometheus import register


def without_noise(event: Dict[str, object]) -> Optional[Dict[str, object]]:
    """Drop the events of health checks; the metrics show them as refused."""
    return None if event["event"] == "health_check" else event


def main() -> None:
    """Track until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=9100)
    parser.add_argument("--per-second", type=float, default=20.0)
    parser.add_argument("--queue", type=int, default=100_000)
    options = parser.parse_args()
    with windback.Windback(before_send=without_noise, max_queue_size=options.queue) as client:
        register(client)
        start_http_server(options.port, addr="127.0.0.1")
        with contextlib.suppress(KeyboardInterrupt):
            number = 0
            while True:
                client.track_event("login", f"customer{number % 50}@example.com", {"number": number})
                if number % 10 == 0:
                    client.track_event("health_check", "probe@example.com")
                number += 1
                time.sleep(1 / options.per_second)


if __name__ == "__main__":
    main()
