// The fault controls: rules that make the server misbehave on purpose, and the strip that shows it on every page.

import { call, get } from "./api.js";
import { $, button, h, iconButton, number, plural, toast } from "./dom.js";
import { failed } from "./detail.js";
import { address } from "./url.js";

/** Rules by story. */
const PRESETS = [
  ["Deploy", "10 s of 502", { status: 502, until: 10 }],
  ["Rate limited", "429 above 2 a second", { rate_limit: { rate: 2, burst: 5 } }],
  ["Slow", "every answer 800 ms late", { latency: 0.8 }],
  ["Bad wifi", "300 ± 200 ms, 2 % resets", { latency: 0.3, jitter: 0.2 }, { drop: "before", rate: 0.02 }],
  ["Lost answers", "stored, but the answer is lost, three times", { drop: "after", times: 3, path: "/track" }],
  ["Expired", "402 SUBSCRIPTION_EXPIRED", { expired: true }],
];

let root;
let list; // the parts of the list: `none`, `rows` and `stop`
let stripLabel; // made with the rest of the strip when a rule is first in force
let rules = [];
const rows = new Map(); // what shows a rule, by the id of the rule

/** What a rule does, in words. */
export function words(rule) {
  const parts = [];
  if (rule.status) parts.push(`${rule.status}${rule.retry_after ? `, Retry-After ${rule.retry_after}` : ""}`);
  if (rule.drop) parts.push(rule.drop === "after" ? "drop after storing" : "drop the connection");
  if (rule.rate_limit) parts.push(`429 above ${rule.rate_limit.rate}/s`);
  if (rule.hang) parts.push("never answer");
  if (rule.expired) parts.push("402 SUBSCRIPTION_EXPIRED");
  if (rule.answer) parts.push(`${rule.answer} answer`);
  for (const name of ["drip", "refuse_gzip", "redirect", "max_bytes"]) if (rule[name]) parts.push(`${name.replace("_", " ")} ${rule[name] === true ? "" : rule[name]}`);
  if (rule.latency || rule.jitter) parts.push(`${Math.round((rule.latency || 0) * 1000)}${rule.jitter ? ` ± ${Math.round(rule.jitter * 1000)}` : ""} ms late`);
  return rule.name || parts.join(", ");
}

function scope(rule) {
  const parts = [[rule.method, rule.path].filter(Boolean).join(" ") || "every request"];
  if (rule.event) parts.push(rule.event);
  if (rule.every) parts.push(`each ${rule.every}th`);
  if (rule.above) parts.push(`above ${rule.above}/s`);
  if (rule.rate !== undefined && rule.rate < 1) parts.push(`${Math.round(rule.rate * 100)} % of them`);
  return parts.join(", ");
}

const isSpent = (rule) => !rule.enabled || (rule.times && rule.hits >= rule.times) || (rule.ends_at && Date.parse(rule.ends_at) < Date.now());
const left = (rule) => (rule.times ? `${number(Math.max(0, rule.times - rule.hits))} left` : null);

/** The stream sent the rules in force. */
export function onFaults(news) {
  rules = news;
  const active = rules.filter((rule) => !isSpent(rule));
  $("strip").hidden = !active.length;
  if (active.length) {
    const texts = active.slice(0, 2).map((rule) => [words(rule), `on ${scope(rule)}`, left(rule)].filter(Boolean).join(" · "));
    if (active.length > 2) texts.push(`${active.length - 2} more`);
    drawStrip(texts.join("   +   "));
  }
  if (list) drawRules();
}

function drawStrip(text) {
  if (!stripLabel) {
    stripLabel = h("a", { href: "/?s=faults" });
    $("strip").append(h("span.mark-place", { "aria-hidden": "true" }, "▲"), stripLabel, button("Stop all", stopAll, { class: "stop" }));
  }
  stripLabel.textContent = text;
}

export async function stopAll() {
  await call("DELETE", "/faults").then(() => toast("No faults any more"), failed);
  await reload();
}

export async function reload() {
  onFaults((await get("/faults")).data);
}

async function add(...added) {
  for (const rule of added) await call("POST", "/faults", rule).then(() => toast(`In force: ${words(rule)}`), failed);
  await reload();
}

/** Put a rule in force that fails the next request like this one. */
export async function failNext(request) {
  const path = request.path.replace(/^\/api\/v1/, "") || "/";
  await add({ method: request.method, path, status: 503, times: 1 });
}

export function build() {
  list = { none: h("p.muted", "None: the server behaves."), rows: h("ul.plain-list"), stop: button("Stop all", stopAll, { class: "danger" }) };
  const presets = h(".presets", PRESETS.map(([name, what, ...all]) => h("button", { onclick: () => add(...all) }, h("strong", name), h("span", what))));
  root = h(".page.narrow", h("h1", "Faults"), h("p.lead", "Make this server misbehave on purpose, and see that your application copes. Nothing here survives a restart."), h("h2", "In force"), h(".rules", list.none, list.rows, list.stop), h("h2", "Presets"), presets, h("h2", "A rule of your own"), form());
  drawRules();
  return root;
}

export function update() {
  return reload();
}

function drawRules() {
  list.none.hidden = rules.length > 0;
  list.rows.hidden = list.stop.hidden = !rules.length;
  const ids = new Set(rules.map((rule) => rule.id));
  for (const [id, row] of rows) {
    if (ids.has(id)) continue;
    row.element.remove();
    rows.delete(id);
  }
  for (const rule of rules) {
    if (!rows.has(rule.id)) {
      rows.set(rule.id, makeRow(rule.id));
      list.rows.append(rows.get(rule.id).element);
    }
    rows.get(rule.id).show(rule);
  }
}

/** What shows one rule: the same elements while it is there. One that is made anew loses the focus, and a click that has begun. */
function makeRow(id) {
  const isOn = h("input", { type: "checkbox", role: "switch", onchange: () => call("PATCH", `/faults/${id}`, { enabled: isOn.checked }).catch(failed).then(reload) });
  const [what, where, hits] = [h("strong"), h("span.muted"), h("a.badge")];
  const remove = iconButton("close", "Remove", () => call("DELETE", `/faults/${id}`).catch(failed).then(reload));
  const element = h("li.rule", isOn, h("div", what, where), hits, remove);
  const show = (rule) => {
    element.classList.toggle("spent", Boolean(isSpent(rule)));
    isOn.checked = rule.enabled !== false;
    isOn.setAttribute("aria-label", `${words(rule)} in force`);
    what.textContent = words(rule);
    where.textContent = ` on ${scope(rule)}`;
    hits.textContent = [plural(rule.hits, "hit"), left(rule)].filter(Boolean).join(" · ");
    for (const name of ["aria-label", "title"]) remove.setAttribute(name, `Remove ${words(rule)}`);
    const last = rule.last_request_id;
    if (!last) return;
    hits.href = address({ section: "inbox", view: "requests", q: "", id: last, tab: "overview" });
    hits.title = `The last: ${last}`;
  };
  return { element, show };
}

/** The form makes the same JSON that the API takes. */
function form() {
  const field = (label, control, extra = {}) => h("label.field", { ...extra }, h("span", label), control);
  const option = (value, text) => h("option", { value }, text);
  const kind = h("select", { name: "kind" }, option("latency", "Latency"), option("status", "Failure (a status)"), option("rate_limit", "Rate limit (429)"), option("drop-before", "Dropped connection, not stored"), option("drop-after", "Dropped connection, stored"), option("hang", "No answer"));
  const input = (name, value, props = {}) => h("input", { name, value, ...props });
  const fields = {
    latency: field("Milliseconds", input("ms", "500", { type: "number", min: "1", max: "3600000" })),
    status: field("Status", input("status", "503", { type: "number", min: "200", max: "599" })),
    retry_after: field("Retry-After (s)", input("retry_after", "", { type: "number", min: "0" })),
    rate_limit: field("Requests a second", input("per_second", "5", { type: "number", min: "0.001", step: "any" })),
  };
  const problem = h("p.problem", { role: "alert", hidden: true });
  const show = () => {
    for (const [name, element] of Object.entries(fields)) element.hidden = name !== kind.value && !(name === "retry_after" && kind.value === "status");
  };
  kind.addEventListener("change", show);
  show();
  const submit = async (event) => {
    event.preventDefault();
    const value = Object.fromEntries(new FormData(element));
    const [name, when] = value.kind.split("-");
    const rule = { latency: () => ({ latency: Number(value.ms) / 1000 }), status: () => ({ status: Number(value.status), ...(value.retry_after ? { retry_after: Number(value.retry_after) } : {}) }), rate_limit: () => ({ rate_limit: { rate: Number(value.per_second), burst: Math.max(1, Number(value.per_second)) } }), drop: () => ({ drop: when }), hang: () => ({ hang: true }) }[name]();
    if (value.path) rule.path = value.path;
    if (value.percent !== "100") rule.rate = Number(value.percent) / 100;
    if (value.times) rule.times = Number(value.times);
    try {
      await call("POST", "/faults", rule);
      problem.hidden = true;
      await reload();
    } catch (error) {
      problem.hidden = false;
      problem.textContent = error.message;
    }
  };
  const element = h("form.rule-form", { onsubmit: submit }, field("What happens", kind), Object.values(fields), field("Path", input("path", "", { placeholder: "/track, or all" })), field("Percent of requests", input("percent", "100", { type: "number", min: "0", max: "100" })), field("How often", input("times", "", { type: "number", min: "1", placeholder: "for ever" })), h("button.primary", { type: "submit" }, "Put in force"), problem);
  return element;
}
