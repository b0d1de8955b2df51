"""The README's examples, word for word, for type checkers; `test_repo.py` sees that none is missing."""

from windback import Windback

client = Windback(api_key="sk_live_your_secret_key", project_slug="my-project")

client.track_event(
    event="feature_used",
    customer_email="jane@example.com",
    properties={"feature": "exports", "plan": "pro"},
)

client = Windback("sk_test_local", "my-project", base_url="http://127.0.0.1:8787/api/v1")


def sign_up(email: str) -> None:
    client.track_event("signup", email, {"plan": "pro"})


from windback.testing import CapturedEvents, Inbox


def test_signup(windback_events: CapturedEvents) -> None:
    sign_up("jane@example.com")
    windback_events.assert_tracked("signup", properties={"plan": "pro"})


def test_delivery(windback_dev: Inbox) -> None:
    windback_dev.faults(status=503, times=2)
    sign_up("jane@example.com")
    windback_dev.wait("signup")


from windback import RateLimitError, WindbackError

try:
    event = client.create_churn_event(customer_email="jane@example.com", mrr=4999)
except RateLimitError as error:
    print(error.retry_after)
except WindbackError as error:
    print(error.status, error.code, error.message)
