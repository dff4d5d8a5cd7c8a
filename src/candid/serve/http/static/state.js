/** The query of the page, and its form in the address: a link restores the query. */

/**
 * @typedef {object} State
 * @property {?string} user - source id; null: the history is the query.
 * @property {string[]} history - source ids, earliest first.
 * @property {number} k - number of recommendations.
 * @property {?boolean} filterSeen - whether to leave out items of the history; null: as the model was measured.
 * @property {?string} fallback - "popular" or "recent", for users without a history; null: as the server decides.
 * @property {?string} model - name; null: the first.
 * @property {?string} other - name of the model to compare with.
 */

/** The state without a query. */
export const DEFAULT_STATE = Object.freeze({
  user: null,
  history: Object.freeze([]),
  k: 10,
  filterSeen: null,
  fallback: null,
  model: null,
  other: null,
});

/** Read the state from the part of an address after #. */
export function fromHash(hash) {
  const parameters = new URLSearchParams(hash.replace(/^#/, ""));
  const k = Number(parameters.get("k") ?? DEFAULT_STATE.k);
  const user = parameters.get("user") || null;
  return {
    user,
    history: user === null ? parameters.getAll("item").filter(Boolean) : [],
    k: Number.isInteger(k) && k >= 1 ? k : DEFAULT_STATE.k,
    filterSeen: { shown: false, hidden: true }[parameters.get("seen")] ?? null,
    fallback: ["popular", "recent"].find((name) => name === parameters.get("fallback")) ?? null,
    model: parameters.get("model") || null,
    other: parameters.get("compare") || null,
  };
}

/** Write the state in the form that `fromHash` reads. */
export function toHash(state) {
  const parameters = new URLSearchParams();
  if (state.user !== null) parameters.append("user", state.user);
  for (const item of state.history) parameters.append("item", item);
  if (state.k !== DEFAULT_STATE.k) parameters.append("k", state.k);
  if (state.filterSeen !== null) parameters.append("seen", state.filterSeen ? "hidden" : "shown");
  if (state.fallback !== null) parameters.append("fallback", state.fallback);
  if (state.model !== null) parameters.append("model", state.model);
  if (state.other !== null) parameters.append("compare", state.other);
  return `#${parameters}`;
}

/** Whether the state has a query. */
export const hasQuery = (state) => state.user !== null || state.history.length > 0;
