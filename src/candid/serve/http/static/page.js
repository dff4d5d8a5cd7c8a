/** The page: its state, the requests that follow from it, and the answers shown. */

import { isAborted, request, setKeyPrompt } from "./api.js";
import { promptForKey, setUpDialogs, showSimilar } from "./dialogs.js";
import { alertOf, announce, byId, count, h, plural, replace, titleOf } from "./dom.js";
import { showHistory } from "./history.js";
import { ItemMap } from "./map.js";
import { showResults, showWaiting } from "./results.js";
import { search } from "./search.js";
import { DEFAULT_STATE, fromHash, hasQuery, toHash } from "./state.js";

const COMPARED_ITEMS = 100;
const MAP_ITEMS = 1500;
const PARALLEL_REQUESTS = 8;
const START_ITEMS = 12;
const MARKED_ITEMS = 50;
const PLACED_ITEMS = 100;
const requestedIds = new Set();

let state = DEFAULT_STATE;
let models = [];
let limits = {};
let views = [];
let items = new Map();
let itemsOf = null;
let user = null;
let map = null;
let mapOf = null;
let latest = new AbortController();

const modelOf = (name) => models.find((model) => model.name === name) ?? null;
const first = () => modelOf(state.model) ?? models[0];
const second = () => (state.other === first().name ? null : modelOf(state.other));

/** Change the state and the address, so that links and the back button work. */
function change(patch) {
  state = { ...state, ...patch };
  history.pushState(null, "", toHash(state));
  update();
}

function add(item) {
  if (state.history.length >= limits.max_history) {
    announce(`A history can have at most ${count(limits.max_history)} items.`);
    return;
  }
  items.set(String(item.item), item);
  announce(`Added ${titleOf(item)} to the history.`);
  const before = state.user === null ? state.history : [];
  change({ user: null, history: [...before, String(item.item)] });
}

const historyHandlers = {
  remove(position) {
    announce(`Removed ${titleOf(items.get(state.history[position]) ?? { item: state.history[position] })}.`);
    change({ history: state.history.toSpliced(position, 1) });
  },
  clear() {
    announce("Cleared the query.");
    change({ user: null, history: [] });
  },
  copyUser(from) {
    for (const item of from.history) items.set(String(item.item), item);
    change({ user: null, history: from.history.map((item) => String(item.item)) });
  },
};

const resultHandlers = {
  add,
  similar: (item, model) => showSimilar(item, model, { add }),
  point: (id) => map.point(id ?? map.selected),
  retry: () => update(),
  fallBack: (fallback) => change({ fallback }),
};

/** Send the requests of the state and show their answers. */
function update() {
  latest.abort();
  latest = new AbortController();
  const { signal } = latest;
  if (itemsOf !== first().name) [items, itemsOf] = [new Map(), first().name];
  const shownModels = [first(), second()].filter(Boolean);
  const before = views;
  views = shownModels.map((model, position) => ({
    ...(views[position]?.model === model ? views[position] : { items: [], ignored: 0, ms: 0 }),
    letter: "AB"[position],
    model,
    status: "loading",
    error: null,
  }));
  showControls();
  loadItems(signal);
  loadUser(signal);
  Promise.all(views.map((view) => recommend(view, signal))).then(() => announceResults(signal));
  loadMap();
  showQuery();
  const isShown = views.every(({ model, items }, position) => items.length && before[position]?.model === model);
  if (isShown && before.length === views.length) showWaiting(byId("panels"));
  else showAnswers();
}

function showQuery() {
  showHistory(byId("history"), state, { items, user }, historyHandlers);
  showMarks();
}

function showAnswers() {
  showResults(byId("panels"), byId("overlap"), views, state.k, resultHandlers);
  showMarks();
}

function showControls() {
  byId("model").value = first().name;
  const other = byId("other");
  const options = models.filter((model) => model !== first()).map((model) => option(model.name));
  replace(other, h("option", { value: "" }, "none"), options);
  other.value = second()?.name ?? "";
  if (document.activeElement !== byId("k")) byId("k").value = state.k;
  byId("filter-seen").checked = state.filterSeen ?? first().filter_seen;
  const unknown = [state.model, state.other].find((name) => name !== null && !modelOf(name));
  const text = `This server has no model ${unknown}; another model is shown.`;
  replace(byId("notice"), unknown === undefined ? null : h("p", { class: "alert", role: "alert" }, text));
}

const option = (name) => h("option", { value: name }, name);

async function recommend(view, signal) {
  if (!hasQuery(state)) {
    Object.assign(view, { status: "empty", items: [] });
    showAnswers();
    if (view.letter === "A") await loadPopular(view, signal);
    return;
  }
  const depth = views.length > 1 ? Math.max(state.k, COMPARED_ITEMS) : state.k;
  const body = {
    model: view.model.name,
    // For a k beyond the limit the server returns the error.
    k: Math.max(state.k, Math.min(depth, limits.max_k)),
    filter_seen: state.filterSeen,
    ...(state.fallback !== null ? { fallback: state.fallback } : {}),
    ...(state.user !== null ? { user: state.user } : { history: state.history }),
    ...(view.letter === "B" && state.user === null ? { ignore_unknown: true } : {}),
  };
  const started = performance.now();
  try {
    const answer = await request("/v1/recommend", { body, signal });
    const { ignored, version, recommended_by: by } = answer;
    const ms = performance.now() - started;
    Object.assign(view, { status: "done", items: answer.items, ignored, version, by, ms });
    for (const item of answer.items) if (view.letter === "A") items.set(String(item.item), item);
  } catch (error) {
    if (isAborted(error) || signal.aborted) return;
    Object.assign(view, { status: "error", items: [], error });
  }
  if (!signal.aborted) showAnswers();
}

function announceResults(signal) {
  if (signal.aborted || views.some((view) => view.status !== "done")) return;
  const texts = views.map(({ model, items: listed }) => {
    const shown = plural(Math.min(listed.length, state.k), "recommendation");
    return `${shown} from ${model.name}${listed.length ? `, first: ${titleOf(listed[0])}` : ""}`;
  });
  announce(`${texts.join("; ")}.`);
}

async function loadPopular(view, signal) {
  try {
    const query = { limit: START_ITEMS, model: view.model.name };
    view.popular ??= (await request("/v1/items", { query, signal })).items;
  } catch {
    return; // The search finds items as well.
  }
  if (!signal.aborted) showAnswers();
}

/** Load the items of the history that only the address contains. */
async function loadItems(signal) {
  const model = first().name;
  const missing = [...new Set(state.history)].filter((id) => !items.has(id));
  const load = async () => {
    for (let id = missing.pop(); id !== undefined && !signal.aborted; id = missing.pop()) {
      try {
        items.set(id, await request(`/v1/items/${encodeURIComponent(id)}`, { query: { model }, signal }));
      } catch (error) {
        if (error.status === 404) items.set(id, { item: id, title: null, isMissing: true });
        // Other errors are shown with the recommendations.
      }
    }
  };
  if (!missing.length) return;
  await Promise.all(Array.from({ length: PARALLEL_REQUESTS }, load));
  if (!signal.aborted) showQuery();
}

async function loadUser(signal) {
  if (state.user === null) user = null;
  const model = first().name;
  if (state.user === null || (String(user?.user) === state.user && user.model === model)) return;
  user = null;
  try {
    const path = `/v1/users/${encodeURIComponent(state.user)}`;
    user = await request(path, { query: { limit: 50, model }, signal });
  } catch {
    return; // The error is shown with the recommendations.
  }
  if (!signal.aborted) showQuery();
}

async function loadMap() {
  const model = first();
  if (mapOf === model) return;
  mapOf = model;
  const stillWanted = () => mapOf === model;
  const body = byId("map-body");
  if (!model.vectors.supported) {
    requestedIds.clear();
    map.setItems([]);
    byId("map-facts").textContent = "";
    replace(byId("map-state"), h("p", { class: "quiet" }, `No map: ${model.vectors.reason}.`));
    return;
  }
  body.setAttribute("aria-busy", "true");
  replace(byId("map-state"), h("p", { class: "quiet" }, "Loading…"));
  try {
    const answer = await request("/v1/map", { query: { model: model.name, limit: MAP_ITEMS } });
    if (!stillWanted()) return;
    requestedIds.clear();
    map.setItems(answer.items);
    replace(byId("map-state"), null);
    byId("map-facts").textContent =
      `The ${count(answer.items.length)} most popular items of ${model.name}: the first two principal ` +
      `components of the directions of their vectors, ${Math.round(100 * answer.explained)} % of the variance.`;
    body.setAttribute("aria-busy", "false");
    showMarks();
  } catch (error) {
    if (!stillWanted()) return;
    mapOf = null;
    body.setAttribute("aria-busy", "false");
    replace(byId("map-state"), alertOf(error, () => loadMap()));
  }
}

/** Mark the history and the recommendations; request the places of items not yet on the map. */
async function showMarks() {
  const history = state.user === null ? state.history : (user?.history ?? []).map((item) => String(item.item));
  const lists = views.map(({ letter, model, items: listed }) => ({
    letter,
    name: model.name,
    ids: listed.slice(0, Math.min(state.k, MARKED_ITEMS)).map((item) => String(item.item)),
  }));
  map.setMarks({ history, lists });
  const model = first();
  const known = (id) => map.items.has(id) || items.get(id)?.isMissing || requestedIds.has(`${model.name} ${id}`);
  // The map is that of the first model: items of the second list may not exist there.
  const ids = [...history, ...lists[0].ids].filter((id) => !known(id)).slice(0, PLACED_ITEMS);
  if (!ids.length || mapOf !== model || !map.items.size) return;
  for (const id of ids) requestedIds.add(`${model.name} ${id}`);
  try {
    const answer = await request("/v1/map", { query: { model: model.name, limit: 0, item: ids } });
    if (mapOf === model) map.addItems(answer.items);
  } catch {
    // Without a place they are not marked on the map; the list still shows them.
  }
}

function setUp() {
  replace(byId("model"), models.map((model) => option(model.name)));
  byId("model").disabled = false;
  byId("other-label").hidden = models.length < 2;
  byId("search").disabled = false;
  byId("k").max = limits.max_k;
  map = new ItemMap({ add, similar: (item) => showSimilar(item, first(), { add }) });
  search(byId("search"), byId("matches"), {
    model: () => first().name,
    item: add,
    user: (id) => change({ user: id, history: [] }),
  });
  byId("model").addEventListener("change", (event) => {
    const model = event.target.value;
    // Selecting the second model swaps the two, so that the comparison stays.
    const other = model === second()?.name ? first().name : state.other;
    change({ model, other });
  });
  byId("other").addEventListener("change", (event) => change({ other: event.target.value || null }));
  byId("filter-seen").addEventListener("change", (event) => change({ filterSeen: event.target.checked }));
  byId("k").addEventListener("change", (event) => {
    const k = Math.round(Number(event.target.value));
    if (k >= 1) change({ k });
    else event.target.value = state.k;
  });
  window.addEventListener("hashchange", () => {
    state = fromHash(location.hash);
    update();
  });
}

async function start() {
  replace(byId("panels"), h("p", { class: "quiet" }, "Loading models…"));
  try {
    ({ models, limits } = await request("/v1/model"));
  } catch (error) {
    replace(byId("panels"), alertOf(error, start));
    return;
  }
  setUp();
  state = fromHash(location.hash);
  update();
}

byId("skip").addEventListener("click", (event) => {
  event.preventDefault();
  byId("results").focus();
});
setKeyPrompt(promptForKey);
setUpDialogs();
start();
