// How an application is pointed at this server: snippets with its real address.

import { h, snippet, tabs } from "./dom.js";

/** A key that the server takes. */
export let key = "sk_test_local";

/** From the server; one that was started with keys of its own does not send them. */
export function useKey(known) {
  key = known ?? "sk_test_of_yours";
}

function texts() {
  const url = `${location.origin}/api/v1`;
  return {
    environment: `export WINDBACK_API_KEY=${key}\nexport WINDBACK_PROJECT_SLUG=my-project\nexport WINDBACK_BASE_URL=${url}`,
    python: `from windback import Windback\n\nclient = Windback("${key}", "my-project", base_url="${url}")\nclient.track_event("feature_used", "jane@example.com", {"feature": "exports"})\nclient.flush()`,
    curl: `curl ${url}/track \\\n  -H 'X-API-Key: ${key}' \\\n  -H 'Content-Type: application/json' \\\n  -d '{"event": "feature_used", "customer_email": "jane@example.com"}'`,
  };
}

/** Three ways to send the first event, as tabs. */
export function snippets() {
  const { environment, python, curl } = texts();
  const list = [
    ["environment", "Environment", () => snippet(environment, "Environment")],
    ["python", "Python", () => snippet(python, "Python")],
    ["curl", "cURL", () => snippet(curl, "cURL")],
  ];
  return h(".snippets", tabs(list, "environment", () => {}, "Ways to send an event"));
}

export function build() {
  const { environment, python, curl } = texts();
  const test = `from windback import Windback
from windback.devserver import DevServer

def test_signup_is_tracked():
    with DevServer() as server:
        with Windback("${key}", "my-project", base_url=server.url) as client:
            client.track_event("signup", "jane@example.com")
        assert [event.event for event in server.events()] == ["signup"]`;
  const part = (title, words, text) => h("section", h("h2", title), h("p.muted", words), snippet(text, title));
  return h(".page.narrow",
    h("h1", "Connect"),
    h("p.lead", "This server has the whole Windback API, on this machine. Any key that starts with ", h("code", "sk_"), " is taken, and each key has an inbox of its own."),
    part("Environment", "The client reads these, so no line of your code changes.", environment),
    part("Python", "Or name the address where the client is made.", python),
    part("cURL", "Or without any client.", curl),
    part("A test", "A server of its own on a free port, for one test.", test),
  );
}

export const update = () => {};
