/** The search: a combobox over items and users. */

import { isAborted, request } from "./api.js";
import { alertOf, announce, count, h, plural, replace, titleOf } from "./dom.js";

const WAIT_MS = 120;
const MAX_ITEMS = 8;
const MAX_USERS = 5;
const MAX_USERS_BLANK = 3;

/**
 * Attach the search to its elements.
 *
 * @param {HTMLInputElement} input - the combobox.
 * @param {HTMLElement} list - its list box.
 * @param {object} handlers - `model()`: name of the model to search; `item(item)`, `user(id)`: called with
 *   the selection.
 */
export function search(input, list, handlers) {
  let timer = 0;
  let pending = new AbortController();
  let options = [];
  let active = -1;
  let isStale = false;

  function close() {
    clearTimeout(timer);
    isStale = false;
    pending.abort();
    list.hidden = true;
    options = [];
    activate(-1);
    input.setAttribute("aria-expanded", "false");
  }

  function activate(position) {
    active = position;
    options.forEach(({ element }, each) => {
      element.setAttribute("aria-selected", String(each === position));
    });
    if (position < 0) input.removeAttribute("aria-activedescendant");
    else {
      input.setAttribute("aria-activedescendant", options[position].element.id);
      options[position].element.scrollIntoView({ block: "nearest" });
    }
  }

  function choose(position) {
    const { select } = options[position];
    input.value = "";
    close();
    select();
  }

  function group(name, entries) {
    if (!entries.length) return null;
    const heading = h("div", { class: "group", id: `matches-${name}` }, name);
    const rows = entries.map(({ label, detail, select }) => {
      const position = options.length;
      const element = h(
        "div",
        {
          role: "option",
          id: `matches-${position}`,
          "aria-selected": "false",
          // Focus stays with the input.
          onpointerdown: (event) => event.preventDefault(),
          onclick: () => choose(position),
        },
        h("span", { class: "label" }, label),
        h("span", { class: "quiet" }, detail),
      );
      options.push({ element, select });
      return element;
    });
    return h("div", { role: "group", "aria-labelledby": `matches-${name}` }, heading, rows);
  }

  function show(items, users) {
    options = [];
    isStale = false;
    const groups = [
      group("Items", items.map((item) => ({
        label: titleOf(item),
        detail: `#${item.item} · popularity ${count(item.popularity)}`,
        select: () => handlers.item(item),
      }))),
      group("Users", users.map((user) => ({
        label: `User ${user.user}`,
        detail: plural(user.interactions, "interaction"),
        select: () => handlers.user(String(user.user)),
      }))),
    ];
    const empty = h("p", { class: "quiet empty" }, "No matches.");
    replace(list, options.length ? groups : empty);
    open();
    activate(-1);
    const matches = plural(options.length, "match", "matches");
    announce(options.length ? `${matches}; select with the arrow keys` : "No matches");
  }

  function open() {
    list.hidden = false;
    input.setAttribute("aria-expanded", "true");
  }

  async function find() {
    clearTimeout(timer);
    pending.abort();
    pending = new AbortController();
    const { signal } = pending;
    const query = { query: input.value.trim(), limit: MAX_ITEMS, model: handlers.model() };
    list.setAttribute("aria-busy", "true");
    try {
      const [items, users] = await Promise.all([
        request("/v1/items", { query, signal }),
        request("/v1/users", { query: { ...query, limit: query.query ? MAX_USERS : MAX_USERS_BLANK }, signal }),
      ]);
      if (!signal.aborted && document.activeElement === input) show(items.items, users.users);
    } catch (error) {
      if (isAborted(error) || signal.aborted) return;
      options = [];
      replace(list, alertOf(error));
      open();
    } finally {
      list.removeAttribute("aria-busy");
    }
  }

  /** Select the active option; after fast typing, search first and select the first match. */
  async function enter() {
    if (isStale) await find();
    if (options.length && !isStale) choose(Math.max(active, 0));
  }

  function onKey(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step !== undefined) {
      event.preventDefault();
      if (list.hidden) find();
      else if (options.length) {
        const from = active < 0 && step < 0 ? 0 : active;
        activate((from + step + options.length) % options.length);
      }
    } else if (event.key === "Enter" && (isStale || options.length)) {
      event.preventDefault();
      enter();
    } else if (event.key === "Escape") {
      event.preventDefault();
      if (list.hidden) input.value = "";
      close();
    }
  }

  input.addEventListener("input", () => {
    isStale = true;
    clearTimeout(timer);
    timer = setTimeout(find, WAIT_MS);
  });
  input.addEventListener("keydown", onKey);
  input.addEventListener("click", () => list.hidden && find());
  input.addEventListener("blur", close);
}
