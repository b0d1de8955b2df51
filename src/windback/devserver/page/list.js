// A table of any length of which only the visible rows are in the document.
//
// Items are kept oldest first, so that what arrives is appended; the newest is drawn on top. Places that were never
// looked at are holes, and a page of them is fetched when they scroll into view. New items are inserted immediately only while
// nobody could lose their place; else they wait in `held`, and the pill counts them.

import { h, plural } from "./dom.js";

const PAGE = 100; // rows per request
const OVERSCAN = 8; // rows drawn above and below what is seen
const MOST_HELD = 5000; // more than that are only counted, and fetched when they are wanted
const MOST_KEPT = 20000; // items in memory; the farthest are forgotten and fetched again
const FLUSH_MS = 200;

/**
 * `load({offset, limit, before})` gives a page, newest first, as {data, total}. `cells(item)` makes the <td>s of a row,
 * `label` names the table. `open(item)` is called for a click or Enter.
 */
export class List {
  constructor({ label, load, cells, decorate, open }) {
    Object.assign(this, { load, cells, decorate, open });
    this.rowHeight = 32;
    this.head = h("tr", { role: "row", "aria-rowindex": "1" });
    this.body = h("tbody", { role: "rowgroup" });
    this.table = h("table", { role: "grid", "aria-label": label, class: "list" }, h("thead", { role: "rowgroup" }, this.head), this.body);
    this.scroller = h(".scroller", { tabindex: "-1" }, this.table);
    this.pill = h("button", { class: "pill", hidden: true, onclick: () => this.release() });
    this.element = h(".listing", this.pill, this.scroller);
    this.spacers = [0, 1].map(() => h("tr.spacer", { "aria-hidden": "true" }, h("td")));
    this.drawn = new Map(); // id -> {row, item}
    this.most = Infinity;
    this.hovered = this.paused = false;
    this.selected = this.active = null;
    this.onCount = () => {};
    this.generation = 0;
    this.clear();
    this.scroller.addEventListener("scroll", () => this.schedule(), { passive: true });
    // A touch leaves no pointer behind, so only a mouse holds the rows.
    this.body.addEventListener("pointerenter", (event) => (this.hovered = event.pointerType === "mouse"));
    this.body.addEventListener("pointerleave", () => (this.hovered = false));
    this.body.addEventListener("click", (event) => {
      const row = event.target.closest("tr[data-id]");
      if (row) this.pick(row.dataset.id);
    });
    this.body.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.schedule()).observe(this.scroller);
  }

  /** Forget everything. */
  clear() {
    this.generation += 1;
    this.items = [];
    this.held = [];
    this.heldCount = 0;
    this.newest = 0; // the highest id that is in the list or held
    this.top = 0; // the snapshot: how many items it had, and up to which id
    this.topId = 0;
    this.loading = new Set();
    this.body.replaceChildren(...this.spacers);
    this.drawn.clear();
    this.ready = false;
  }

  /** Fetch the first page again, and once more if that was requested during it; the old rows stay until then. */
  reset() {
    this.again = true;
    this.resetting ??= this.fetchAgain().finally(() => (this.resetting = this.early = null));
    return this.resetting;
  }

  async fetchAgain() {
    while (this.again) {
      this.again = false;
      await this.fetchFirst();
    }
  }

  async fetchFirst() {
    this.early = [];
    const page = await this.load({ offset: 0, limit: PAGE });
    const early = this.early;
    this.clear();
    this.items = new Array(page.total);
    this.top = page.total;
    page.data.forEach((item, index) => (this.items[page.total - 1 - index] = item));
    this.topId = this.newest = page.data.length ? page.data[0].id : 0;
    this.ready = true;
    this.scroller.scrollTop = 0;
    this.early = null;
    this.add(early); // what the stream brought while the page was on its way
    this.draw();
  }

  get length() {
    return this.items.length;
  }

  /** The item of a row; row 0 is the newest. */
  at(row) {
    return this.items[this.items.length - 1 - row];
  }

  rowOf(id) {
    for (let place = this.items.length - 1; place >= 0; place -= 1) if (this.items[place] && String(this.items[place].id) === String(id)) return this.items.length - 1 - place;
    return -1;
  }

  /** Take new items, oldest first; those that are known already are left out. `skipped` more came before them. */
  add(items, skipped = 0) {
    this.early?.push(...items);
    const fresh = items.filter((item) => item.id > this.newest);
    if (!fresh.length || !this.ready) return;
    this.newest = fresh[fresh.length - 1].id;
    this.heldCount += fresh.length + skipped;
    if (!skipped && this.heldCount <= MOST_HELD) this.held.push(...fresh);
    else this.held = [];
    this.schedule(FLUSH_MS);
  }

  /** Whether new rows would move something under somebody's eyes. */
  get holds() {
    return this.paused || this.hovered || this.selected !== null || this.scroller.scrollTop > 0 || this.body.contains(document.activeElement);
  }

  /** Show the held events, and go to the newest. */
  async release() {
    if (this.heldCount > this.held.length) await this.reset();
    else this.take(false);
    this.scroller.scrollTop = 0;
    this.draw();
  }

  take(animate) {
    this.fresh = animate && this.held.length <= 10 ? new Set(this.held.map((item) => item.id)) : new Set();
    for (const item of this.held) this.items.push(item);
    this.held = [];
    this.heldCount = 0;
  }

  /** The server has forgotten its oldest items and has `count` left; what somebody looks at stays for now. */
  trim(count) {
    this.most = count;
    this.schedule(FLUSH_MS);
  }

  dropForgotten() {
    const surplus = this.items.length - this.most;
    if (surplus <= 0) return;
    this.items.splice(0, surplus);
    this.top = Math.max(0, this.top - surplus);
  }

  schedule(delay = 0) {
    if (delay) this.timer ??= setTimeout(() => ((this.timer = null), this.schedule()), delay);
    else this.frame ??= requestAnimationFrame(() => ((this.frame = null), this.draw()));
  }

  draw() {
    if (!this.ready || !this.element.isConnected) return;
    if (this.heldCount && !this.holds) {
      if (this.heldCount > this.held.length) {
        this.release();
        return;
      }
      this.take(true);
    }
    if (!this.holds) this.dropForgotten();
    this.pill.hidden = !this.heldCount || this.paused;
    this.pill.textContent = `${plural(this.heldCount, "new", "new")} ↑`;
    const seen = this.scroller.clientHeight || 600;
    const height = this.rowHeight;
    const first = Math.max(0, Math.floor(this.scroller.scrollTop / height) - OVERSCAN);
    const end = Math.min(this.length, Math.ceil((this.scroller.scrollTop + seen) / height) + OVERSCAN, first + 140);
    const rows = [];
    const wanted = new Set();
    for (let row = first; row < end; row += 1) {
      const item = this.at(row);
      const key = item ? String(item.id) : `hole-${row}`;
      let entry = this.drawn.get(key);
      if (!entry) {
        entry = this.make(item);
        this.drawn.set(key, entry);
      }
      entry.row = entry.element;
      entry.element.setAttribute("aria-rowindex", String(row + 2));
      rows.push(entry.element);
      wanted.add(key);
    }
    for (const [key, entry] of this.drawn) {
      if (wanted.has(key)) continue;
      // Focus must not fall out of the list because its row scrolled away.
      if (entry.element.contains(document.activeElement)) this.scroller.focus({ preventScroll: true });
      entry.element.remove();
      this.drawn.delete(key);
    }
    this.spacers[0].firstChild.style.height = `${first * height}px`;
    this.spacers[1].firstChild.style.height = `${Math.max(0, this.length - end) * height}px`;
    let after = this.spacers[0];
    for (const row of rows) {
      if (after.nextSibling !== row) after.after(row);
      after = row;
    }
    this.table.setAttribute("aria-rowcount", String(this.length + 1));
    this.paint(rows);
    this.fetchHoles(first, end);
    this.onCount(this.length + this.heldCount);
  }

  make(item) {
    if (!item) return { element: h("tr.hole", { role: "row" }, h("td", { role: "gridcell" }, "…")) };
    const element = h("tr", { role: "row", "data-id": item.id, tabindex: "-1" }, this.cells(item));
    this.decorate?.(element, item);
    if (this.fresh?.has(item.id)) element.classList.add("new");
    return { element };
  }

  /** Selection, and the one row that the Tab key reaches. */
  paint(rows) {
    let reachable = false;
    for (const row of rows) {
      const id = row.dataset.id;
      if (id === undefined) continue;
      row.setAttribute("aria-selected", String(id === String(this.selected)));
      row.tabIndex = id === String(this.active) ? 0 : -1;
      reachable ||= row.tabIndex === 0;
    }
    const first = rows.find((row) => row.dataset.id !== undefined);
    if (!reachable && first) first.tabIndex = 0;
  }

  async fetchHoles(first, end) {
    const offsets = new Set();
    for (let row = first; row < end; row += 1) {
      if (this.at(row)) continue;
      // Where the row was in the snapshot: later events are above it.
      const offset = row - (this.length - this.top);
      if (offset >= 0) offsets.add(Math.floor(offset / PAGE) * PAGE);
    }
    for (const offset of offsets) {
      if (this.loading.has(offset)) continue;
      this.loading.add(offset);
      this.fetchPage(offset, this.generation);
    }
  }

  async fetchPage(offset, generation) {
    let page;
    try {
      page = await this.load({ offset, limit: PAGE, before: this.topId + 1 });
    } catch {
      setTimeout(() => this.loading.delete(offset), 1000); // the stream reports that the server is gone
      return;
    }
    if (generation !== this.generation) return;
    this.loading.delete(offset);
    page.data.forEach((item, index) => {
      const place = this.top - 1 - offset - index;
      if (place >= 0) this.items[place] = item;
    });
    // A short page in the middle means that the server has forgotten earlier events.
    const missing = this.top - offset - page.data.length;
    if (page.data.length < PAGE && missing > 0) {
      this.items.splice(0, missing);
      this.top -= missing;
    }
    this.forget();
    this.schedule();
  }

  forget() {
    const here = this.items.length - Math.floor(this.scroller.scrollTop / this.rowHeight);
    const reach = MOST_KEPT / 2;
    if (this.items.length <= MOST_KEPT) return;
    for (let place = 0; place < this.top; place += 1) if (this.items[place] && Math.abs(place - here) > reach) delete this.items[place];
  }

  // Moving about

  key(event) {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const page = Math.max(1, Math.floor(this.scroller.clientHeight / this.rowHeight) - 2);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page };
    if (event.key in steps) this.move(steps[event.key]);
    else if (event.key === "Home") this.moveTo(0);
    else if (event.key === "End") this.moveTo(this.length - 1);
    else if (event.key === "Enter" && event.target.closest("tr[data-id]")) this.pick(event.target.closest("tr").dataset.id);
    else return;
    event.preventDefault();
  }

  move(step) {
    const now = this.active === null ? -1 : this.rowOf(this.active);
    this.moveTo(now < 0 ? 0 : now + step, this.selected !== null);
  }

  /** Give a row the focus; `follow` opens it, too. */
  async moveTo(row, follow = false) {
    const target = Math.min(Math.max(0, row), this.length - 1);
    if (target < 0) return;
    this.show(target);
    for (let tries = 0; tries < 40 && !this.at(target); tries += 1) await new Promise((resolve) => setTimeout(resolve, 50));
    const item = this.at(target);
    if (!item) return;
    this.active = item.id;
    this.draw();
    this.focus();
    if (follow) this.open(item, { replace: true });
  }

  /** Scroll just so far that a row is seen. */
  show(row) {
    const top = row * this.rowHeight;
    const seen = this.scroller.clientHeight - this.head.offsetHeight;
    if (top < this.scroller.scrollTop) this.scroller.scrollTop = top;
    else if (top + this.rowHeight > this.scroller.scrollTop + seen) this.scroller.scrollTop = top + this.rowHeight - seen;
    this.draw();
  }

  focus() {
    this.drawn.get(String(this.active))?.element.focus({ preventScroll: true });
  }

  pick(id) {
    const row = this.rowOf(id);
    if (row < 0) return;
    this.active = this.at(row).id;
    this.open(this.at(row), {});
  }

  select(id) {
    this.selected = id || null;
    if (id) this.active = id;
    this.schedule();
  }

  redraw() {
    for (const { element } of this.drawn.values()) element.remove();
    this.drawn.clear();
    this.schedule();
  }
}
