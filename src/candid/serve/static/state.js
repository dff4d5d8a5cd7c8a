/** What is asked, and its form in the address: a link shows the same again. */

/**
 * @typedef {object} State
 * @property {?string} user - source id; null: the history counts.
 * @property {string[]} history - source ids, earliest first.
 * @property {number} k - how many recommendations.
 * @property {boolean} filterSeen - whether to leave out the history.
 * @property {?string} model - name; null: the first.
 * @property {?string} other - model to compare with.
 */

/** Nothing is asked yet. */
export const NOTHING = Object.freeze({
  user: null,
  history: Object.freeze([]),
  k: 10,
  filterSeen: true,
  model: null,
  other: null,
});

/** Read the part of an address after #. */
export function read(hash) {
  const given = new URLSearchParams(hash.replace(/^#/, ""));
  const k = Number(given.get("k") ?? NOTHING.k);
  const user = given.get("user") || null;
  return {
    user,
    history: user === null ? given.getAll("item").filter(Boolean) : [],
    k: Number.isInteger(k) && k >= 1 ? k : NOTHING.k,
    filterSeen: given.get("seen") !== "shown",
    model: given.get("model") || null,
    other: given.get("compare") || null,
  };
}

/** Write what `read` reads. */
export function written(state) {
  const given = new URLSearchParams();
  if (state.user !== null) given.append("user", state.user);
  for (const item of state.history) given.append("item", item);
  if (state.k !== NOTHING.k) given.append("k", state.k);
  if (!state.filterSeen) given.append("seen", "shown");
  if (state.model !== null) given.append("model", state.model);
  if (state.other !== null) given.append("compare", state.other);
  return `#${given}`;
}

/** Whether there is anything to ask. */
export const isAsked = (state) => state.user !== null || state.history.length > 0;
