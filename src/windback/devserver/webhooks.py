"""Signed webhooks to an address of the user's choice, with the documented retries (Churn Risk Webhook page).

The API sends one when a risk score crosses the threshold. How it computes the score is not documented, so
here one is sent when the control plane asks for it.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
import uuid
from typing import Dict, List, Mapping, Optional, Set, Tuple, cast

import orjson

from .clock import iso
from .errors import ApiError, not_found
from .options import Options
from .store import Doc, Store
from .validation import Alert
from .waits import Waits

SIGNATURE_HEADER = "X-Windback-Signature"

#: Seconds that a receiver may take (Churn Risk Webhook page of the docs tree).
TIMEOUT_S = 5.0


def sign(secret: str, body: bytes) -> str:
    """HMAC-SHA256 over the raw body, in lower-case hex without a prefix."""
    return hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


class Webhooks:
    """Sends alerts, keeps what became of them in the store, and goes on with them after a restart."""

    def __init__(self, options: Options, store: Store, waits: Waits) -> None:
        self._options = options
        self._store = store
        self._waits = waits
        self._tasks: Set[asyncio.Task[None]] = set()

    def send(self, alert: Alert, now: float) -> Doc:
        """Take an alert and deliver it in the background; raises `ApiError` 400 when there is no address."""
        if self._options.webhook_url is None:
            raise ApiError(400, "NO_WEBHOOK", "the server was started without --webhook-url")
        alert_id = "alert_" + uuid.uuid4().hex
        payload = {
            "event": "churn_risk.alert",
            "project_id": alert.project_id,
            "customer_email": alert.customer_email,
            "risk_score": alert.risk_score,
            "risk_level": alert.risk_level,
            "signals": alert.signals,
            "triggered_at": iso(now),
            "opaque_id": alert_id,
        }
        body = orjson.dumps(payload).decode()
        delivery: Doc = {"id": alert_id, "state": "pending", "attempts": [], "next_at": now, "body": body}
        self._store.add_webhook(delivery)
        self._start(delivery)
        return delivery

    @property
    def url(self) -> Optional[str]:
        """Where alerts are sent; None: nowhere."""
        return self._options.webhook_url

    def resend(self, alert_id: str, now: float) -> Doc:
        """Send an alert again, byte for byte, as the API's retries are; raises `ApiError` 404 or 409.

        Its receiver may have seen it: then it answers as to any duplicate.
        """
        delivery = next((each for each in self._store.webhooks() if each["id"] == alert_id), None)
        if delivery is None:
            raise not_found("alert")
        if self._options.webhook_url is None:
            raise ApiError(400, "NO_WEBHOOK", "the server was started without --webhook-url")
        if delivery["state"] == "pending":
            raise ApiError(409, "PENDING", "this alert is on its way: its next try comes by itself")
        delivery.update(state="pending", next_at=now)
        self._store.update_webhook(delivery)
        self._start(delivery)
        return delivery

    def resume(self) -> None:
        """Go on with what an earlier server on this database did not finish."""
        if self._options.webhook_url is not None:
            for delivery in self._store.webhooks():
                if delivery["state"] == "pending":
                    self._start(delivery)

    def _start(self, delivery: Doc) -> None:
        task = asyncio.ensure_future(self._deliver(delivery))
        self._tasks.add(task)  # the loop itself holds on to a task only weakly
        task.add_done_callback(self._tasks.discard)

    async def _deliver(self, delivery: Doc) -> None:
        while delivery["state"] == "pending":
            if not await self._waits.sleep(max(0.0, cast("float", delivery["next_at"]) - time.time())):
                return
            if not self._store.has_webhook(str(delivery["id"])):  # forgotten by a reset
                return
            if not await self._waits.wait(self._try(delivery)):
                return
            self._store.update_webhook(delivery)

    async def _try(self, delivery: Doc) -> None:
        attempts = cast("List[Mapping[str, object]]", delivery["attempts"])
        started, clock = time.time(), time.monotonic()
        status, error = await self._post(str(delivery["body"]).encode())
        attempt: Dict[str, object] = {"at": iso(started), "status": status, "error": error}
        attempt["duration_s"] = round(time.monotonic() - clock, 6)
        attempts.append(attempt)
        delays_s = self._options.webhook_delays_s
        if status is not None and 200 <= status < 300:
            delivery["state"] = "delivered"
        elif len(attempts) > len(delays_s):
            delivery["state"] = "failed"
        else:
            delivery["next_at"] = time.time() + delays_s[len(attempts) - 1]

    async def _post(self, body: bytes) -> Tuple[Optional[int], Optional[str]]:
        """The status of the receiver's answer, or why there is none."""
        import httpx  # only who has webhooks sent pays for it

        headers = {
            "content-type": "application/json",
            SIGNATURE_HEADER: sign(self._options.webhook_secret, body),
        }
        url = cast("str", self._options.webhook_url)
        try:
            # A proxy of the environment would not find a receiver on this machine.
            async with httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=False) as client:
                answer = await asyncio.wait_for(client.post(url, content=body, headers=headers), TIMEOUT_S)
        except (asyncio.TimeoutError, httpx.TimeoutException):
            return None, f"no answer within {TIMEOUT_S:g} s"
        except (httpx.HTTPError, httpx.InvalidURL) as problem:
            return None, str(problem) or type(problem).__name__
        return answer.status_code, None
