// Building blocks: elements, icons, marks, copying, and how times, sizes and money are written.
//
// The rule of this page: what a customer sent is only ever set as text. `h` makes text nodes of strings, and no
// module uses innerHTML, so an event named "<img onerror=...>" is shown and not run.

const SVG = "http://www.w3.org/2000/svg";

/**
 * An element: h("p.muted", {title: "all of it"}, "some", h("b", "more")). A "div" may be left out: h(".page").
 * Of the properties, `on...` are listeners and `css` sets styles; the rest are attributes, left out where null or false.
 */
export function h(selector, ...rest) {
  const [name, ...classes] = selector.split(".");
  const element = document.createElement(name || "div");
  if (classes.length) element.className = classes.join(" ");
  if (name === "button") element.type = "button";
  return fill(element, rest);
}

/** The same for SVG. */
export const svg = (name, ...rest) => fill(document.createElementNS(SVG, name), rest);

/** Give an element new content. */
export function put(element, ...content) {
  element.replaceChildren();
  return fill(element, content);
}

function fill(element, rest) {
  const properties = rest[0]?.constructor === Object ? rest.shift() : {};
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "css") for (const [key, text] of Object.entries(value)) element.style.setProperty(key, text);
    else if (name === "value" || name === "checked") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...rest.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/**
 * Resolves once no button of the pointer is down. What is drawn anew may be what somebody presses, and a click counts only where
 * it began. Two seconds at most, for a browser may miss the end of a drag.
 */
export async function released() {
  const start = performance.now();
  while (document.querySelector(":active") && performance.now() < start + 2000) await new Promise(requestAnimationFrame);
}

export const $ = (id) => document.getElementById(id);

export function icon(name) {
  return svg("svg", { class: "icon", "aria-hidden": "true" }, svg("use", { href: `#i-${name}` }));
}

/** The mark of a state: "ok", "amber", "red", "grey" or "blue", with its meaning in words. */
export function mark(state, meaning) {
  return svg("svg", { class: `sign ${state}`, role: "img", "aria-label": meaning }, svg("use", { href: `#m-${state}` }));
}

export function button(label, onclick, props = {}) {
  const { icon: symbol, ...rest } = props;
  return h("button", { onclick, ...rest }, symbol && icon(symbol), h("span", label));
}

/** A button that is only an icon; its label is read aloud and shown on hover. */
export function iconButton(symbol, label, onclick, props = {}) {
  return h("button.plain", { "aria-label": label, title: label, onclick, ...props }, icon(symbol));
}

export async function copy(text, what = "Copied") {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Without permission, or on a plain-HTTP address of the LAN, the old way still works.
    const area = h("textarea", { class: "hidden", value: text });
    (document.querySelector("dialog[open]") || document.body).append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  toast(what);
}

/** Say something at the foot of the page for some seconds; `undo` adds a button. */
export function toast(text, { undo = null, seconds = 2.5, bad = false } = {}) {
  const close = () => {
    clearTimeout(timer);
    box.remove();
  };
  const box = h("div", { class: bad ? "toast bad" : "toast", role: bad ? "alert" : "status" }, text);
  if (undo) box.append(button("Undo", () => (close(), undo()), { class: "link" }));
  const timer = setTimeout(close, seconds * 1000);
  $("toasts").replaceChildren(box);
}

/** A block of code with a button that copies it. */
export function snippet(text, label) {
  const code = h("pre", { tabindex: "0", "aria-label": label }, h("code", text));
  return h(".snippet", code, button("Copy", () => copy(text, `${label} copied`), { icon: "copy" }));
}

/** Tabs in which arrow keys move; `tabs` is [[id, label, () => content]]. */
export function tabs(list, current, onChange, label) {
  const panel = h(".panel", { role: "tabpanel", tabindex: "0" });
  const heads = list.map(([id, name]) =>
    h("button", { role: "tab", id: `tab-${id}`, "data-tab": id, onclick: () => show(id, true) }, name),
  );
  const show = (id, isChosen) => {
    const index = Math.max(0, list.findIndex((each) => each[0] === id));
    heads.forEach((head, at) => {
      head.setAttribute("aria-selected", String(at === index));
      head.tabIndex = at === index ? 0 : -1;
    });
    panel.setAttribute("aria-labelledby", heads[index].id);
    put(panel, list[index][2]());
    if (isChosen) onChange(list[index][0]);
  };
  const bar = h(".tabs", { role: "tablist", "aria-label": label }, heads);
  bar.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const at = heads.findIndex((head) => head.tabIndex === 0);
    const next = heads[(at + step + heads.length) % heads.length];
    next.focus();
    show(next.dataset.tab, true);
  });
  show(current, false);
  return [bar, panel];
}

// How things are written

const pad = (number, width = 2) => String(number).padStart(width, "0");

/** Local time of day with milliseconds; a day other than today comes first. */
export function clock(iso) {
  const at = new Date(iso);
  if (Number.isNaN(at.getTime())) return String(iso);
  const time = `${pad(at.getHours())}:${pad(at.getMinutes())}:${pad(at.getSeconds())}.${pad(at.getMilliseconds(), 3)}`;
  return at.toDateString() === new Date().toDateString() ? time : `${at.getFullYear()}-${pad(at.getMonth() + 1)}-${pad(at.getDate())} ${time.slice(0, 5)}`;
}

/** A <time> that shows local time, and ISO UTC on hover. */
export function when(iso, text = clock(iso)) {
  return h("time", { datetime: iso, title: iso }, text);
}

export function age(iso) {
  return duration(Math.max(0, (Date.now() - Date.parse(iso)) / 1000));
}

/** Seconds in the largest unit that fits. */
export function duration(seconds) {
  if (!Number.isFinite(seconds)) return "–";
  if (seconds < 0.9995) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  const [size, unit] = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]].find(([each]) => seconds >= each);
  return `${Math.floor(seconds / size)} ${unit}`;
}

export function bytes(count) {
  if (count < 1000) return `${count} B`;
  return count < 1e6 ? `${(count / 1000).toFixed(1)} kB` : `${(count / 1e6).toFixed(1)} MB`;
}

export const number = (value) => Number(value || 0).toLocaleString("en-US");

export const plural = (count, one, many = `${one}s`) => `${number(count)} ${count === 1 ? one : many}`;

/** Cents as money: 4999, "usd" is $49.99. */
export function money(cents, currency = "usd") {
  const code = /^[A-Za-z]{3}$/.test(currency) ? currency.toUpperCase() : "USD";
  const whole = cents % 100 === 0;
  return new Intl.NumberFormat("en-US", { style: "currency", currency: code, minimumFractionDigits: whole ? 0 : 2, maximumFractionDigits: 2 }).format(cents / 100);
}

/** A long text cut in the middle, where names differ least. */
export function middle(text, length) {
  const value = String(text);
  if (value.length <= length) return value;
  const tail = Math.floor((length - 1) / 2);
  return `${value.slice(0, length - 1 - tail)}…${value.slice(-tail)}`;
}

/** A hue from a name: the same name always has the same. */
export function hue(name) {
  let hash = 0;
  for (const char of String(name)) hash = (hash * 31 + char.codePointAt(0)) >>> 0;
  return hash % 360;
}

/** A value of any kind on one line. */
export function brief(value) {
  return typeof value === "string" ? value : JSON.stringify(value);
}

/** A term of the search language, quoted where it has to be: term("event", "a b") is event:"a b". */
export function term(field, value) {
  const text = String(value);
  return `${field}:${/^[\w@.+\-/]+$/.test(text) ? text : `"${text.replace(/(["\\])/g, "\\$1")}"`}`;
}

/** Values kept in this browser; a browser that keeps none forgets them. */
export const kept = {
  get(name, otherwise) {
    try {
      const text = localStorage.getItem(`windback.${name}`);
      return text === null ? otherwise : JSON.parse(text);
    } catch {
      return otherwise;
    }
  },
  set(name, value) {
    try {
      localStorage.setItem(`windback.${name}`, JSON.stringify(value));
    } catch {
      // Nothing to do: the choice holds until the page is closed.
    }
  },
};
