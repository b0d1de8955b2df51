// The inbox: the received events, newest first, and one of them in detail.

import { call, get } from "./api.js";
import { $, age, brief, button, h, hue, icon, iconButton, kept, mark, middle, number, plural, put, term, toast, when } from "./dom.js";
import { editor, eventDetail, failed, requestDetail, sent, stateOf, stateOfRequest, took } from "./detail.js";
import { failNext } from "./faults.js";
import { List } from "./list.js";
import { snippets } from "./connect.js";
import { address, go, state } from "./url.js";

const TEST_EVENT = { event: "feature_used", customer_email: "jane@example.com", properties: { feature: "exports", plan: "pro" } };

const MOST_REQUESTS = 1000;

const ui = {};
let counts = {};
let unannounced = { events: 0, refused: 0 };
let clearing = null; // does it now

const isRequests = () => state.view === "requests";

/** Make the section; it is kept, and put away while another one is shown. */
export function build() {
  ui.total = h("p.total", { id: "total" });
  ui.view = h(".segments", { role: "group", "aria-label": "What to list" }, ["events", "requests"].map((view) => h("button", { "data-view": view, onclick: () => go({ view, id: "", tab: "overview" }) }, view === "events" ? "Events" : "Requests")));
  ui.pause = h("button", { class: "tool", onclick: togglePause });
  ui.dense = iconButton("rows", "Dense rows", () => (kept.set("dense", !kept.get("dense", false)), dense(), ui.list.redraw()));
  ui.clear = iconButton("trash", "Clear", askClear);
  ui.confirm = h(".confirm", { hidden: true });
  ui.bar = h(".bar", ui.view, ui.total, h("span.grow"), ui.confirm, ui.pause, ui.dense, ui.clear);
  ui.empty = h(".empty-place");
  ui.listPlace = h(".list-place");
  ui.left = h("section.left", { "aria-label": "List" }, h("h1.hidden", "Inbox"), ui.bar, ui.listPlace, ui.empty);
  ui.detail = h("section.detail", { "aria-label": "Detail", hidden: true });
  ui.splitter = splitter();
  ui.root = h(".inbox", ui.left, ui.splitter, ui.detail);
  ui.root.style.setProperty("--left", `${kept.get("split", 46)}%`);
  return ui.root;
}

function splitter() {
  const element = h(".splitter", { role: "separator", tabindex: "0", "aria-orientation": "vertical", "aria-label": "Width of the list", "aria-valuemin": "25", "aria-valuemax": "75", "aria-valuenow": String(kept.get("split", 46)), hidden: true });
  const set = (percent) => {
    const value = Math.round(Math.min(75, Math.max(25, percent)));
    ui.root.style.setProperty("--left", `${value}%`);
    element.setAttribute("aria-valuenow", String(value));
    kept.set("split", value);
  };
  element.addEventListener("pointerdown", (event) => element.setPointerCapture(event.pointerId));
  element.addEventListener("pointermove", (event) => {
    if (!element.hasPointerCapture(event.pointerId)) return;
    const box = ui.root.getBoundingClientRect();
    set(((event.clientX - box.left) / box.width) * 100);
  });
  element.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -2, ArrowRight: 2 }[event.key];
    if (step) set(Number(element.getAttribute("aria-valuenow")) + step);
  });
  return element;
}

function dense() {
  const is = kept.get("dense", false);
  ui.dense.setAttribute("aria-pressed", String(is));
  ui.root.classList.toggle("dense", is);
  // Fingers need more room than a pointer.
  if (ui.list) ui.list.rowHeight = matchMedia("(max-width: 759px)").matches ? 44 : is ? 26 : 32;
}

/** A list of what is to be seen now: events or requests, of this search and this key. */
function makeList() {
  const requests = isRequests();
  const query = { q: state.q, key: state.key };
  const columns = state.cols ? state.cols.split(",") : [];
  const list = new List({
    label: requests ? "Requests" : "Events",
    load: async (range) => {
      if (!requests) return get("/events", { ...query, ...range, order: "desc" });
      // The newest are enough: a search finds older ones.
      const { data } = await get("/requests", { ...query, limit: MOST_REQUESTS });
      return { data: data.reverse(), total: data.length };
    },
    cells: requests ? requestCells : (event) => eventCells(event, columns),
    decorate: (row, item) => {
      if (requests) return;
      row.style.setProperty("--hue", String(hue(item.event)));
      row.classList.toggle("ignored", item.status === "ignored");
    },
    open: (item, { replace = false }) => go({ id: String(item.id) }, { replace }),
  });
  const heads = requests
    ? [["mark", ""], ["time", "Time"], ["event", "Request"], ["customer", "Answer"], ["rest", "Sent by"], ["end", "Took"]]
    : [["mark", ""], ["time", "Time"], ["event", "Event"], ["customer", "Customer"], ...columns.map((name) => ["own", name]), ["rest", "Properties"], ["end", "Age"]];
  list.head.append(...heads.map(([kind, name]) => h("th", { scope: "col", role: "columnheader", class: kind }, name || h("span.hidden", "State"), kind === "own" ? iconButton("close", `Remove the column ${name}`, () => go({ cols: columns.filter((each) => each !== name).join(",") })) : null)));
  list.onCount = showTotal;
  list.paused = Boolean(state.paused);
  return list;
}

const cell = (kind, ...content) => h("td", { class: kind, role: "gridcell" }, content);

function eventCells(event, columns) {
  const properties = Object.entries(event.properties).filter(([name, value]) => value !== null && typeof value !== "object" && !columns.includes(name)).slice(0, 3);
  const customer = event.customer_email || event.customer_id || "–";
  return [
    cell("mark", mark(...stateOf(event))),
    cell("time", when(event.received_at)),
    cell("event", h("span", { title: event.event }, middle(event.event, 26))),
    cell("customer", h("span", { title: customer }, middle(customer, 28))),
    ...columns.map((name) => cell("own", event.properties[name] === undefined ? "" : middle(brief(event.properties[name]), 24))),
    cell("rest", properties.map(([name, value]) => h("span.pair", h("span.name", middle(name, 18)), " ", h("span", middle(brief(value), 28))))),
    cell("end", event.attempt > 1 ? h("span.badge.amber", `attempt ${event.attempt}`) : null, event.status === "ignored" ? h("span.badge.grey", "ignored") : null, h("span.age", { "data-at": event.received_at }, age(event.received_at))),
  ];
}

function requestCells(request) {
  const [colour, words] = stateOfRequest(request);
  return [
    cell("mark", mark(colour, words)),
    cell("time", when(request.received_at)),
    cell("event", h("span", { title: request.path }, `${request.method} ${middle(request.path.replace("/api/v1", ""), 30)}`)),
    cell("customer", h("span", { class: `word ${colour}` }, request.status === null ? words : `${request.status}`), request.fault ? h("span.badge.amber", request.fault) : null),
    cell("rest", request.events ? h("span.pair", plural(request.events, "event")) : null, h("span.pair", (request.headers["user-agent"] || "").split(" ")[0])),
    cell("end", request.attempt > 1 ? h("span.badge.amber", `attempt ${request.attempt}`) : null, took(request)),
  ];
}

/** Show the state of the address; `before` is the one that was shown, or null at first. */
export async function update(before) {
  const changed = (...names) => !before || names.some((name) => before[name] !== state[name]);
  const verb = state.paused ? "Resume" : "Pause";
  put(ui.pause, { "aria-label": verb }, icon(state.paused ? "play" : "pause"), h("span", verb));
  ui.clear.hidden = isRequests();
  for (const each of ui.view.children) each.setAttribute("aria-pressed", String(each.dataset.view === state.view));
  if (changed("view", "q", "key", "cols") || !ui.list) await relist();
  if (before && before.paused && !state.paused) ui.list.release();
  ui.list.paused = Boolean(state.paused);
  ui.list.schedule();
  if (changed("id", "view", "tab") || !before) await showDetail(before);
}

async function relist() {
  ui.list = makeList();
  dense();
  ui.listPlace.replaceChildren(ui.list.element);
  ui.problem = null;
  try {
    await ui.list.reset();
  } catch (error) {
    if (error.status !== 400) return failed(error);
    ui.problem = error.message;
    ui.list.ready = true;
  }
  $("q").toggleAttribute("aria-invalid", Boolean(ui.problem));
  ui.list.select(state.id ? idOf(state.id) : null);
  showTotal();
}

const idOf = (text) => Number(text.replace("req_", "")); // a link may name a request by its label

function showTotal() {
  const list = ui.list;
  const noun = isRequests() ? "request" : "event";
  const stored = counts.stored ?? Infinity;
  const all = list.length + list.heldCount;
  const shown = isRequests() ? all : Math.min(all, stored);
  const parts = [state.q || state.key ? `${number(shown)} of ${number(isRequests() ? counts.requests : stored)}` : plural(shown, noun)];
  if (!isRequests() && counts.evicted) parts.push(`${number(counts.evicted)} older dropped`);
  ui.total.textContent = parts.join(" · ");
  const isEmpty = list.ready && !shown;
  ui.listPlace.hidden = isEmpty;
  if (isEmpty !== !ui.empty.hidden || (isEmpty && ui.emptyFor !== emptyKey())) showEmpty(isEmpty);
}

// What the words of an empty list depend on.
const emptyKey = () => `${address()} ${Boolean(counts.requests)}`;

function showEmpty(isEmpty) {
  ui.empty.hidden = !isEmpty;
  ui.emptyFor = isEmpty ? emptyKey() : null;
  if (!isEmpty) return ui.empty.replaceChildren();
  if (state.q || state.key) return ui.empty.replaceChildren(noMatch());
  if (isRequests()) return ui.empty.replaceChildren(h(".empty", h("h1", "No request yet"), h("p", `Each HTTP attempt at ${location.host} will be kept here, with its headers, its bytes and its answer.`)));
  return put(
    ui.empty,
    h(".empty",
      h("h1", "Nothing has arrived yet"),
      h("p", "Listening on ", h("code", location.host), ". Point your application at it, and each event shows here the moment it comes."),
      counts.requests ? h("p.note.red", h("span", `${plural(counts.requests, "request")} came and brought no event: `, h("a", { href: address({ view: "requests" }) }, "see the answers"), ".")) : null,
      snippets(),
      h("p.or", button("Send a test event", () => send(TEST_EVENT).catch(failed), { class: "primary" })),
    ),
  );
}

function noMatch() {
  const terms = state.q.match(/-?(?:[\w.]+[:<>=]+)?(?:"(?:[^"\\]|\\.)*"|\S+)/g) || [];
  return h(".empty",
    h("h1", ui.problem ? "This search has a mistake" : "No match"),
    ui.problem ? h("p.problem", { role: "alert" }, ui.problem) : h("p", "Nothing that is kept matches", state.key ? ` with the key ${state.key}` : "", ". What comes and matches will show here."),
    h("p.terms", terms.map((each, index) => button(each, () => go({ q: terms.filter((_, at) => at !== index).join(" ") }), { icon: "close", "aria-label": `Remove ${each}` })), state.key ? button("All keys", () => go({ key: "" })) : null, button("Remove all", () => go({ q: "", key: "" }), { class: "link" })),
  );
}

// Detail

let shownDetail = 0;

async function showDetail(before) {
  const turn = ++shownDetail;
  const had = before?.id;
  ui.list.select(state.id ? idOf(state.id) : null);
  ui.root.classList.toggle("open", Boolean(state.id));
  ui.detail.hidden = ui.splitter.hidden = !state.id;
  if (!state.id) {
    ui.detail.replaceChildren();
    // Back to the row that was open.
    if (had && state.section === "inbox") requestAnimationFrame(() => ui.list.focus());
    return;
  }
  const same = before && before.id === state.id && before.view === state.view;
  if (same) return;
  let content;
  try {
    content = isRequests() ? await loadRequest() : await loadEvent();
  } catch (error) {
    content = error.status === 404 ? gone(error.body) : [h("p.problem", error.message)];
  }
  if (turn === shownDetail) put(ui.detail, ...content);
}

async function loadEvent() {
  const { data: event, request: short } = await get(`/events/${state.id}`);
  const customer = event.customer_email;
  const [request, history] = await Promise.all([
    short && get(`/requests/${short.id}`).then((full) => full.data, () => null),
    customer ? get("/events", { q: term("email", customer), limit: 20, order: "desc" }).then((page) => page.data, () => []) : [],
  ]);
  ui.current = event;
  return eventDetail({ event, request, history, actions });
}

async function loadRequest() {
  const { data: request } = await get(`/requests/${state.id}`);
  ui.current = null;
  const [first, last] = request.event_ids || [0, 0];
  const events = first ? (await get("/events", { after: first - 1, before: last + 1 })).data : [];
  return requestDetail({ request, events, actions });
}

function gone(body) {
  const neighbours = body.neighbours || {};
  const neighbour = (id, words) => (id ? h("a", { href: address({ id: String(id) }) }, words) : null);
  return [h(".empty", h("h1", `${isRequests() ? "Request" : "Event"} ${state.id} is not here any more`), h("p", "The server keeps the newest ones; this one was dropped or cleared."), h("p.terms", neighbour(neighbours.newer, "The next newer one"), neighbour(neighbours.older, "The next older one"), button("Close", () => go({ id: "" }))))];
}

// What can be done

async function send(event, inbox) {
  const { data, request } = await call("POST", "/send", { events: [event], inbox });
  if (!data.length) throw new Error(`The server answered ${request.status}, and nothing was stored.`);
  toast("Sent");
  ui.list.add(data);
  ui.list.release();
  go({ section: "inbox", view: "events", id: String(data[0].id), tab: "overview" });
}

export const actions = {
  search(text) {
    const terms = state.q ? `${state.q} ${text}` : text;
    go({ section: "inbox", view: "events", q: terms });
  },
  addColumn(name) {
    const columns = state.cols ? state.cols.split(",") : [];
    if (!columns.includes(name) && !name.includes(",")) go({ cols: [...columns, name].join(",") });
  },
  replay(event) {
    editor(event, { title: `Replay ${middle(event.event, 40)}`, send: (changed) => send(changed, event.inbox) });
  },
  failLike: failNext,
  async current() {
    if (isRequests()) return null;
    if (state.id) return ui.current;
    const row = ui.list.active === null ? -1 : ui.list.rowOf(ui.list.active);
    return row < 0 ? null : ui.list.at(row);
  },
  json: (event) => JSON.stringify(sent(event), null, 2),
  newest: () => ui.list.release().then(() => ui.list.moveTo(0)),
  oldest: () => ui.list.moveTo(ui.list.length - 1),
  move: (step) => ui.list.move(step),
  exclude: (event) => actions.search(`-${term("event", event.event)}`),
};

export function togglePause() {
  go({ paused: state.paused ? "" : "1" }, { replace: true });
}

export const waiting = () => ui.list?.heldCount ?? 0;

function askClear() {
  const count = ui.list.length + ui.list.heldCount;
  if (!count) return;
  const done = () => {
    ui.confirm.hidden = true;
    ui.clear.focus();
  };
  ui.confirm.hidden = false;
  ui.confirm.replaceChildren(h("span", `Clear ${plural(count, "event")}?`), button("Clear", () => (done(), clear(count)), { class: "danger" }), button("Keep", done));
  ui.confirm.querySelector("button").focus();
}

/** Clear the list immediately, and the server after 8 s without an undo. */
function clear(count) {
  clearing?.();
  const upTo = ui.list.newest; // later events stay
  const query = new URLSearchParams({ q: `${state.q} id<=${upTo}`.trim(), key: state.key });
  const forget = () => {
    clearTimeout(timer);
    removeEventListener("pagehide", act);
    clearing = null;
  };
  const act = () => {
    forget();
    fetch(`/_dev/events?${query}`, { method: "DELETE", keepalive: true });
  };
  const timer = setTimeout(act, 8000);
  clearing = act;
  addEventListener("pagehide", act);
  go({ id: "" });
  ui.list.clear();
  ui.list.newest = upTo;
  ui.list.ready = true;
  ui.list.draw();
  toast(`Cleared ${plural(count, "event")}`, { seconds: 8, undo: () => (forget(), relist()) });
}

// What the stream brings

let catching = null;

/** New events, and how many before them are left out. What matches a search is the server's business. */
export function onEvents(events, skipped) {
  unannounced.events += events.length + skipped;
  if (!ui.list || isRequests()) return;
  if (state.q || state.key) catchUp();
  else ui.list.add(events, skipped);
}

export function onRequests(requests) {
  unannounced.refused += requests.filter((request) => request.status >= 400).length;
  if (!ui.list || !isRequests()) return;
  if (state.q || state.key) return catchUp();
  // They come when they are over, so not always in the order of their ids.
  ui.list.add(requests.sort((one, other) => one.id - other.id));
}

export function onCounts(news) {
  const before = counts;
  counts = { ...counts, ...news };
  if (!ui.list?.ready || isRequests() || clearing) return;
  if (!state.q && !state.key && counts.stored !== undefined) {
    if (counts.evicted > (before.evicted ?? 0)) ui.list.trim(counts.stored);
  }
  showTotal();
}

/** Load again: events were deleted, or it is another server. */
export const reload = () => ui.list && !clearing && ui.list.reset().then(showTotal, failed);

/** Ask for what is newer than all that is known, at most five times a second. */
export function catchUp() {
  catching ??= setTimeout(async () => {
    catching = null;
    const list = ui.list;
    if (!list?.ready || clearing) return;
    const path = isRequests() ? "/requests" : "/events";
    const page = await get(path, { q: state.q, key: state.key, after: list.newest, order: "asc", limit: 1000 }).catch(() => null);
    if (!page || list !== ui.list) return;
    list.add(page.data);
    if (page.data.length === 1000) catchUp();
  }, 200);
}

/** For screen readers, at most every 10 s; silent while paused. */
export function announce() {
  const { events, refused } = unannounced;
  unannounced = { events: 0, refused: 0 };
  if ((events || refused) && !state.paused && state.section === "inbox") $("announcer").textContent = `${plural(events, "new event")}${refused ? `, ${refused} refused` : ""}`;
}

/** Rewrite the ages that are seen. */
export function tick() {
  for (const each of ui.root?.querySelectorAll(".age") ?? []) each.textContent = age(each.dataset.at);
}
