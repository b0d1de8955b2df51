// JSON as a tree that folds, and what can be done with a value in it.

import { button, copy, h } from "./dom.js";

const OPEN_DEPTH = 3; // deeper objects start folded, and so do long arrays
const LONG_ARRAY = 20;

/** The tree of a value. `actions(path, value)` gives buttons for one value: [[label, onclick]]. */
export function tree(value, actions = () => []) {
  return h(".json", node(null, value, [], actions));
}

function node(name, value, path, actions) {
  const key = name === null ? null : [h("span.key", typeof name === "number" ? String(name) : JSON.stringify(name)), ": "];
  if (value === null || typeof value !== "object") {
    const kind = value === null ? "null" : typeof value;
    return h(".leaf", key, h("span", { class: `value ${kind}`, tabindex: "0", role: "group", "aria-label": `${path.join(".") || "value"}: ${value}` }, JSON.stringify(value)), tools(path, value, actions));
  }
  const isList = Array.isArray(value);
  const entries = isList ? value.map((each, index) => [index, each]) : Object.entries(value);
  const [open, close] = isList ? "[]" : "{}";
  if (!entries.length) return h(".leaf", key, h("span.punctuation", open + close));
  const isOpen = path.length < OPEN_DEPTH && !(isList && entries.length > LONG_ARRAY);
  const inside = () => h(".inside", entries.map(([each, item]) => node(each, item, [...path, each], actions)));
  const count = isList ? `${entries.length} items` : `${entries.length} keys`;
  const details = h("details", { open: isOpen }, h("summary", key, h("span.punctuation", open), h("span.count", ` ${count} ${close}`)));
  // A folded part is made when it is opened: a huge event costs nothing until then.
  if (isOpen) details.append(inside());
  else details.addEventListener("toggle", () => details.append(inside()), { once: true });
  details.append(h("span.punctuation.end", close));
  return details;
}

function tools(path, value, actions) {
  return h("span.tools",
    [...actions(path, value), ["Copy value", () => copy(typeof value === "string" ? value : JSON.stringify(value))], ["Copy path", () => copy(path.join("."))]].map(([label, act]) =>
      button(label, act, { class: "link" }),
    ),
  );
}
