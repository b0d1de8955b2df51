// What the right half of the inbox shows: one event or one request, in tabs.

import { age, brief, bytes, button, clock, copy, duration, h, iconButton, kept, mark, middle, plural, snippet, tabs, term, toast, when } from "./dom.js";
import { tree } from "./json.js";
import { address, go, state } from "./url.js";

/** State, mark and words of an event. */
export function stateOf(event) {
  if (event.status === "ignored") return ["grey", "ignored by the real API"];
  if (event.attempt > 1) return ["amber", `stored at attempt ${event.attempt}`];
  return ["ok", "stored"];
}

/** The same of a request. */
export function stateOfRequest(request) {
  if (request.fault) return ["amber", `fault: ${request.fault}`];
  if (request.status === null) return request.duration_ms === null ? ["blue", "running"] : ["red", "no answer"];
  if (request.status >= 400) return ["red", `refused with ${request.status}`];
  return request.attempt > 1 || request.duplicate ? ["amber", `answered at attempt ${request.attempt}`] : ["ok", "answered"];
}

/** What the client sent of an event, as it can be sent again. */
export function sent(event) {
  const fields = { event: event.event, customer_email: event.customer_email, customer_id: event.customer_id, customer_name: event.customer_name };
  const given = Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== null && value !== undefined));
  return { ...given, properties: event.properties, timestamp: event.timestamp };
}

export function eventDetail({ event, request, history, actions }) {
  const head = header(event.event, event.id, event.received_at, mark(...stateOf(event)), [
    iconButton("copy", "Copy JSON (c)", () => copy(JSON.stringify(sent(event), null, 2), "JSON copied")),
    iconButton("replay", "Replay (r)", () => actions.replay(event)),
  ]);
  return [
    head,
    ...tabs(
      [
        ["overview", "Overview", () => overview(event, request, history, actions)],
        ["json", "JSON", () => tree(sent(event), (path, value) => jsonActions(path, value, actions))],
        ["request", "Request", () => requestTab(request)],
        ["attempts", "Attempts", () => attemptsTab(request, actions)],
        ["response", "Response", () => responseTab(request)],
      ],
      state.tab,
      (tab) => go({ tab }, { replace: true }),
      "Parts of the event",
    ),
  ];
}

export function requestDetail({ request, events, actions }) {
  const title = `${request.method} ${request.path}`;
  const head = header(title, request.request_id, request.received_at, mark(...stateOfRequest(request)), [
    iconButton("faults", "Fail the next one like this", () => actions.failLike(request)),
  ]);
  const overview = () => [
    facts([
      ["Answer", answer(request)],
      ["Took", took(request)],
      ["Came in", when(request.received_at)],
      ["Body", size(request)],
      ["Fault", request.fault && h("span.word.amber", request.fault)],
      ["Refused because", request.reason],
      ["Sent by", request.headers["user-agent"]],
      ["Idempotency-Key", request.idempotency_key && h("code", request.idempotency_key)],
    ]),
    events.length ? h("h3", plural(request.events, "event"), " in it") : null,
    events.length ? h("ul.plain-list", events.map((event) => h("li", h("a", { href: address({ view: "events", id: String(event.id) }) }, event.event), " ", h("span.muted", event.customer_email || event.customer_id)))) : null,
  ];
  const parts = [
    ["overview", "Overview", overview],
    ["request", "Request", () => requestTab(request)],
    ["attempts", "Attempts", () => attemptsTab(request, actions)],
    ["response", "Response", () => responseTab(request)],
  ];
  return [head, ...tabs(parts, state.tab, (tab) => go({ tab }, { replace: true }), "Parts of the request")];
}

function header(name, id, at, symbol, tools) {
  return h("header.detail-head",
    iconButton("back", "Back to the list (Esc)", () => go({ id: "" }), { class: "plain back" }),
    h(".title", h("h2", { title: name }, symbol, h("span", middle(name, 60))), h("p.muted", h("code", `#${id}`), " · ", when(at), " · ", `${age(at)} ago`)),
    h(".tool-row", tools, iconButton("link", "Copy link (y)", () => copy(location.href, "Link copied")), iconButton("close", "Close (Esc)", () => go({ id: "" }), { class: "plain close" })),
  );
}

/** A list of facts; those without a value are left out. */
export function facts(rows) {
  return h("dl.facts", rows.filter(([, value]) => value !== null && value !== undefined && value !== "" && value !== false).map(([name, value]) => h("div", h("dt", name), h("dd", value))));
}

function overview(event, request, history, actions) {
  const late = event.delay_s !== null && event.delay_s !== undefined ? event.delay_s : null;
  const customer = event.customer_email || event.customer_id;
  const [, words] = stateOf(event);
  const problems = event.problems || [];
  return [
    problems.length
      ? h(".note.grey", h("strong", "Ignored by the real API"), h("ul", problems.map((each) => h("li", h("code", each.path), ` expected ${each.expected}, got `, h("code", brief(each.got))))))
      : null,
    facts([
      ["Customer", customer && [h("a", { href: address({ section: "customers", id: customer }) }, customer), filters("email", customer, actions)]],
      ["Name", event.customer_name],
      ["Event", [event.event, filters("event", event.event, actions)]],
      ["State", h("span", { class: `word ${stateOf(event)[0]}` }, words)],
      ["Call to arrival", late === null ? null : late >= 0 ? [duration(late), late > 5 ? h("span.word.amber", " late, or an old timestamp") : null] : h("span.word.amber", `the client's clock is ${duration(-late)} ahead`)],
      ["Client's time", when(event.timestamp)],
      ["Arrived", when(event.received_at)],
      ["Batch", request ? [h("a", { href: address({ view: "requests", id: request.request_id }) }, `${plural(request.events, "event")} in ${request.request_id}`), request.fault ? h("span.word.amber", ` ${request.fault}`) : null] : `#${event.batch_id}`],
      ["Key", event.inbox && h("code", event.inbox)],
    ]),
    h("h3", "Properties"),
    Object.keys(event.properties).length
      ? h("table.properties", h("tbody", Object.entries(event.properties).map(([name, value]) => h("tr", h("th", { scope: "row" }, name), h("td", h("code", middle(brief(value), 400)), isScalar(value) ? filters(name, value, actions) : null)))))
      : h("p.muted", "None."),
    customer ? strip(event, history) : null,
  ];
}

const isScalar = (value) => value !== null && typeof value !== "object";

function filters(field, value, actions) {
  return h("span.tools", iconButton("plus", `Only ${field} ${brief(value)}`, () => actions.search(term(field, value))), iconButton("minus", `Without ${field} ${brief(value)}`, () => actions.search(`-${term(field, value)}`)));
}

function jsonActions(path, value, actions) {
  const name = path[path.length - 1];
  const isProperty = path[0] === "properties" && path.length === 2;
  const field = isProperty ? name : { event: "event", customer_email: "email" }[path[0]];
  if (!field || value === null) return [];
  const found = [
    ["Include", () => actions.search(term(field, value))],
    ["Exclude", () => actions.search(`-${term(field, value)}`)],
  ];
  return isProperty ? [...found, ["As column", () => actions.addColumn(name)]] : found;
}

/** The customer's last 20 events as ticks on a line of time. */
function strip(event, history) {
  const others = history.length ? history : [event];
  const times = others.map((each) => Date.parse(each.timestamp));
  const from = Math.min(...times);
  const span = Math.max(1, Math.max(...times) - from);
  const ticks = others.map((each, index) =>
    h("a", { href: address({ id: String(each.id) }), class: each.id === event.id ? "tick here" : "tick", css: { left: `${((times[index] - from) / span) * 100}%` }, "aria-label": `${each.event}, ${clock(each.timestamp)}`, title: `${each.event} · ${clock(each.timestamp)}` }),
  );
  return h("section", h("h3", "This customer's last ", plural(others.length, "event")), h(".ticks", ticks), h("p.muted.ends", h("span", clock(new Date(from).toISOString())), h("span", clock(new Date(from + span).toISOString()))));
}

const GONE = "The server has forgotten the request; it keeps the newest ones.";

function requestTab(request) {
  if (!request) return h("p.muted", GONE);
  return [
    h("p.line", h("strong", request.method), " ", h("code", request.path + (request.query ? `?${request.query}` : "")), h("span.muted", ` ${size(request)}`)),
    headers(request.headers),
    bodyOf(request.body, "Body of the request", request.body_state, request.decoded),
  ];
}

function responseTab(request) {
  if (!request) return h("p.muted", GONE);
  const response = request.response || {};
  return [h("p.line", answer(request), h("span.muted", ` after ${took(request)}`)), headers(response.headers || {}), bodyOf(response.body, "Body of the response", "kept")];
}

function headers(map) {
  const rows = Object.entries(map);
  return rows.length ? h("table.properties", h("tbody", rows.map(([name, value]) => h("tr", h("th", { scope: "row" }, name), h("td", h("code", value)))))) : null;
}

function bodyOf(body, label, fate, decoded) {
  if (!body) return h("p.muted", `${label}: ${{ too_large: "too large to be kept", forgotten: "not kept any more" }[fate] || "nothing"}.`);
  const text = body.text ?? body.base64;
  let pretty = null;
  try {
    pretty = JSON.parse(decoded ?? text);
  } catch {
    // Shown as it came.
  }
  const raw = snippet(text, label);
  raw.classList.toggle("wrap", kept.get("wrap", true));
  const wrap = h("label.check", h("input", { type: "checkbox", checked: kept.get("wrap", true), onchange: (event) => (kept.set("wrap", event.target.checked), raw.classList.toggle("wrap", event.target.checked)) }), "Wrap lines");
  const shown = pretty === null ? null : h("details", { open: true }, h("summary", "As a tree"), tree(pretty));
  return h("section", shown, h("details", { open: pretty === null }, h("summary", body.text === undefined ? "The exact bytes, in base64" : "The exact bytes"), wrap, raw));
}

export const took = (request) => (request.duration_ms === null ? "–" : request.duration_ms < 10 ? `${request.duration_ms.toFixed(1)} ms` : duration(request.duration_ms / 1000));

function size(request) {
  return `${bytes(request.body_bytes)}${request.gzip ? " gzip" : ""}, ${bytes(request.wire_bytes)} on the wire`;
}

function answer(request) {
  const [colour, words] = stateOfRequest(request);
  return h("span", { class: `word ${colour}` }, request.status === null ? words : String(request.status), request.duplicate ? " seen before" : "");
}

/** The story of a batch: each attempt, and how long the client waited before it. */
function attemptsTab(request, actions) {
  if (!request) return h("p.muted", GONE);
  const list = request.attempts;
  const story = [];
  let lost = false;
  list.forEach((each, index) => {
    if (index) {
      const before = list[index - 1];
      const waited = (Date.parse(each.received_at) - Date.parse(before.received_at)) / 1000 - (before.duration_ms || 0) / 1000;
      story.push(h("span.wait", `waits ${duration(Math.max(0, waited))}`));
    }
    lost = lost || (/after/.test(each.fault || "") && !each.idempotency_key);
    story.push(h("a", { class: `attempt ${stateOfRequest(each)[0]}`, href: address({ view: "requests", id: each.request_id, tab: "attempts" }), "aria-current": each.request_id === request.request_id ? "true" : null }, each.status === null ? each.fault || "no answer" : String(each.status)));
  });
  return [
    h("p.story", story),
    lost ? h("p.note.amber", "An answer was lost after the server had stored the batch, and there was no Idempotency-Key: it may be stored twice.") : null,
    h("table.properties.attempts", h("thead", h("tr", ["Attempt", "Came in", "Answer", "Took", "Fault"].map((name) => h("th", { scope: "col" }, name)))), h("tbody", list.map((each, index) => h("tr", h("td", String(index + 1)), h("td", when(each.received_at)), h("td", answer(each)), h("td", took(each)), h("td", each.fault || "–"))))),
    h("p", button("Fail the next one like this", () => actions.failLike(request), { icon: "faults" })),
  ];
}

/** A dialog with an event to change and send; resolves to the JSON that is to be sent, or null. */
export function editor(event, { title, send }) {
  const fresh = sent(event);
  delete fresh.timestamp;
  const keep = h("input", { type: "checkbox" });
  const area = h("textarea", { spellcheck: "false", "aria-label": "The event as JSON", rows: "14", value: JSON.stringify(fresh, null, 2) });
  const problem = h("p.problem", { role: "alert", hidden: true });
  const submit = async () => {
    try {
      const value = JSON.parse(area.value);
      if (keep.checked && event.timestamp) value.timestamp ??= event.timestamp;
      await send(value);
      dialog.close();
    } catch (error) {
      problem.hidden = false;
      problem.textContent = error instanceof SyntaxError ? `This is not JSON: ${error.message}` : error.message;
    }
  };
  const form = h(
    "form",
    { method: "dialog", onsubmit: (submitted) => (submitted.preventDefault(), submit()) },
    h("h2", title),
    area,
    problem,
    h("label.check", keep, "Keep the original time (else it is now)"),
    h(".ends", button("Cancel", () => dialog.close()), h("button.primary", { type: "submit" }, "Send ", h("kbd", "Ctrl ↵"))),
  );
  const dialog = h("dialog.editor", { "aria-label": title, onclose: () => dialog.remove() }, form);
  area.addEventListener("keydown", (pressed) => {
    if (pressed.key === "Enter" && (pressed.ctrlKey || pressed.metaKey)) submit();
  });
  document.body.append(dialog);
  dialog.showModal();
  area.focus();
  area.setSelectionRange(0, 0);
}

export function failed(error) {
  toast(error.message, { bad: true, seconds: 6 });
}
