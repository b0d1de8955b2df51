// The customers: who they are, what they did in order of time, and their churn events.

import { get } from "./api.js";
import { age, duration, h, hue, money, number, plural, put, released, when } from "./dom.js";
import { facts } from "./detail.js";
import { address, go, state } from "./url.js";

const SILENCE_S = 3 * 86400; // a gap that is worth a line

let root;

export function build() {
  root = h(".page");
  return root;
}

export async function update() {
  const id = state.id;
  const content = id ? await one(id) : await all();
  await released();
  if (id === state.id) put(root, ...content);
}

export const refresh = () => (root.contains(document.activeElement) ? null : update());

const idOf = (each) => each.customer_email || each.customer_id;

const cents = (sums) => Object.entries(sums || {}).map(([currency, sum]) => money(sum, currency)).join(" + ");

async function all() {
  const { data, total } = await get("/customers", { q: state.q, key: state.key, limit: 200 });
  const head = h("h1", "Customers", h("small", plural(total, "customer")));
  if (!data.length) return [head, h(".empty", h("h2", "No customer yet"), h("p", "A customer shows here with the first event that names an email address. ", h("a", { href: address({ section: "connect", id: "" }) }, "Connect your application")))];
  const rows = data.map((each) =>
    h("tr.clickable", { onclick: () => go({ id: idOf(each) }) },
      h("th", { scope: "row" }, h("span.avatar", { "aria-hidden": "true", css: { "--hue": String(hue(idOf(each))) } }, (each.customer_name || idOf(each))[0].toUpperCase()), h("a", { href: address({ id: idOf(each) }) }, each.customer_name || idOf(each)), each.customer_name ? h("span.muted", ` ${idOf(each)}`) : null),
      h("td.end", number(each.events)),
      h("td.end", cents(each.mrr) || "–"),
      h("td", each.open_churn_events ? h("span.word.amber", plural(each.open_churn_events, "open")) : h("span.muted", "none")),
      h("td.end", h("span", { title: each.last_at }, each.last_at ? `${age(each.last_at)} ago` : "–")),
    ),
  );
  const heads = [["Customer"], ["Events", "end"], ["MRR", "end"], ["Churn events"], ["Seen", "end"]];
  return [head, h(".wide", { tabindex: "0", role: "region", "aria-label": "Customers" }, h("table.data", h("thead", h("tr", heads.map(([name, kind]) => h("th", { scope: "col", class: kind }, name)))), h("tbody", rows)))];
}

async function one(email) {
  const data = await get(`/customers/${encodeURIComponent(email)}`, { key: state.key }).catch(() => null);
  const back = h("a.crumb", { href: address({ id: "" }) }, "← All customers");
  if (!data) return [back, h(".empty", h("h1", email), h("p", "Nothing of this customer is kept."))];
  const line = [];
  let before = null;
  for (const event of [...data.events].sort((one, other) => Date.parse(other.timestamp) - Date.parse(one.timestamp))) {
    const gap = before ? (Date.parse(before.timestamp) - Date.parse(event.timestamp)) / 1000 : 0;
    if (gap > SILENCE_S) line.push(h("li.gap", `${duration(gap)} of silence`));
    line.push(h("li", { css: { "--hue": String(hue(event.event)) } }, when(event.timestamp), h("a", { href: address({ section: "inbox", view: "events", q: "", id: String(event.id), tab: "overview" }) }, event.event), h("span.muted", Object.entries(event.properties).slice(0, 3).map(([name, value]) => `${name} ${JSON.stringify(value)}`).join("  "))));
    before = event;
  }
  return [
    back,
    h("h1", data.data.customer_name || email, h("small", data.data.customer_name ? email : plural(data.events.length, "event"))),
    facts([
      ["Events", number(data.data.events)],
      ["MRR", cents(data.data.mrr)],
      ["Last seen", data.data.last_at && `${age(data.data.last_at)} ago`],
    ]),
    data.churn_events?.length ? h("h2", "Churn events") : null,
    data.churn_events?.length ? h("ul.plain-list", data.churn_events.map((each) => h("li", h("span", { class: `status ${each.status}` }, each.status.replace(/_/g, " ")), ` ${each.cancel_reason || each.event_type} · ${money(each.mrr, each.currency)} · `, when(each.created_at)))) : null,
    h("h2", "History"),
    h("ol.timeline", line),
  ];
}
