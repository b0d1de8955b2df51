// The frame: sections, search, theme, keys, and the stream's messages handed to whom they concern.

import * as board from "./board.js";
import * as charts from "./charts.js";
import * as connect from "./connect.js";
import * as customers from "./customers.js";
import * as faults from "./faults.js";
import * as inbox from "./inbox.js";
import * as overview from "./overview.js";
import * as webhooks from "./webhooks.js";
import { get } from "./api.js";
import { $, button, clock, copy, h, icon, kept, number } from "./dom.js";
import { failed } from "./detail.js";
import { start } from "./stream.js";
import { address, go, onChange, state } from "./url.js";

const SECTIONS = { inbox: ["Inbox", inbox], overview: ["Overview", overview], customers: ["Customers", customers], board: ["Board", board], charts: ["Charts", charts], faults: ["Faults", faults], webhooks: ["Webhooks", webhooks], connect: ["Connect", connect] };
const THEMES = ["auto", "light", "dark"];
const KEYS = [
  ["/", "search"], ["j k", "next, previous row"], ["Enter", "open"], ["Esc", "back to the row"], ["g G", "newest, oldest"], ["p", "pause, resume"],
  ["r", "replay"], ["c", "copy JSON"], ["y", "copy link"], ["x", "exclude this name"], ["1 – 8", "sections"], ["?", "this list"],
];

const built = {};
let live = { state: "connecting" };
let errors = 0; // refused requests since the page was last looked at

// Sections

function show(before) {
  const [name, section] = SECTIONS[state.section] || SECTIONS.inbox;
  const element = (built[state.section] ??= section.build());
  if (!element.isConnected) {
    $("main").replaceChildren(element);
    if (before) $("main").focus({ preventScroll: true });
  }
  for (const link of $("rail").children) link.toggleAttribute("aria-current", link.dataset.section === state.section);
  for (const link of $("rail").querySelectorAll("[aria-current]")) link.setAttribute("aria-current", "page");
  if (typing === null && document.activeElement !== $("q")) $("q").value = state.q;
  $("project").value = state.key;
  document.body.dataset.section = state.section;
  Promise.resolve(section.update(before && before.section === state.section ? before : null)).catch(failed);
  title(name);
  showLive();
}

function title(name) {
  document.title = `${errors ? `(${errors}) ` : ""}${name} · windback dev`;
}

function buildRail() {
  const links = Object.entries(SECTIONS).map(([id, [name]], index) =>
    h("a", { href: address({ section: id, id: "" }), "data-section": id, title: `${name} (${index + 1})` }, icon(id), h("span", name), h("b.count", { id: `count-${id}` })),
  );
  $("rail").append(...links);
}

/** Links inside the page change the state and load nothing. */
document.addEventListener("click", (event) => {
  const link = event.target.closest("a[href]");
  if (!link || event.defaultPrevented || event.button || event.ctrlKey || event.metaKey || event.shiftKey) return;
  const url = new URL(link.href);
  if (url.origin !== location.origin || url.pathname !== "/" || url.hash) return;
  event.preventDefault();
  const section = link.dataset.section;
  if (section) return go({ section, id: "", tab: "overview" });
  history.pushState(null, "", link.href);
  return dispatchEvent(new PopStateEvent("popstate"));
});

// Search

let typing = null;

$("search").addEventListener("submit", (event) => {
  event.preventDefault();
  search();
});
$("q").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(search, 250);
});

function search() {
  clearTimeout(typing);
  typing = null;
  const q = $("q").value.trim();
  // One step back undoes a search, not a letter.
  go({ q, ...(["inbox", "customers"].includes(state.section) ? {} : { section: "inbox", id: "" }) }, { replace: Boolean(state.q && q) });
}

$("project").addEventListener("change", () => go({ key: $("project").value, id: "" }));

async function loadInboxes() {
  const { data } = await get("/inboxes").catch(() => ({ data: [] }));
  const options = [h("option", { value: "" }, "All keys"), ...data.map((each) => h("option", { value: each.inbox }, `${each.inbox} (${number(each.events)})`))];
  if (state.key && !data.some((each) => each.inbox === state.key)) options.push(h("option", { value: state.key }, state.key));
  $("project").replaceChildren(...options);
  $("project").value = state.key;
}

// Theme

function theme(choice) {
  document.documentElement.dataset.theme = choice;
  kept.set("theme", choice);
  $("theme").replaceChildren(icon(choice));
  for (const name of ["aria-label", "title"]) $("theme").setAttribute(name, `Theme: ${choice}`);
}

$("theme").addEventListener("click", () => theme(THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % 3]));

// Live state, always in words

function showLive() {
  const waiting = inbox.waiting();
  const [kind, text] =
    live.state === "live"
      ? state.paused
        ? ["paused", `Paused (${number(waiting)} waiting)`]
        : ["live", "Live"]
      : live.state === "lost"
        ? ["lost", `Reconnecting in ${live.seconds} s`]
        : live.state === "stopped"
          ? ["lost", `Server stopped${live.seen ? `, last seen ${clock(new Date(live.seen).toISOString()).slice(0, 8)}` : ""}`]
          : ["connecting", "Connecting"];
  const chip = $("live");
  chip.dataset.state = kind;
  if (chip.lastElementChild.textContent !== text) chip.lastElementChild.textContent = text;
  chip.title = state.paused ? "Resume (p)" : "Pause (p)";
  document.body.classList.toggle("stale", kind === "lost");
  const image = `/page/icon-${kind === "connecting" ? "live" : kind}.svg`;
  if ($("favicon").getAttribute("href") !== image) $("favicon").href = image;
}

$("live").addEventListener("click", () => inbox.togglePause());

// Stream

const stale = new Set(); // sections that have to be drawn again
let started = null;

function onMessage({ type, data }) {
  if (type === "live") {
    const was = live.state;
    live = data;
    if (data.state === "live" && was !== "live") {
      inbox.catchUp();
      loadInboxes();
    }
    showLive();
  } else if (type === "state") {
    if (started && started !== data.started_at) inbox.reload(); // another life of the server, which may know less
    started = data.started_at;
    faults.onFaults(data.faults);
    onCounts(data.counts);
  } else if (type === "events") {
    inbox.onEvents(data.data, data.skipped);
    onCounts(data.counts);
    stale.add("customers");
  } else if (type === "requests") {
    inbox.onRequests(data.data);
    if (document.hidden) errors += data.data.filter((each) => each.status >= 400).length;
    if (errors) title(SECTIONS[state.section][0]);
  } else if (type === "churn") {
    stale.add("board").add("customers");
  } else if (type === "cleared") {
    inbox.reload();
    onCounts(data.counts);
    stale.add("board").add("customers");
  }
}

let struck = 0;

function onCounts(counts) {
  if (counts.faults > struck) faults.reload().catch(() => {});
  struck = counts.faults;
  inbox.onCounts(counts);
  const texts = { inbox: counts.stored, board: counts.churn_events };
  for (const [section, count] of Object.entries(texts)) $(`count-${section}`).textContent = count ? number(count) : "";
}

setInterval(() => {
  stale.add("charts").add("overview").add("webhooks");
  const section = SECTIONS[state.section]?.[1];
  if (stale.delete(state.section) && !document.hidden && live.state === "live" && section.refresh) Promise.resolve(section.refresh()).catch(() => {});
  inbox.tick();
  showLive();
}, 1000);
setInterval(() => {
  inbox.announce();
  if (live.state === "live" && document.activeElement !== $("project")) loadInboxes();
}, 10_000);

document.addEventListener("visibilitychange", () => {
  if (document.hidden) return;
  errors = 0;
  title(SECTIONS[state.section][0]);
});

// Keys

function help() {
  const on = h("input", { type: "checkbox", checked: kept.get("keys", true), onchange: (event) => kept.set("keys", event.target.checked) });
  const dialog = h("dialog.help", { "aria-label": "Keyboard", onclose: () => dialog.remove() }, h("h2", "Keyboard"), h("dl", KEYS.map(([key, what]) => h("div", h("dt", key.split(" ").map((each) => (each === "–" ? each : h("kbd", each)))), h("dd", what)))), h("label.check", on, "Single keys are on"), h("form", { method: "dialog" }, h("button.primary", { type: "submit" }, "Close")));
  document.body.append(dialog);
  dialog.showModal();
}

$("keys").addEventListener("click", help);

document.addEventListener("keydown", async (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  const isInput = event.target.matches("input, textarea, select");
  if (event.key === "Escape") {
    if (isInput) return event.target.blur();
    if (state.id) go({ id: "" });
    return undefined;
  }
  if (isInput || !kept.get("keys", true)) return undefined;
  const act = SINGLE[event.key] || (/^[1-8]$/.test(event.key) && (() => go({ section: Object.keys(SECTIONS)[event.key - 1], id: "" })));
  if (!act || (INBOX_ONLY.includes(event.key) && state.section !== "inbox")) return undefined;
  event.preventDefault();
  return act();
});

const INBOX_ONLY = "jkgGrcx";
const withCurrent = (act) => async () => {
  const event = await inbox.actions.current();
  if (event) act(event);
};
const SINGLE = {
  "/": () => $("q").select(),
  "?": help,
  j: () => inbox.actions.move(1),
  k: () => inbox.actions.move(-1),
  g: () => inbox.actions.newest(),
  G: () => inbox.actions.oldest(),
  p: () => inbox.togglePause(),
  r: withCurrent((event) => inbox.actions.replay(event)),
  c: withCurrent((event) => copy(inbox.actions.json(event), "JSON copied")),
  x: withCurrent((event) => inbox.actions.exclude(event)),
  y: () => copy(location.href, "Link copied"),
};

theme(document.documentElement.dataset.theme);
buildRail();
onChange(show);
get("/health").then((health) => connect.useKey(health.key), () => {}).then(() => {
  show(null);
  start(onMessage);
});
