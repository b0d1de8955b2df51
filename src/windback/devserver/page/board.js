// The churn events by status. A card moves by its menu, to what the API's rules allow next and nowhere else.

import { call, get } from "./api.js";
import { key } from "./connect.js";
import { age, button, h, money, plural, released, toast } from "./dom.js";
import { failed } from "./detail.js";
import { address, state } from "./url.js";

const NAMES = { new: "New", processing: "Processing", variants_generated: "Variants ready", email_sent: "Email sent", recovered: "Recovered", lost: "Lost" };
const FOLDED = ["recovered", "lost"]; // the ends are totals until they are opened
const unfolded = new Set();

let root;
let known = new Map(); // id -> status, to see what moved

export function build() {
  root = h(".page.board-page");
  return root;
}

/** Draw anew, but not under somebody's pointer or focus: that card keeps its place. */
export function refresh() {
  if (!root.querySelector(".card:hover, .card:focus-within")) update();
}

export async function update() {
  const { columns } = await get("/board", { key: state.key });
  await released();
  const count = columns.reduce((sum, column) => sum + column.count, 0);
  const head = h("h1", "Board", h("small", plural(count, "churn event")));
  if (!count) {
    root.replaceChildren(head, h(".empty", h("h2", "Nobody is leaving"), h("p", "A churn event shows here when your application calls ", h("code", "create_churn_event"), " or a customer goes through the cancel flow."), button("Create one for jane@example.com", example, { class: "primary" })));
    return;
  }
  const before = known;
  known = new Map();
  const drawn = columns.map((column) => draw(column, before));
  const board = h(".board", { tabindex: "0", role: "region", "aria-label": "Churn events by status" }, drawn);
  const left = root.querySelector(".board")?.scrollLeft ?? 0;
  root.replaceChildren(head, board);
  board.scrollLeft = left;
}

function draw(column, before) {
  const { status } = column;
  const isFolded = FOLDED.includes(status) && !unfolded.has(status);
  const sums = Object.entries(column.mrr).map(([currency, sum]) => money(sum, currency)).join(" + ");
  const cards = column.cards.map((card) => {
    known.set(card.id, status);
    return drawCard(card, before.size > 0 && before.get(card.id) !== status);
  });
  const toggle = () => {
    if (!unfolded.delete(status)) unfolded.add(status);
    update();
  };
  const width = isFolded ? " folded" : column.count ? "" : " none";
  return h(
    "section",
    { class: `column ${status}${width}`, "aria-label": NAMES[status] },
    h("header", h("h2", NAMES[status] || status), h("span.count", String(column.count)), h("p.muted", sums || "–")),
    FOLDED.includes(status) && column.count ? button(isFolded ? `Show ${column.count}` : "Show the total only", toggle, { class: "link", "aria-expanded": String(!isFolded) }) : null,
    isFolded ? null : h("ul", cards),
  );
}

function drawCard(card, isNew) {
  const menu = card.next.length
    ? h("details.menu", h("summary", { "aria-label": `Move ${card.customer}` }, "Move"), h("div", card.next.map((to) => button(NAMES[to] || to, () => move(card, to)))))
    : null;
  return h(
    "li",
    { class: isNew ? "card new" : "card", "data-id": card.id },
    h("div", h("a", { href: address({ section: "customers", id: card.customer }), title: card.customer }, card.customer_name || card.customer), h("strong", card.mrr ? money(card.mrr, card.currency) : "–")),
    h("p", { title: card.reason || "" }, (card.reason || "no reason given").replace(/_/g, " ")),
    h(".muted", h("span", `for ${age(card.since)}`), menu),
  );
}

async function move(card, to) {
  try {
    await call("POST", `/churn-events/${card.id}/move`, { to });
    toast(`${card.customer}: ${NAMES[to] || to}`);
  } catch (error) {
    failed(error);
  }
  document.activeElement?.blur();
  await update();
}

async function example() {
  const body = { customer_email: "jane@example.com", event_type: "cancellation", cancel_reason: "too_expensive", mrr: 4999, currency: "usd", plan_name: "Pro" };
  const headers = { "content-type": "application/json", "x-api-key": key };
  await fetch("/api/v1/projects/my-project/churn-events", { method: "POST", headers, body: JSON.stringify(body) });
  await update();
}
