/** The search: a combobox over items and users. */

import { ask, isAborted } from "./api.js";
import { alertOf, count, h, plural, replace, say, titleOf } from "./dom.js";

const WAIT = 120;
const MOST = 8;

/**
 * Make the search work.
 *
 * @param {HTMLInputElement} input - the combobox.
 * @param {HTMLElement} list - its list box.
 * @param {object} event_types - `model()`: which one to search; `item(item)`, `user(user)`: called with
 *   what was chosen.
 */
export function search(input, list, event_types) {
  let timer = 0;
  let request = new AbortController();
  let options = [];
  let active = -1;
  let isStale = false;

  function close() {
    clearTimeout(timer);
    isStale = false;
    request.abort();
    list.hidden = true;
    options = [];
    activate(-1);
    input.setAttribute("aria-expanded", "false");
  }

  function activate(place) {
    active = place;
    options.forEach(({ element }, each) => {
      element.setAttribute("aria-selected", String(each === place));
    });
    if (place < 0) input.removeAttribute("aria-activedescendant");
    else {
      input.setAttribute("aria-activedescendant", options[place].element.id);
      options[place].element.scrollIntoView({ block: "nearest" });
    }
  }

  function choose(place) {
    const { choice } = options[place];
    input.value = "";
    close();
    choice();
  }

  function group(name, entries) {
    if (!entries.length) return null;
    const heading = h("div", { class: "group", id: `found-${name}` }, name);
    const rows = entries.map(({ label, detail, choice }) => {
      const place = options.length;
      const element = h(
        "div",
        {
          role: "option",
          id: `found-${place}`,
          "aria-selected": "false",
          // Focus stays with the input.
          onpointerdown: (event) => event.preventDefault(),
          onclick: () => choose(place),
        },
        h("span", { class: "label" }, label),
        h("span", { class: "quiet" }, detail),
      );
      options.push({ element, choice });
      return element;
    });
    return h("div", { role: "group", "aria-labelledby": `found-${name}` }, heading, rows);
  }

  function show(items, users) {
    options = [];
    isStale = false;
    const groups = [
      group("Items", items.map((item) => ({
        label: titleOf(item),
        detail: `#${item.item} · popularity ${count(item.popularity)}`,
        choice: () => event_types.item(item),
      }))),
      group("Users", users.map((user) => ({
        label: `User ${user.user}`,
        detail: plural(user.interactions, "interaction"),
        choice: () => event_types.user(String(user.user)),
      }))),
    ];
    const none = h("p", { class: "quiet empty" }, "Nothing is called so.");
    replace(list, options.length ? groups : none);
    open();
    activate(-1);
    say(options.length ? `${plural(options.length, "result")}; arrow keys choose` : "No results");
  }

  function open() {
    list.hidden = false;
    input.setAttribute("aria-expanded", "true");
  }

  async function find() {
    clearTimeout(timer);
    request.abort();
    request = new AbortController();
    const { signal } = request;
    const query = { query: input.value.trim(), limit: MOST, model: event_types.model() };
    list.setAttribute("aria-busy", "true");
    try {
      const [items, users] = await Promise.all([
        ask("/v1/items", { query, signal }),
        ask("/v1/users", { query: { ...query, limit: query.query ? 5 : 3 }, signal }),
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

  /** Choose what is active; whoever types fast gets the first of what the words find. */
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
    timer = setTimeout(find, WAIT);
  });
  input.addEventListener("keydown", onKey);
  input.addEventListener("click", () => list.hidden && find());
  input.addEventListener("blur", close);
}
