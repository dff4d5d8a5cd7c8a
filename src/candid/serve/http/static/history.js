/** The query: a user of the data, or a history of selected items. */

import { count, h, plural, replace, titleOf } from "./dom.js";

const SHOWN_ITEMS = 5;

/**
 * Show the query.
 *
 * @param {HTMLElement} root - container.
 * @param {import("./state.js").State} state - of the page.
 * @param {object} data - `items`: Map of known items by source id; `user`: answer of
 *   `/v1/users/ID`, or null until it is loaded.
 * @param {object} handlers - `remove(position)`, `clear()`, `copyUser(user)`.
 */
export function showHistory(root, state, data, handlers) {
  if (state.user !== null) replace(root, userRows(state.user, data.user, handlers));
  else if (state.history.length) replace(root, historyRows(state.history, data.items, handlers));
  else replace(root, h("p", { class: "quiet empty" }, "The history is empty."));
}

function userRows(id, user, handlers) {
  const latest = user?.history ?? [];
  const later = latest.length - SHOWN_ITEMS;
  const rows = latest.slice(-SHOWN_ITEMS).map((item) => h("li", {}, labelOf(item)));
  return [
    h(
      "div",
      { class: "bar" },
      h("p", {}, h("strong", {}, `User ${id}`), user ? `, ${plural(user.interactions, "interaction")}` : ""),
      h(
        "div",
        { class: "buttons" },
        latest.length
          ? h(
              "button",
              { type: "button", "data-control": "copy user", onclick: () => handlers.copyUser(user) },
              "Use as a history",
            )
          : null,
        clearButton("Clear", handlers.clear),
      ),
    ),
    rows.length
      ? h("p", { class: "quiet" }, later > 0 ? `Latest ${SHOWN_ITEMS}:` : "Full history:")
      : null,
    rows.length ? h("ul", { class: "history" }, rows) : null,
  ];
}

function historyRows(ids, items, handlers) {
  const rows = ids.map((id, position) => {
    const item = items.get(id) ?? { item: id, title: "…" };
    return h(
      "li",
      { class: item.isMissing ? "missing" : null },
      labelOf(item),
      h(
        "button",
        {
          type: "button",
          class: "bare",
          "data-control": `remove ${position}`,
          "aria-label": `Remove ${titleOf(item)}`,
          onclick: () => handlers.remove(position),
        },
        "×",
      ),
    );
  });
  return [
    h(
      "div",
      { class: "bar" },
      h("p", {}, h("strong", {}, "History"), `, ${plural(ids.length, "item")}, earliest first`),
      clearButton("Clear", handlers.clear),
    ),
    h("ol", { class: "history" }, rows),
  ];
}

function labelOf(item) {
  return h(
    "span",
    { class: "label", title: titleOf(item) },
    titleOf(item),
    item.isMissing ? h("em", {}, " is not in this model") : null,
  );
}

function clearButton(text, onclick) {
  return h("button", { type: "button", "data-control": "clear all", onclick }, text);
}

/** Create chips with the values of an item's attributes, at most a few. */
export function attributeChips(attributes, limit = 5) {
  const chips = [];
  for (const [name, value] of Object.entries(attributes ?? {})) {
    // The data may store a list of values as one text.
    const values = typeof value === "string" ? value.split("|") : [value].flat();
    for (const each of values) {
      if (each === null || each === "") continue;
      const text = typeof each === "string" ? each : `${name} ${formatValue(each)}`;
      chips.push(h("li", { title: `${name}: ${formatValue(each)}` }, truncate(text)));
    }
  }
  const rest = chips.length - limit;
  if (rest > 1) chips.splice(limit, rest, h("li", { class: "more" }, `and ${count(rest)} more`));
  return chips.length ? h("ul", { class: "chips" }, chips) : null;
}

function truncate(text) {
  return text.length > 60 ? `${text.slice(0, 59)}…` : text;
}

function formatValue(value) {
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}
