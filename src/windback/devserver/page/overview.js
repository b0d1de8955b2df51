// What people look for first: how much came today, what was lost, which events there are, and what changed about them.

import { get } from "./api.js";
import { age, h, hue, money, number, plural, put, released, term } from "./dom.js";
import { address, state } from "./url.js";

const KINDS = { type: ["amber", "another type"], new: ["blue", "new property"], values: ["grey", "many values"] };

let root;

export function build() {
  root = h(".page.overview");
  return root;
}

/** Draw anew, but not under somebody's focus or selection. */
export const refresh = () => (root.contains(document.activeElement) || !getSelection().isCollapsed ? null : update());

export async function update() {
  const data = await get("/overview", { key: state.key });
  await released();
  const last = data.last_at ? `last event ${age(data.last_at)} ago` : "";
  const head = h("h1", "Overview", h("small", last));
  if (!data.last_at) {
    put(root, head, h(".empty", h("h2", "No event yet"), h("p", "Counts, money and changes show here with the first event. ", h("a", { href: address({ section: "connect", id: "" }) }, "Connect your application"))));
    return;
  }
  put(root, head, tiles(data), h("h2", "Events"), names(data.names), h("h2", "What changed"), drift(data.drift));
}

function tiles({ events, rejected, requests, money: sums }) {
  const answered = Object.values(requests).reduce((sum, count) => sum + count, 0);
  const failed = answered - requests["2xx"];
  const rate = answered ? `${Math.floor((1000 * requests["2xx"]) / answered) / 10} %` : "–";
  return h(".tiles",
    tile("Events today", number(events), rejected ? `${plural(rejected, "event")} rejected` : "none rejected"),
    tile("Success rate", rate, answered ? `${number(failed)} of ${plural(answered, "request")} failed` : "no request yet", failed ? "amber" : ""),
    tile("At risk", cents(sums.at_risk), "a month, open churn events"),
    tile("Recovered", cents(sums.recovered), "a month"),
    tile("Lost", cents(sums.lost), "a month"),
  );
}

const tile = (name, value, more, colour = "") => h("section.tile", h("h2", name), h("strong", { class: colour }, value), h("p.muted", more));

const cents = (sums) => Object.entries(sums).map(([currency, sum]) => money(sum, currency)).join(" + ") || "–";

function names(list) {
  const most = Math.max(1, ...list.map((each) => each.count));
  const rows = list.map((each) =>
    h("tr",
      h("th", { scope: "row" }, h("a", { href: link({ q: term("event", each.event) }) }, each.event), each.is_new ? h("span.word.blue", " new") : null),
      h("td.bar-cell", h("i.hued", { css: { width: `${(each.count / most) * 100}%`, "--hue": String(hue(each.event)) } })),
      h("td.end", number(each.count)),
      h("td.end", h("a", { href: link({ q: "", id: String(each.first_id) }), title: each.first_at }, `${age(each.first_at)} ago`)),
      h("td.end", h("span", { title: each.last_at }, `${age(each.last_at)} ago`)),
    ),
  );
  return table("Events by name", [["Event"], ["Share", "bar-cell"], ["Count", "end"], ["First seen", "end"], ["Last seen", "end"]], rows);
}

function drift(list) {
  if (!list.length) return h("p.muted", "No property changed its type, appeared late, or has very many values.");
  const rows = list.map((each) => {
    const [colour, name] = KINDS[each.kind];
    return h("tr",
      h("td", h("span", { class: `word ${colour}` }, name)),
      h("th", { scope: "row" }, h("span", each.event), h("span.muted", " · "), h("b", each.property)),
      h("td.text", each.text),
      h("td.end", h("a", { href: link({ q: "", id: String(each.event_id) }), title: each.at }, `${age(each.at)} ago`)),
    );
  });
  return table("What changed", [["Kind"], ["Property"], ["What"], ["Event", "end"]], rows);
}

const link = (changes) => address({ section: "inbox", view: "events", tab: "overview", id: "", ...changes });

const table = (label, heads, rows) =>
  h(".wide", { tabindex: "0", role: "region", "aria-label": label }, h("table.data", h("thead", h("tr", heads.map(([name, kind]) => h("th", { scope: "col", class: kind }, name)))), h("tbody", rows)));
