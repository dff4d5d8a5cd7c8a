/** The map: popular items as dots on a canvas, with marks for the history and recommendations. */

import { Camera } from "./camera.js";
import { byId, count, h, replace, titleOf } from "./dom.js";

const HIT_RADIUS = 14;
const NUMBERED_MARKS = 10;

/**
 * @typedef {object} Marks
 * @property {string[]} history - source ids.
 * @property {{letter: string, name: string, ids: string[]}[]} lists - recommendations, best first.
 */

/** The map and its keyboard, pointer, legend and table. */
export class ItemMap {
  /** @param {object} handlers - `add(item)`, `similar(item)`. */
  constructor(handlers) {
    this.handlers = handlers;
    this.canvas = byId("canvas");
    this.tip = byId("tip");
    this.camera = new Camera();
    this.items = new Map();
    this.marks = { history: [], lists: [] };
    this.pointed = null;
    this.selected = null;
    this.frame = 0;
    new ResizeObserver(() => this.draw()).observe(this.canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    this.#listen();
  }

  /** Replace all items; entries of `/v1/map`. */
  setItems(items) {
    this.items = new Map();
    this.camera.reset();
    this.select(null);
    this.addItems(items);
  }

  /** Add items. */
  addItems(items) {
    for (const item of items) this.items.set(String(item.item), item);
    this.camera.fit([...this.items.values()]);
    this.setMarks(this.marks);
  }

  /** Mark the history and the recommendations. */
  setMarks(marks) {
    this.marks = marks;
    this.#legend();
    this.#table();
    // A list that is replaced under the pointer reports no end of the hover.
    this.point(this.selected);
  }

  /** Highlight an item; null: remove the highlight. */
  point(id) {
    this.pointed = id;
    this.draw();
    const item = id === null ? null : this.items.get(id);
    this.tip.hidden = !item;
    if (!item) return;
    const [x, y] = this.camera.place(item, this.#size());
    this.tip.textContent = `${titleOf(item)} · ${count(item.popularity)}`;
    const { width } = this.#size();
    this.tip.classList.toggle("left", x > width / 2);
    this.tip.style.setProperty("left", `${Math.min(Math.max(x, 0), width)}px`);
    this.tip.style.setProperty("top", `${y}px`);
  }

  /** Select an item and describe it below the map; null: select nothing. */
  select(id) {
    this.selected = id;
    this.point(id);
    const item = id === null ? null : this.items.get(id);
    replace(byId("selected"), item ? this.#description(item) : null);
  }

  /** Draw in the next frame. */
  draw() {
    cancelAnimationFrame(this.frame);
    this.frame = requestAnimationFrame(() => this.#paint());
  }

  #description(item) {
    const button = (name, word, act) =>
      h("button", { type: "button", "data-control": `${name} map`, onclick: () => act(item) }, word);
    const roles = this.#roles(String(item.item));
    return [
      h(
        "p",
        {},
        h("strong", {}, titleOf(item)),
        ` · popularity ${count(item.popularity)}`,
        roles.length ? ` · ${roles.join(", ")}` : "",
      ),
      h(
        "div",
        { class: "buttons" },
        button("add", "Add", this.handlers.add),
        button("similar", "Similar", this.handlers.similar),
      ),
    ];
  }

  #roles(id) {
    const roles = this.marks.history.includes(id) ? ["in the history"] : [];
    for (const { name, ids } of this.marks.lists) {
      const position = ids.indexOf(id);
      if (position >= 0) roles.push(`rank ${position + 1} of ${name}`);
    }
    return roles;
  }

  #marked() {
    const ids = [...this.marks.history, ...this.marks.lists.flatMap((list) => list.ids)];
    return [...new Set(ids)].filter((id) => this.items.has(id));
  }

  #legend() {
    const entry = (kind, words) => h("li", {}, h("span", { class: `mark ${kind}` }), words);
    replace(
      byId("legend"),
      h(
        "ul",
        { "aria-label": "Marks" },
        entry("H", "history"),
        this.marks.lists.map(({ letter, name }) => entry(letter, name)),
        entry("other", "popular items; size shows popularity"),
      ),
    );
  }

  #table() {
    const head = ["Item", "Role", "Popularity", "x", "y"].map((name) => h("th", { scope: "col" }, name));
    const body = this.#marked().map((id) => {
      const item = this.items.get(id);
      return h(
        "tr",
        {},
        h("th", { scope: "row" }, titleOf(item)),
        h("td", {}, this.#roles(id).join(", ")),
        h("td", {}, count(item.popularity)),
        h("td", {}, item.x.toFixed(3)),
        h("td", {}, item.y.toFixed(3)),
      );
    });
    const table = h("table", {}, h("thead", {}, h("tr", {}, head)), h("tbody", {}, body));
    replace(byId("map-table"), body.length ? table : h("p", { class: "quiet" }, "No marked items."));
  }

  #size() {
    return { width: this.canvas.clientWidth, height: this.canvas.clientHeight };
  }

  #paint() {
    const { width, height } = this.#size();
    if (!width || !height) return;
    const ratio = devicePixelRatio || 1;
    if (this.canvas.width !== Math.round(width * ratio) || this.canvas.height !== Math.round(height * ratio)) {
      this.canvas.width = Math.round(width * ratio);
      this.canvas.height = Math.round(height * ratio);
    }
    const context = this.canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    const style = getComputedStyle(this.canvas);
    const colour = (name) => style.getPropertyValue(`--${name}`).trim();
    const place = (item) => this.camera.place(item, { width, height });
    const most = Math.max(1, ...[...this.items.values()].map((item) => item.popularity));
    context.fillStyle = colour("dot");
    for (const item of this.items.values()) {
      disc(context, place(item), 1.2 + 2.6 * Math.sqrt(item.popularity / most));
    }
    const mark = (id, shape) => this.items.has(id) && shape(place(this.items.get(id)));
    for (const { letter, ids } of [...this.marks.lists].reverse()) {
      context.fillStyle = colour(letter);
      context.strokeStyle = colour("paper");
      context.font = "600 9px system-ui, sans-serif";
      context.textAlign = "center";
      context.textBaseline = "middle";
      [...ids.entries()].reverse().forEach(([rank, id]) => {
        mark(id, (at) => {
          const isNumbered = rank < NUMBERED_MARKS;
          const radius = isNumbered ? 7.5 : 4;
          context.fillStyle = colour(letter);
          // An item in both lists is a circle on a larger triangle.
          const more = this.marks.lists[0].ids.includes(id) ? 6 : 2;
          if (letter === "A") disc(context, at, radius);
          else triangle(context, at, radius + more);
          context.stroke();
          if (!isNumbered) return;
          context.fillStyle = colour("on-mark");
          context.fillText(String(rank + 1), at[0], at[1] + (letter === "A" ? 0.5 : 2));
        });
      });
    }
    context.fillStyle = colour("ink");
    context.strokeStyle = colour("paper");
    for (const id of this.marks.history) mark(id, (at) => square(context, at, 9));
    context.lineWidth = 2;
    context.strokeStyle = colour("ring");
    for (const id of [this.selected, this.pointed]) mark(id, (at) => ring(context, at, 11));
    context.lineWidth = 1;
  }

  #nearest(x, y) {
    const size = this.#size();
    const marked = new Set(this.#marked());
    let best = null;
    let least = HIT_RADIUS;
    for (const [id, item] of this.items) {
      const [left, top] = this.camera.place(item, size);
      const distance = Math.hypot(left - x, top - y) - (marked.has(id) ? 5 : 0);
      if (distance < least) [best, least] = [id, distance];
    }
    return best;
  }

  /** Return the nearest item within 45 degrees of a direction. */
  #towards(dx, dy) {
    const size = this.#size();
    const inView = ([x, y]) => x >= 0 && y >= 0 && x <= size.width && y <= size.height;
    const from = this.items.get(this.selected);
    const ids = [...this.items.keys()];
    if (!from) return this.#marked()[0] ?? ids[0] ?? null;
    const [x, y] = this.camera.place(from, size);
    let best = null;
    let least = Infinity;
    for (const id of ids) {
      const at = this.camera.place(this.items.get(id), size);
      const along = (at[0] - x) * dx + (at[1] - y) * dy;
      const across = Math.abs((at[0] - x) * dy) + Math.abs((at[1] - y) * dx);
      if (id === this.selected || along <= 0 || across > along || !inView(at)) continue;
      if (along + across < least) [best, least] = [id, along + across];
    }
    return best ?? this.selected;
  }

  #listen() {
    const { canvas, camera } = this;
    let from = null;
    const at = (event) => {
      const box = canvas.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    canvas.addEventListener("pointerdown", (event) => {
      from = { last: at(event), moved: 0 };
    });
    canvas.addEventListener("pointermove", (event) => {
      const [x, y] = at(event);
      if (from && event.buttons) {
        const [dx, dy] = [x - from.last[0], y - from.last[1]];
        from.moved += Math.hypot(dx, dy);
        from.last = [x, y];
        if (from.moved > 4 && camera.scale > 1) {
          camera.move(dx, dy, this.#size());
          this.point(this.selected);
          return;
        }
      }
      this.point(this.#nearest(x, y) ?? this.selected);
    });
    canvas.addEventListener("pointerleave", () => this.point(this.selected));
    canvas.addEventListener("click", (event) => {
      if (!from || from.moved <= 4) this.select(this.#nearest(...at(event)));
      from = null;
    });
    canvas.addEventListener("keydown", (event) => this.#onKey(event));
    byId("zoom-in").addEventListener("click", () => this.zoom(1.5));
    byId("zoom-out").addEventListener("click", () => this.zoom(1 / 1.5));
    byId("zoom-reset").addEventListener("click", () => this.zoom(0));
  }

  /** Zoom by a factor, around the selected item; 0: show the whole map. */
  zoom(factor) {
    const item = this.items.get(this.selected);
    if (factor === 0) this.camera.reset();
    else this.camera.zoom(factor, item);
    this.canvas.style.setProperty("touch-action", this.camera.scale > 1 ? "none" : "pan-y");
    this.point(this.selected);
  }

  #onKey(event) {
    const step = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    const zoom = { "+": 1.5, "=": 1.5, "-": 1 / 1.5, 0: 0 }[event.key];
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (step) this.select(this.#towards(...step));
    else if (zoom !== undefined) this.zoom(zoom);
    else if (event.key === "Enter" && this.selected !== null) {
      this.handlers.add(this.items.get(this.selected));
    } else if (event.key === "Escape") this.select(null);
    else return;
    event.preventDefault();
  }
}

function disc(context, [x, y], radius) {
  context.beginPath();
  context.arc(x, y, radius, 0, 2 * Math.PI);
  context.fill();
}

function ring(context, [x, y], radius) {
  context.beginPath();
  context.arc(x, y, radius, 0, 2 * Math.PI);
  context.stroke();
}

function square(context, [x, y], side) {
  context.beginPath();
  context.rect(x - side / 2, y - side / 2, side, side);
  context.fill();
  context.stroke();
}

function triangle(context, [x, y], radius) {
  context.beginPath();
  context.moveTo(x, y - radius);
  context.lineTo(x + radius, y + radius * 0.75);
  context.lineTo(x - radius, y + radius * 0.75);
  context.closePath();
  context.fill();
}
