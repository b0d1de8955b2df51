// Churn risk webhooks: each alert with the answers of its receiver, sent again on demand.

import { call, get } from "./api.js";
import { button, duration, h, mark, plural, released, snippet, toast, when } from "./dom.js";
import { failed } from "./detail.js";

const STATES = { pending: ["blue", "on its way"], delivered: ["ok", "delivered"], failed: ["red", "failed"] };

let root;
let sending;
let list;

export function build() {
  sending = form();
  list = h("div");
  root = h(".page", h("h1", "Webhooks", h("small")), list);
  return root;
}

/** Draw anew, but not while somebody reads a body or has the focus in the list. */
export function refresh() {
  if (!list.querySelector(":focus, details[open]")) update();
}

export async function update() {
  const { data, url } = await get("/webhooks");
  await released();
  root.querySelector("small").textContent = url ? `${plural(data.length, "alert")}, sent to ${url}` : "";
  const drawn = data.length ? h("ul.alerts", { "aria-label": "Alerts" }, data.toReversed().map(draw)) : null;
  const empty = h(".empty", h("h2", "No receiver"), h("p", "Start the server with the address of your application:"), snippet("windback dev --webhook-url http://127.0.0.1:8000/windback", "Command"));
  list.replaceChildren(url ? sending : empty, drawn ?? (url ? h("p.hint", "No alert was sent yet.") : ""));
}

function form() {
  const email = h("input", { type: "email", required: true, value: "jane@example.com" });
  const score = h("input", { type: "number", min: 0, max: 100, required: true, value: 87 });
  const send = async (event) => {
    event.preventDefault();
    await post("/webhooks", { customer_email: email.value, risk_score: Number(score.value) }, "Alert sent");
  };
  return h("form.rule-form", { onsubmit: send }, h("label.field", h("span", "Customer"), email), h("label.field", h("span", "Risk score"), score), h("button.primary", { type: "submit" }, "Send an alert"));
}

async function post(path, body, text) {
  try {
    await call("POST", path, body);
    toast(text);
    document.activeElement?.blur();
    await update();
  } catch (error) {
    failed(error);
  }
}

function draw(alert) {
  const [sign, words] = STATES[alert.state] || ["grey", alert.state];
  const sent = JSON.parse(alert.body);
  const answers = alert.attempts.map((each) => h("li", when(each.at), ` ${each.status ?? each.error}, ${duration(each.duration_s)}`));
  const again = button("Send again", () => post(`/webhooks/${alert.id}/resend`, {}, "Sent again"), { icon: "replay", disabled: alert.state === "pending", "aria-label": `Send the alert about ${sent.customer_email} again` });
  return h(
    "li.alert",
    { "data-id": alert.id },
    h("p", mark(sign, ""), ` ${words}`),
    h("p", h("strong", sent.customer_email), h("br"), `${sent.risk_score}, ${sent.risk_level}`),
    h("ol", { "aria-label": "Answers" }, answers),
    again,
    h("details", h("summary", "Body"), h("pre", { tabindex: "0", "aria-label": "Body" }, h("code", JSON.stringify(sent, null, 2)))),
  );
}
