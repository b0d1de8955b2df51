// The past in bars of a second, or of minutes, as plain SVG: zero-based and not smoothed, each with its table.

import { get } from "./api.js";
import { age, button, clock, h, hue, money, number, released, svg } from "./dom.js";
import { go, state } from "./url.js";

const HEIGHT = 96;
const SPANS = [[60, "1 min"], [300, "5 min"], [600, "10 min"], [3600, "1 h"], [0, "All"]]; // 0: all that is kept
const STATUS = { "2xx": ["ok", "2xx"], "3xx": ["blue", "3xx"], "4xx": ["red", "4xx"], "5xx": ["amber", "5xx"], none: ["grey", "no answer"] };

const asTable = new Set();
let root;
let asked = 300;
let seconds = 300; // of all bars
let step = 1; // seconds of one bar
let start = 0;
let drag = null; // the bar where a drag began

export function build() {
  root = h(".page.charts");
  root.addEventListener("pointermove", (event) => point(event));
  root.addEventListener("pointerleave", () => point(null));
  addEventListener("pointerup", (event) => drag !== null && select(event));
  return root;
}

/** Once a second, but not while somebody reads a table, drags or moves the cursor over the bars. */
export function refresh() {
  if (drag === null && !root.querySelector("figure:hover, :focus-visible")) update();
}

export async function update() {
  const [data, board] = await Promise.all([get("/series", { seconds: asked, key: state.key }), get("/board", { key: state.key })]);
  await released();
  ({ start, step, seconds } = data);
  const none = data.events.map(() => 0);
  const layer = (name, values, look) => ({ name, values, total: values.reduce((sum, value) => sum + (value || 0), 0), ...look });
  const names = [...data.names.map(({ event, counts }) => layer(event, counts, { hue: hue(event) })), ...(data.rest.some(Boolean) ? [layer("the rest", data.rest, { colour: "grey" })] : [])];
  const classes = Object.entries(STATUS).map(([key, [colour, name]]) => layer(name, data.status[key] || none, { colour })).filter((each) => each.total);
  const latency = [layer("p95", data.p95_ms.map((value, second) => (value === null ? null : value - (data.p50_ms[second] || 0))), { colour: "soft" }), layer("p50", data.p50_ms, { colour: "accent" })];
  const figures = [
    figure("events", `Events per ${spanName()}`, [layer("arrived", data.events, { colour: "accent" }), layer("rejected", data.rejected, { colour: "red" })].filter((each, index) => !index || each.total)),
    figure("names", "By name", names),
    figure("answers", "Answers", classes),
    figure("latency", "Time to answer, in ms", latency.reverse(), { stacked: [data.p50_ms, data.p95_ms], totals: false }),
    reasons(data.reasons),
    revenue(board.columns),
  ];
  const choice = h(".segments", { role: "group", "aria-label": "How much of the past" }, SPANS.map(([span, name]) => h("button", { "aria-pressed": String(span === asked), onclick: () => ((asked = span), update()) }, name)));
  const focused = document.activeElement?.dataset?.focus;
  const last = data.last_at ? `last event ${age(data.last_at)} ago` : "no event yet";
  const nothing = !data.events.some(Boolean) && !classes.length;
  const older = data.last_at && asked ? button("Show all", () => ((asked = 0), update()), { class: "link", "data-focus": "all" }) : null;
  const hint = nothing ? h("p.hint", `Nothing came in this time: ${last}. `, older) : null;
  root.replaceChildren(h("header.page-head", h("h1", "Charts", h("small", last)), choice), hint ?? "", h(".figures", figures));
  if (focused) root.querySelector(`[data-focus="${CSS.escape(focused)}"]`)?.focus();
}

/** One chart with stacked layers. */
function figure(id, title, layers, { totals = true, stacked = null } = {}) {
  const length = layers[0]?.values.length ?? 0;
  const sums = Array.from({ length }, (_, second) => layers.reduce((sum, layer) => sum + (layer.values[second] || 0), 0));
  const top = nice(Math.max(0, ...sums));
  const base = new Array(length).fill(0);
  const bars = layers.map((layer) => {
    const path = layer.values.map((value, second) => {
      if (!value) return "";
      const y = HEIGHT - (base[second] / top) * HEIGHT;
      base[second] += value;
      return `M${second} ${y}V${HEIGHT - (base[second] / top) * HEIGHT}h${length > 60 ? 1 : 0.8}V${y}z`;
    });
    return svg("path", { d: path.join(""), class: layer.colour || "hued", css: layer.hue === undefined ? {} : { "--hue": String(layer.hue) } });
  });
  const legend = layers.map((layer) => h("li", h("i", { class: layer.colour || "hued", css: layer.hue === undefined ? {} : { "--hue": String(layer.hue) } }), h("span", layer.name), totals ? h("b", number(layer.total)) : null));
  const texts = sums.map((_, second) => layers.map((layer, index) => `${layer.name} ${number(Math.round((stacked ? stacked[index][second] : layer.values[second]) || 0))}`).join(", "));
  const plot = h(".plot", { "data-texts": JSON.stringify(texts), onpointerdown: (event) => ((drag = barAt(event, plot)), event.preventDefault()) },
    svg("svg", { viewBox: `0 0 ${length || 1} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": `${title}: ${layers.map((layer) => `${layer.name} ${number(Math.round(layer.total))}`).join(", ") || "nothing"}; the highest bar has ${number(Math.round(Math.max(0, ...sums)))}` }, bars),
    h("span.top-label", number(top)),
    h("i.cursor"),
    h("i.range"),
  );
  const table = () =>
    h(".wide.table", { tabindex: "0", role: "region", "aria-label": `${title} as a table` }, h("table.data", h("thead", h("tr", ["Time", ...layers.map((layer) => layer.name)].map((name) => h("th", { scope: "col" }, name)))), h("tbody", sums.map((sum, second) => (sum ? h("tr", h("th", { scope: "row" }, at(second)), layers.map((layer, index) => h("td", number(Math.round((stacked ? stacked[index][second] : layer.values[second]) || 0))))) : null)).reverse())));
  return h("figure", head(id, title), asTable.has(id) ? table() : [plot, h("p.axis", h("span", at(0)), h("output"), h("span", "now"))], h("ul.legend", legend));
}

function head(id, title) {
  const toggle = () => {
    if (!asTable.delete(id)) asTable.add(id);
    update();
  };
  return h("figcaption", h("h2", title), button(asTable.has(id) ? "Show as bars" : "Show as table", toggle, { class: "link", "data-focus": id }));
}

/** Lines of a name, a bar and a number. */
function lines(id, title, rows, nothing) {
  const most = Math.max(1, ...rows.map((row) => row.value));
  return h("figure", h("figcaption", h("h2", title)),
    rows.length
      ? h("table.lines", h("tbody", rows.map((row) => h("tr", h("th", { scope: "row" }, row.name), h("td", h("i", { class: row.colour, css: { width: `${(row.value / most) * 100}%` } })), h("td", row.text)))))
      : h("p.muted", nothing),
  );
}

function reasons(list) {
  return lines("reasons", "Rejected, and why", list.map(({ reason, count }) => ({ name: reason, value: count, text: number(count), colour: "red" })), "Nothing was rejected.");
}

function revenue(columns) {
  const sums = {};
  for (const { status, mrr } of columns) {
    const [name, colour] = status === "recovered" ? ["Saved", "ok"] : status === "lost" ? ["Lost", "red"] : ["At risk", "amber"];
    for (const [currency, cents] of Object.entries(mrr)) {
      sums[`${name} ${currency}`] ??= { name, colour, currency, value: 0 };
      sums[`${name} ${currency}`].value += cents;
    }
  }
  return lines("mrr", "Monthly revenue", Object.values(sums).map((row) => ({ ...row, text: money(row.value, row.currency) })), "No churn event yet.");
}

/** The next number above that is easy to read. */
function nice(value) {
  if (value <= 4) return 4;
  const size = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * size).find((step) => step >= value);
}

/** Local time of day where a bar begins; with the day if it is another one. */
function at(bar) {
  const text = clock(new Date((start + bar * step) * 1000).toISOString());
  return text.includes(" ") ? text : text.slice(0, -4);
}

const spanName = () => (step === 1 ? "second" : step === 60 ? "minute" : `${step / 60} min`);

function barAt(event, plot) {
  const box = plot.getBoundingClientRect();
  const bars = seconds / step;
  return Math.min(bars - 1, Math.max(0, Math.floor(((event.clientX - box.left) / box.width) * bars)));
}

/** One cursor for all charts, and what each has at that bar. */
function point(event) {
  const over = event?.target.closest?.(".plot");
  const bar = over ? barAt(event, over) : null;
  const bars = seconds / step;
  for (const plot of root.querySelectorAll(".plot")) {
    plot.classList.toggle("pointed", bar !== null);
    plot.style.setProperty("--at", String((bar ?? 0) / bars));
    const [from, to] = drag === null || bar === null ? [0, 0] : [Math.min(drag, bar), Math.max(drag, bar) + 1];
    plot.style.setProperty("--from", String(from / bars));
    plot.style.setProperty("--to", String(to / bars));
    plot.parentElement.querySelector("output").textContent = bar === null ? "" : `${at(bar)}  ${JSON.parse(plot.dataset.texts)[bar]}`;
  }
}

/** What was dragged over is a search for that time. */
function select(event) {
  const plot = event.target.closest?.(".plot");
  const bar = plot ? barAt(event, plot) : drag;
  const [from, to] = [Math.min(drag, bar), Math.max(drag, bar) + 1];
  drag = null;
  if (to - from < 2) return point(null);
  const iso = (place) => new Date((start + place * step) * 1000).toISOString().replace(".000", "");
  return go({ section: "inbox", view: "events", id: "", q: `after:${iso(from)} before:${iso(to)}` });
}
