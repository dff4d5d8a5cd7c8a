/** Recommendations of one model, or of two side by side. */

import { alertOf, count, h, median, percent, plural, replace, titleOf } from "./dom.js";
import { chips } from "./history.js";

/**
 * @typedef {object} View
 * @property {string} letter - "A" or "B".
 * @property {object} model - its entry of `/v1/model`.
 * @property {string} kind - "empty", "loading", "error" or "done".
 * @property {object[]} items - of the last answer, best first; more than are shown where two models
 *   are compared.
 * @property {?Error} error
 * @property {number} ignored - items of the history that the model does not know.
 * @property {number} ms - how long the answer took.
 * @property {?object[]} popular - items to begin with.
 * @property {?number} generation - which one answered last.
 */

/** Say that other answers are on their way; what is shown stays until then. */
export function showWaiting(root) {
  for (const panel of root.children) panel.setAttribute("aria-busy", "true");
}

/**
 * Show the answers.
 *
 * @param {HTMLElement} root - where.
 * @param {HTMLElement} overlap - where to count what both have.
 * @param {View[]} views - one or two.
 * @param {number} k - how many to show.
 * @param {object} event_types - `add(item)`, `similar(item, model)`, `point(id)`, `again(view)`.
 */
export function showResults(root, overlap, views, k, event_types) {
  root.classList.toggle("two", views.length > 1);
  const isCompared = views.length > 1 && views.every((view) => view.items.length);
  replace(overlap, isCompared ? overlapOf(views, k) : null);
  replace(
    root,
    views.map((view, place) => panel(view, isCompared ? views[1 - place] : null, k, event_types)),
  );
}

function panel(view, rival, k, event_types) {
  const { model, letter } = view;
  const title = rival ? `${letter}: ${model.name}` : model.name;
  return h(
    "article",
    { class: `panel ${letter}`, "aria-busy": String(view.kind === "loading"), "aria-label": model.name },
    h(
      "header",
      {},
      h("h3", {}, h("span", { class: `mark ${letter}`, "aria-hidden": "true" }), title),
      h(
        "p",
        { class: "quiet" },
        `${count(model.items)} items × ${model.dim}, ${model.index} index, generation ${view.generation ?? model.generation}`,
      ),
    ),
    content(view, rival, k, event_types),
  );
}

function content(view, rival, k, event_types) {
  if (view.kind === "error") return alertOf(view.error, () => event_types.again(view));
  if (view.kind === "empty") return nothingAsked(view, event_types);
  if (view.kind === "loading" && !view.items.length) {
    return h("div", { class: "waiting" }, h("p", { class: "quiet" }, "Asking the model…"));
  }
  const shown = view.items.slice(0, k);
  if (!shown.length) return h("p", { class: "quiet empty" }, "The model has nothing to recommend.");
  const middle = median(shown.map((item) => item.popularity));
  const facts = [
    `${plural(shown.length, "item")} in ${count(Math.round(view.ms))} ms`,
    `median popularity ${count(middle)}`,
    view.ignored ? `${plural(view.ignored, "item")} of the history unknown here` : null,
  ];
  return [
    h("p", { class: "facts" }, facts.filter(Boolean).join(" · ")),
    rows(shown, { model: view.model, letter: view.letter, rival, k, event_types }),
  ];
}

function nothingAsked({ model, popular }, event_types) {
  const text = model.needs_user
    ? "Choose a user: this model knows users, not histories."
    : "Add items to the history, or choose a user.";
  const offer = (item) =>
    h(
      "li",
      {},
      h(
        "button",
        { type: "button", "data-control": `begin ${item.item}`, onclick: () => event_types.add(item) },
        titleOf(item),
      ),
    );
  return [
    h("p", { class: "quiet empty" }, text),
    !model.needs_user && popular?.length ? h("p", {}, "Popular ones to begin with:") : null,
    !model.needs_user && popular?.length ? h("ul", { class: "offers" }, popular.map(offer)) : null,
  ];
}

/**
 * A list of scored items.
 *
 * @param {object[]} items - best first.
 * @param {object} options - `model`: whose; `letter`: of the view, none in a dialog; `rival`: the
 *   other view, to compare ranks with, or null; `k`; `scoreName`; `event_types`.
 */
export function rows(items, options) {
  const { model, letter = "", rival = null, k = 0, scoreName = "score", event_types } = options;
  const theirs = new Map((rival?.items ?? []).map((item, place) => [String(item.item), place + 1]));
  const best = items[0]?.probability;
  return h(
    "ol",
    { class: "rows" },
    items.map((item) =>
      h(
        "li",
        {
          "data-item": String(item.item),
          onmouseenter: () => event_types.point?.(String(item.item)),
          onmouseleave: () => event_types.point?.(null),
          onfocusin: () => event_types.point?.(String(item.item)),
        },
        h("span", { class: "rank", "aria-hidden": "true" }, String(item.rank)),
        h(
          "div",
          { class: "what" },
          h("p", { class: "title" }, titleOf(item), " ", h("span", { class: "id" }, `#${item.item}`)),
          chips(item.attributes),
        ),
        h(
          "div",
          { class: "line" },
          numbers(item, best, scoreName),
          rival ? versus(item.rank, theirs.get(String(item.item)), rival, k) : null,
        ),
        buttons(item, model, letter, event_types),
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

function buttons(item, model, letter, event_types) {
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
        onclick: () => event_types.add(item),
      },
      "Add",
    ),
    h(
      "button",
      {
        type: "button",
        "data-control": `similar${letter} ${item.item}`,
        "aria-label": `Show items similar to ${title}`,
        onclick: () => event_types.similar(item, model),
      },
      "Similar",
    ),
  );
}

function versus(rank, theirRank, rival, k) {
  const { letter, items, model } = rival;
  const badge = [
    h("span", { class: `mark ${letter}`, "aria-hidden": "true" }),
    h("span", { class: "hidden-text" }, `rank of ${letter}: `),
  ];
  if (theirRank === undefined) {
    const text = `> ${count(items.length)}`;
    const title = `Not among the first ${count(items.length)} of ${model.name}`;
    return h("p", { class: "versus alone", title }, badge, text);
  }
  const step = rank - theirRank;
  const [sign, words] =
    step === 0 ? ["=", "the same"] : step > 0 ? ["▲", `${step} higher`] : ["▼", `${-step} lower`];
  return h(
    "p",
    { class: theirRank <= k ? "versus" : "versus alone", title: `Rank of ${model.name}` },
    badge,
    `${count(theirRank)} `,
    h("span", { "aria-hidden": "true" }, step === 0 ? sign : `${sign} ${count(Math.abs(step))}`),
    h("span", { class: "hidden-text" }, `, ${words}`),
  );
}

/** How much two lists have in common: shown items of both, and how far their ranks differ. */
export function compared(views, k) {
  const [ours, theirs] = views.map((view) => view.items.slice(0, k).map((item) => String(item.item)));
  const ranks = new Map(theirs.map((id, place) => [id, place]));
  const steps = ours.flatMap((id, place) => (ranks.has(id) ? [Math.abs(ranks.get(id) - place)] : []));
  const union = ours.length + theirs.length - steps.length;
  return { shared: steps.length, union, step: median(steps), lengths: [ours.length, theirs.length] };
}

function overlapOf(views, k) {
  const { shared, union, step, lengths } = compared(views, k);
  const bar = (kind, size) => {
    const part = h("span", { class: kind });
    part.style.setProperty("flex-grow", String(size));
    return size ? part : null;
  };
  const words = [
    h("strong", {}, `${shared} in both lists`),
    `, ${lengths[0] - shared} only in A, ${lengths[1] - shared} only in B`,
    ` (Jaccard ${(shared / union).toFixed(2)})`,
    shared ? `; ranks of the shared differ by ${step} at the median` : "",
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
