/** Recommendations of one model, or of two side by side. */

import { alertOf, count, h, median, percent, plural, replace, titleOf } from "./dom.js";
import { attributeChips } from "./history.js";

const FALLBACKS = { popular: "Popular items", recent: "Recently popular items" };

/**
 * @typedef {object} View
 * @property {string} letter - "A" or "B".
 * @property {object} model - its entry of `/v1/model`.
 * @property {string} status - "empty", "loading", "error" or "done".
 * @property {object[]} items - of the last answer, best first; more than are shown when two models
 *   are compared.
 * @property {?Error} error
 * @property {number} ignored - items of the history that the model does not have.
 * @property {number} ms - time to the answer.
 * @property {?object[]} popular - popular items, shown while there is no query.
 * @property {?string} by - "model", or the fallback that answered.
 * @property {?number} version - version of the model that answered last.
 */

/** Mark the panels as busy; they keep their content until the new answers arrive. */
export function showWaiting(root) {
  for (const panel of root.children) panel.setAttribute("aria-busy", "true");
}

/**
 * Show the answers.
 *
 * @param {HTMLElement} root - container of the panels.
 * @param {HTMLElement} overlap - container of the overlap of two lists.
 * @param {View[]} views - one or two.
 * @param {number} k - number of items to show.
 * @param {object} handlers - `add(item)`, `similar(item, model)`, `point(id)`, `retry(view)`,
 *   `fallBack(name)`.
 */
export function showResults(root, overlap, views, k, handlers) {
  root.classList.toggle("two", views.length > 1);
  const isCompared = views.length > 1 && views.every((view) => view.items.length);
  replace(overlap, isCompared ? overlapOf(views, k) : null);
  replace(
    root,
    views.map((view, position) => panel(view, isCompared ? views[1 - position] : null, k, handlers)),
  );
}

function panel(view, other, k, handlers) {
  const { model, letter } = view;
  const title = other ? `${letter}: ${model.name}` : model.name;
  return h(
    "article",
    { class: `panel ${letter}`, "aria-busy": String(view.status === "loading"), "aria-label": model.name },
    h(
      "header",
      {},
      h("h3", {}, h("span", { class: `mark ${letter}`, "aria-hidden": "true" }), title),
      h(
        "p",
        { class: "quiet" },
        `${sizeOf(model)}, version ${view.version ?? model.version}`,
      ),
    ),
    content(view, other, k, handlers),
  );
}

function sizeOf(model) {
  const items = `${count(model.items)} items`;
  return model.vectors.supported ? `${items} × ${model.dim}, ${model.index} index` : items;
}

function content(view, other, k, handlers) {
  if (view.status === "error") return errorPanel(view, handlers);
  if (view.status === "empty") return startPanel(view, handlers);
  if (view.status === "loading" && !view.items.length) {
    return h("div", { class: "waiting" }, h("p", { class: "quiet" }, "Loading…"));
  }
  const shown = view.items.slice(0, k);
  if (!shown.length) return h("p", { class: "quiet empty" }, "No recommendations.");
  const middle = median(shown.map((item) => item.popularity));
  const facts = [
    `${plural(shown.length, "item")} in ${count(Math.round(view.ms))} ms`,
    `median popularity ${count(middle)}`,
    FALLBACKS[view.by] ? `${FALLBACKS[view.by].toLowerCase()}, not chosen by the model` : null,
    view.ignored ? `${plural(view.ignored, "item")} of the history not in this model` : null,
  ];
  return [
    h("p", { class: "facts" }, facts.filter(Boolean).join(" · ")),
    rows(shown, { model: view.model, letter: view.letter, other, k, handlers }),
  ];
}

/** The error of a view; about a user without a history, also the lists that need none. */
function errorPanel({ error }, handlers) {
  const isAboutUser = error.code === "unknown_user" || (error.code === "unsupported" && error.field === "user");
  const button = ([name, text]) =>
    h("button", { type: "button", "data-control": `fall back ${name}`, onclick: () => handlers.fallBack(name) }, text);
  return [
    alertOf(error, () => handlers.retry()),
    isAboutUser ? h("p", {}, "Instead, show to users without a history:") : null,
    isAboutUser ? h("div", { class: "buttons" }, Object.entries(FALLBACKS).map(button)) : null,
  ];
}

function startPanel({ model, popular }, handlers) {
  const text = model.needs_user
    ? "Choose a user: this model only supports users of its training data."
    : "Add items to the history, or choose a user.";
  const startButton = (item) =>
    h(
      "li",
      {},
      h(
        "button",
        { type: "button", "data-control": `begin ${item.item}`, onclick: () => handlers.add(item) },
        titleOf(item),
      ),
    );
  return [
    h("p", { class: "quiet empty" }, text),
    !model.needs_user && popular?.length ? h("p", {}, "Popular items:") : null,
    !model.needs_user && popular?.length ? h("ul", { class: "offers" }, popular.map(startButton)) : null,
  ];
}

/**
 * A list of scored items.
 *
 * @param {object[]} items - best first.
 * @param {object} options - `model`: of the items; `letter`: of the view, empty in a dialog;
 *   `other`: the other view, to compare ranks with, or null; `k`; `scoreName`; `handlers`.
 */
export function rows(items, options) {
  const { model, letter = "", other = null, k = 0, scoreName = "score", handlers } = options;
  const otherRanks = new Map((other?.items ?? []).map((item, position) => [String(item.item), position + 1]));
  const best = items[0]?.probability;
  return h(
    "ol",
    { class: "rows" },
    items.map((item) =>
      h(
        "li",
        {
          "data-item": String(item.item),
          onmouseenter: () => handlers.point?.(String(item.item)),
          onmouseleave: () => handlers.point?.(null),
          onfocusin: () => handlers.point?.(String(item.item)),
        },
        h("span", { class: "rank", "aria-hidden": "true" }, String(item.rank)),
        h(
          "div",
          { class: "what" },
          h("p", { class: "title" }, titleOf(item), " ", h("span", { class: "id" }, `#${item.item}`)),
          attributeChips(item.attributes),
        ),
        h(
          "div",
          { class: "line" },
          numbers(item, best, scoreName),
          other ? versus(item.rank, otherRanks.get(String(item.item)), other, k) : null,
        ),
        buttons(item, model, letter, handlers),
      ),
    ),
  );
}

function numbers(item, best, scoreName) {
  const has = item.probability !== null && item.probability !== undefined;
  const bar = h("span", { class: "share", "aria-hidden": "true" });
  if (has) bar.style.setProperty("--share", String(best > 0 ? item.probability / best : 0));
  return h(
    "dl",
    { class: "numbers" },
    number(scoreName, item.score.toFixed(scoreName === "score" ? 2 : 3)),
    has ? number("probability", percent(item.probability), bar) : null,
    number("popularity", count(item.popularity)),
  );
}

function number(name, value, more = null) {
  return h("div", {}, h("dt", {}, name), h("dd", {}, value, more));
}

function buttons(item, model, letter, handlers) {
  const title = titleOf(item);
  return h(
    "div",
    { class: "buttons" },
    h(
      "button",
      {
        type: "button",
        "data-control": `add${letter} ${item.item}`,
        "aria-label": `Add ${title} to the history`,
        onclick: () => handlers.add(item),
      },
      "Add",
    ),
    model.vectors.supported
      ? h(
          "button",
          {
            type: "button",
            "data-control": `similar${letter} ${item.item}`,
            "aria-label": `Show items similar to ${title}`,
            onclick: () => handlers.similar(item, model),
          },
          "Similar",
        )
      : null,
  );
}

function versus(rank, otherRank, other, k) {
  const { letter, items, model } = other;
  const badge = [
    h("span", { class: `mark ${letter}`, "aria-hidden": "true" }),
    h("span", { class: "hidden-text" }, `rank of ${letter}: `),
  ];
  if (otherRank === undefined) {
    const text = `> ${count(items.length)}`;
    const title = `Not among the first ${count(items.length)} of ${model.name}`;
    return h("p", { class: "versus alone", title }, badge, text);
  }
  const step = rank - otherRank;
  const [sign, words] =
    step === 0 ? ["=", "the same"] : step > 0 ? ["▲", `${step} higher`] : ["▼", `${-step} lower`];
  return h(
    "p",
    { class: otherRank <= k ? "versus" : "versus alone", title: `Rank of ${model.name}` },
    badge,
    `${count(otherRank)} `,
    h("span", { "aria-hidden": "true" }, step === 0 ? sign : `${sign} ${count(Math.abs(step))}`),
    h("span", { class: "hidden-text" }, `, ${words}`),
  );
}

/** Compare two lists: number of shared items, and the median difference of their ranks. */
export function compareViews(views, k) {
  const [ours, otherRanks] = views.map((view) => view.items.slice(0, k).map((item) => String(item.item)));
  const ranks = new Map(otherRanks.map((id, position) => [id, position]));
  const steps = ours.flatMap((id, position) => (ranks.has(id) ? [Math.abs(ranks.get(id) - position)] : []));
  const union = ours.length + otherRanks.length - steps.length;
  return { shared: steps.length, union, step: median(steps), lengths: [ours.length, otherRanks.length] };
}

function overlapOf(views, k) {
  const { shared, union, step, lengths } = compareViews(views, k);
  const bar = (name, size) => {
    const part = h("span", { class: name });
    part.style.setProperty("flex-grow", String(size));
    return size ? part : null;
  };
  const words = [
    h("strong", {}, `${shared} in both lists`),
    `, ${lengths[0] - shared} only in A, ${lengths[1] - shared} only in B`,
    ` (Jaccard ${(shared / union).toFixed(2)})`,
    shared ? `; median rank difference of the shared items: ${step}` : "",
    ".",
  ];
  return [
    h("p", {}, words),
    h(
      "div",
      { class: "overlap-bar", "aria-hidden": "true" },
      bar("A", lengths[0] - shared),
      bar("both", shared),
      bar("B", lengths[1] - shared),
    ),
  ];
}
