// What the page shows is in its address, so that a reload, a link and the Back button work.
//
// section: inbox, overview, customers, board, charts, faults, webhooks, connect. view: events or requests. q: the search.
// id: the selected event, request, customer or churn event. tab: of the detail. key: one inbox, or "" for all.
// cols: properties with a column of their own. paused: "1" while the stream is held.

const DEFAULTS = { section: "inbox", view: "events", q: "", id: "", tab: "overview", key: "", cols: "", paused: "" };
const NAMES = { section: "s", view: "v", q: "q", id: "id", tab: "tab", key: "key", cols: "cols", paused: "paused" };

const listeners = [];

export const state = read();

function read() {
  const query = new URLSearchParams(location.search);
  return Object.fromEntries(Object.entries(DEFAULTS).map(([name, value]) => [name, query.get(NAMES[name]) ?? value]));
}

/** The address of this state with `changes`. */
export function address(changes = {}) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries({ ...state, ...changes })) if (value !== DEFAULTS[name]) query.set(NAMES[name], value);
  const text = query.toString();
  return text ? `/?${text}` : "/";
}

/** Go to another state; `replace` leaves nothing for the Back button. */
export function go(changes, { replace = false } = {}) {
  const target = address(changes);
  if (target === address()) return;
  history[replace ? "replaceState" : "pushState"](null, "", target);
  change({ ...state, ...changes });
}

/** Call `listener(before)` after each change of the state. */
export function onChange(listener) {
  listeners.push(listener);
}

function change(next) {
  const before = { ...state };
  Object.assign(state, next);
  for (const listener of listeners) listener(before);
}

addEventListener("popstate", () => change(read()));
