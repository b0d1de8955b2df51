"""Win a customer back, from the first event to the outcome, with an application and an API on this machine.

pip install 'windback[fastapi,dev-server]'
python examples/winback/run.py
"""

import os
import socket
import threading
import time
from typing import Dict, Optional

import httpx
import uvicorn
from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.types import Scope

from windback import Windback
from windback.devserver import DevServer
from windback.fastapi import Track, WindbackMiddleware, webhook_router
from windback.webhooks import ChurnRiskAlert


def customer_of(scope: Scope) -> str:
    """Return the customer; a header replaces a login."""
    return Headers(scope=scope).get("x-customer", "")


def build_app(client: Windback) -> FastAPI:
    """Return an application that tracks, listens for alerts, makes offers, and reports the outcome."""
    at_risk: Dict[str, str] = {}  # email address -> id of the churn event; a database in real life
    app = FastAPI()
    app.add_middleware(WindbackMiddleware, client=client, customer=customer_of)

    @app.get("/report")
    def report(track: Track) -> Dict[str, int]:
        track("report_opened", {"rows": 3})  # returns immediately; a background worker sends it
        return {"rows": 3}

    def at_alert(alert: ChurnRiskAlert) -> None:
        email = alert.customer_email or ""
        reason = ", ".join(signal.name for signal in alert.signals)
        event = client.create_churn_event(email, cancel_reason=reason, mrr=4999, currency="USD")
        at_risk[email] = event.id
        print(f"2. alert: {email}, risk {alert.risk_score:.0f}, {reason}; the churn event is {event.status}")

    app.include_router(webhook_router(at_alert))  # the secret is in WINDBACK_WEBHOOK_SECRET

    @app.get("/cancel")
    def cancel(reason: str) -> Dict[str, Optional[str]]:
        offer = client.get_offer(reason)
        return {"offer": None if offer is None else offer.title}

    @app.post("/stay")
    def stay(email: str, reason: str, track: Track) -> Dict[str, str]:
        client.accept_offer(email, reason, "discount")
        track("offer_accepted", {"reason": reason})
        return {"status": client.mark_recovered(at_risk[email]).status}

    return app


def be_the_customer(browser: httpx.Client, server: DevServer) -> None:
    """Do what a customer does who is about to leave, and stays."""
    browser.get("/report").raise_for_status()
    print("1. jane@example.com opened a report")
    server.send_alert("jane@example.com", 92, signals=[{"name": "logins_down", "weight": 0.6}])
    while server.webhooks()[0].state == "pending":
        time.sleep(0.05)
    jane = {"email": "jane@example.com", "reason": "too_expensive"}
    print("3. jane wants to cancel; the offer:", browser.get("/cancel", params=jane).json()["offer"])
    print("4. jane stays; the churn event is", browser.post("/stay", params=jane).json()["status"])


def main() -> None:
    """Run the application and the embedded server, and print what happens."""
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server = DevServer(webhook_url=f"{url}/windback", webhook_secret=os.environ["WINDBACK_WEBHOOK_SECRET"])
    with server, Windback("sk_test_winback", "my-project", base_url=server.url) as client:
        server.offers(
            [{"cancel_reason": "too_expensive", "offer_type": "discount", "title": "Half off for 3 months"}]
        )
        running = uvicorn.Server(uvicorn.Config(build_app(client), log_level="warning"))
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        with httpx.Client(base_url=url, headers={"X-Customer": "jane@example.com"}) as browser:
            be_the_customer(browser, server)
        running.should_exit = True
        thread.join()
        client.flush()
        won = client.get_recovery_stats()
        print("5. the API has:", ", ".join(event.event for event in server.events()))
        print(f"   {won.recovered_events} of {won.total_events} recovered: {won.recovered_mrr} cents a month")


if __name__ == "__main__":
    os.environ.setdefault("WINDBACK_WEBHOOK_SECRET", "whsec_example")
    main()
