"""Run `windback dev` in another terminal first: this talks to it, and it prints what arrives."""

from windback import Windback

client = Windback("sk_test_quickstart", "my-project", base_url="http://127.0.0.1:8787/api/v1")

# Returns immediately; a background worker sends it.
client.track_event("feature_used", "jane@example.com", {"feature": "exports", "plan": "pro"})

# Waits for the answer.
event = client.create_churn_event("jane@example.com", cancel_reason="too_expensive", mrr=4999)
print(event.id, event.status)

client.close()  # delivers what still waits; without it, the end of the process does
