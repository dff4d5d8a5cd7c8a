/** For whom recommendations are: a user of the data, or a history that was clicked together. */

import { count, h, plural, replace, titleOf } from "./dom.js";

const SHOWN = 5;

/**
 * Show for whom.
 *
 * @param {HTMLElement} root - where.
 * @param {import("./state.js").State} state - what is asked.
 * @param {object} facts - `items`: Map of known items by source id; `user`: answer of
 *   `/v1/users/ID`, or null while it loads.
 * @param {object} event_types - `remove(place)`, `clear()`, `copyUser(user)`, `start(items)`.
 */
export function showHistory(root, state, facts, event_types) {
  if (state.user !== null) replace(root, ofUser(state.user, facts.user, event_types));
  else if (state.history.length) replace(root, ofItems(state.history, facts.items, event_types));
  else replace(root, h("p", { class: "quiet empty" }, "The history is empty."));
}

function ofUser(id, user, event_types) {
  const latest = user?.history ?? [];
  const later = latest.length - SHOWN;
  const rows = latest.slice(-SHOWN).map((item) => h("li", {}, named(item)));
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
              { type: "button", "data-control": "copy user", onclick: () => event_types.copyUser(user) },
              "Use as a history",
            )
          : null,
        clearButton("Clear", event_types.clear),
      ),
    ),
    rows.length
      ? h("p", { class: "quiet" }, later > 0 ? `The latest ${SHOWN}:` : "The whole history:")
      : null,
    rows.length ? h("ul", { class: "history" }, rows) : null,
  ];
}

function ofItems(ids, items, event_types) {
  const rows = ids.map((id, place) => {
    const item = items.get(id) ?? { item: id, title: "…" };
    return h(
      "li",
      { class: item.isMissing ? "missing" : null },
      named(item),
      h(
        "button",
        {
          type: "button",
          class: "bare",
          "data-control": `remove ${place}`,
          "aria-label": `Remove ${titleOf(item)}`,
          onclick: () => event_types.remove(place),
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
      clearButton("Clear", event_types.clear),
    ),
    h("ol", { class: "history" }, rows),
  ];
}

function named(item) {
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

/** What to say of an item beside its title: values of its attributes, as far as there is room. */
export function chips(attributes, most = 5) {
  const found = [];
  for (const [name, value] of Object.entries(attributes ?? {})) {
    // Text holds several values as the bag of words of a model reads them.
    const values = typeof value === "string" ? value.split("|") : [value].flat();
    for (const each of values) {
      if (each === null || each === "") continue;
      const text = typeof each === "string" ? each : `${name} ${spoken(each)}`;
      found.push(h("li", { title: `${name}: ${spoken(each)}` }, cut(text)));
    }
  }
  const rest = found.length - most;
  if (rest > 1) found.splice(most, rest, h("li", { class: "more" }, `and ${count(rest)} more`));
  return found.length ? h("ul", { class: "chips" }, found) : null;
}

function cut(text) {
  return text.length > 60 ? `${text.slice(0, 59)}…` : text;
}

function spoken(value) {
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}
