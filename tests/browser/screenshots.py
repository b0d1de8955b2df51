"""Take the pictures in docs/images: inbox, overview, board and charts, light and dark.

`make screenshots` runs this against a server that it fills through the SDK. It takes a good minute, since the
charts show what came in each second of one.
"""

from __future__ import annotations

import math
import random
import time
from pathlib import Path
from typing import Dict

from conftest import find_chromium
from playwright.sync_api import Page, sync_playwright

from windback import Windback
from windback.devserver import DevServer

IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"
SECONDS = 60
EXPIRED = "sk_test_of_last_year"

CUSTOMERS = {
    "maya@northwind.example": "Maya Lindgren",
    "tom.okafor@brightpath.example": "Tom Okafor",
    "lena@harbor-analytics.example": "Lena Fischer",
    "ravi@papertrail.example": "Ravi Menon",
    "sofia@lumen-studio.example": "Sofia Duarte",
    "jonas@fjordline.example": "Jonas Berg",
    "aiko@kitsune-labs.example": "Aiko Tanaka",
    "claire@atelier-nine.example": "Claire Moreau",
    "diego@solstice.example": "Diego Ramos",
    "hannah@openfield.example": "Hannah Weiss",
}
EVENTS: Dict[str, int] = {
    "feature_used": 40,
    "login": 26,
    "api_call": 14,
    "invoice_paid": 6,
    "nps_response": 4,
    "support_ticket_opened": 4,
    "team_member_removed": 2,
    "data_export": 2,
    "plan_downgrade": 1,
    "cancel_button_clicked": 1,
}
REASONS = [
    "too_expensive",
    "missing_features",
    "not_using_enough",
    "technical_issues",
    "switching_competitor",
]


def properties(name: str, rng: random.Random) -> Dict[str, object]:
    """What such an event tells."""
    plan = rng.choice(["starter", "pro", "pro", "team"])
    choices: Dict[str, Dict[str, object]] = {
        "feature_used": {
            "feature": rng.choice(["exports", "dashboards", "alerts", "segments"]),
            "plan": plan,
            "duration_s": rng.randint(4, 380),
        },
        "login": {
            "method": rng.choice(["sso", "password", "passkey"]),
            "device": rng.choice(["web", "ios"]),
        },
        "api_call": {
            "route": rng.choice(["/v2/reports", "/v2/users", "/v2/hooks"]),
            "ms": rng.randint(8, 240),
        },
        "invoice_paid": {"amount_cents": rng.choice([1900, 4900, 14900]), "currency": "usd", "plan": plan},
        "nps_response": {"score": rng.randint(3, 10), "plan": plan},
        "support_ticket_opened": {"topic": rng.choice(["billing", "import", "api"]), "priority": "normal"},
        "data_export": {"format": "csv", "rows": rng.randint(800, 90_000)},
    }
    return choices.get(name, {"plan": plan, "seats": rng.randint(1, 12)})


def fill(server: DevServer) -> None:
    """A minute in the life of a small company, with a deploy towards its end."""
    rng = random.Random(7)
    names, weights = list(EVENTS), list(EVENTS.values())
    emails = list(CUSTOMERS)
    with Windback(
        "sk_test_shop", "shop", base_url=server.url, flush_interval=0.2, batch_size=25
    ) as client, Windback(EXPIRED, "shop", base_url=server.url, flush_interval=0.2) as expired:
        churn(client, server, rng)
        for second in range(SECONDS):
            started_s = time.monotonic()
            if second == SECONDS - 12:
                server.faults([{"path": "/track", "status": 503, "rate": 0.4, "seed": 3, "name": "deploy"}])
            if second == SECONDS - 1:
                server.faults([{"path": "/track", "status": 503, "times": 2, "name": "deploy"}])
            if second in (11, 24, 37):
                expired.track_event("login", "maya@northwind.example")
            for _ in range(int(16 + 12 * math.sin(second / 9) + rng.random() * 9)):
                (name,) = rng.choices(names, weights)
                told = properties(name, rng)
                if name == "invoice_paid" and second >= SECONDS - 12:  # the deploy changed it
                    told["amount_cents"] = str(told["amount_cents"])
                client.track_event(name, rng.choice(emails), told)
                time.sleep(0.01)
            time.sleep(max(0.0, started_s + 1 - time.monotonic()))
        client.flush(timeout=30)


def churn(client: Windback, server: DevServer, rng: random.Random) -> None:
    """Customers who are about to leave, at each step of the way."""
    steps = [0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 3, 3, 4, 4]
    for index, step in enumerate(steps):
        email = list(CUSTOMERS)[index % len(CUSTOMERS)]
        event = client.create_churn_event(
            email,
            customer_name=CUSTOMERS[email],
            cancel_reason=rng.choice(REASONS),
            mrr=rng.choice([1_900, 4_900, 4_900, 14_900, 29_900]),
            plan_name="Pro",
        )
        if step == 0:
            continue
        variants = client.generate_variants(event.id)
        if step >= 2:
            client.send_variant(event.id, variants[0].id)
        if step == 3:
            client.mark_recovered(event.id)
        if step == 4:
            server.mark_lost(event.id)


def shoot(page: Page, name: str, scheme: str) -> None:
    page.screenshot(path=IMAGES / f"{name}-{scheme}.png")


def main() -> None:
    IMAGES.mkdir(parents=True, exist_ok=True)
    with DevServer(
        strict=False, generate_s=0.05, expired_keys=[EXPIRED]
    ) as server, sync_playwright() as playwright:
        path = find_chromium(playwright.chromium.executable_path)
        browser = playwright.chromium.launch(executable_path=path)
        fill(server)
        home = f"http://127.0.0.1:{server.port}/"
        chosen = next(event for event in reversed(server.events()) if event.event == "invoice_paid")
        for scheme in ("light", "dark"):
            context = browser.new_context(
                viewport={"width": 1400, "height": 800}, color_scheme=scheme, reduced_motion="reduce"
            )
            page = context.new_page()
            page.goto(f"{home}?id={chosen.id}")
            page.locator(".detail h2").wait_for()
            page.locator("tr[data-id]").first.wait_for()
            shoot(page, "inbox", scheme)
            page.goto(f"{home}?s=overview")
            page.locator(".tile").first.wait_for()
            shoot(page, "overview", scheme)
            page.goto(f"{home}?s=charts")
            page.get_by_role("button", name="1 min").click()
            page.locator("figure").first.wait_for()
            shoot(page, "charts", scheme)
            page.goto(f"{home}?s=board")
            page.locator(".card").first.wait_for()
            shoot(page, "board", scheme)
            context.close()
        browser.close()


if __name__ == "__main__":
    main()
