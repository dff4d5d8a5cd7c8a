/** The page: what is asked, what was answered, and how one leads to the other. */

import { ask, isAborted, keysFrom } from "./api.js";
import { askForKey, prepareDialogs, showSimilar } from "./dialogs.js";
import { alertOf, byId, count, h, plural, replace, say, titleOf } from "./dom.js";
import { showHistory } from "./history.js";
import { ItemMap } from "./map.js";
import { showResults, showWaiting } from "./results.js";
import { search } from "./search.js";
import { isAsked, NOTHING, read, written } from "./state.js";

const DEPTH = 100;
const MAPPED = 1500;
const AT_ONCE = 8;
const OFFERED = 12;
const asked = new Set();

let state = NOTHING;
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

/** Ask something else: it becomes the address, so that it can be gone back from and sent on. */
function change(patch) {
  state = { ...state, ...patch };
  history.pushState(null, "", written(state));
  update();
}

function add(item) {
  if (state.history.length >= limits.max_history) {
    say(`A history holds ${count(limits.max_history)} items at most.`);
    return;
  }
  items.set(String(item.item), item);
  say(`${titleOf(item)} is added to the history.`);
  const before = state.user === null ? state.history : [];
  change({ user: null, history: [...before, String(item.item)] });
}

const historyActions = {
  remove(place) {
    say(`${titleOf(items.get(state.history[place]) ?? { item: state.history[place] })} is removed.`);
    change({ history: state.history.toSpliced(place, 1) });
  },
  clear() {
    say("Nothing is asked any more.");
    change({ user: null, history: [] });
  },
  copyUser(from) {
    for (const item of from.history) items.set(String(item.item), item);
    change({ user: null, history: from.history.map((item) => String(item.item)) });
  },
};

const resultActions = {
  add,
  similar: (item, model) => showSimilar(item, model, { add }),
  point: (id) => map.point(id ?? map.selected),
  again: () => update(),
};

/** Bring the page up to what is asked. */
function update() {
  latest.abort();
  latest = new AbortController();
  const { signal } = latest;
  if (itemsOf !== first().name) [items, itemsOf] = [new Map(), first().name];
  const wanted = [first(), second()].filter(Boolean);
  const before = views;
  views = wanted.map((model, place) => ({
    ...(views[place]?.model === model ? views[place] : { items: [], ignored: 0, ms: 0 }),
    letter: "AB"[place],
    model,
    kind: "loading",
    error: null,
  }));
  showControls();
  learnNames(signal);
  learnUser(signal);
  Promise.all(views.map((view) => recommend(view, signal))).then(() => announce(signal));
  learnMap();
  showPerson();
  const isShown = views.every(({ model, items }, place) => items.length && before[place]?.model === model);
  if (isShown && before.length === views.length) showWaiting(byId("panels"));
  else showAnswers();
}

function showPerson() {
  showHistory(byId("history"), state, { items, user }, historyActions);
  showMarks();
}

function showAnswers() {
  showResults(byId("panels"), byId("overlap"), views, state.k, resultActions);
  showMarks();
}

function showControls() {
  byId("model").value = first().name;
  const other = byId("other");
  const options = models.filter((model) => model !== first()).map((model) => option(model.name));
  replace(other, h("option", { value: "" }, "none"), options);
  other.value = second()?.name ?? "";
  if (document.activeElement !== byId("k")) byId("k").value = state.k;
  byId("filter-seen").checked = state.filterSeen;
  const unknown = [state.model, state.other].find((name) => name !== null && !modelOf(name));
  const text = `This server has no model ${unknown}; the others answer.`;
  replace(byId("notice"), unknown === undefined ? null : h("p", { class: "alert", role: "alert" }, text));
}

const option = (name) => h("option", { value: name }, name);

async function recommend(view, signal) {
  if (!isAsked(state)) {
    Object.assign(view, { kind: "empty", items: [] });
    showAnswers();
    if (view.letter === "A") await learnPopular(view, signal);
    return;
  }
  const deep = views.length > 1 ? Math.max(state.k, DEPTH) : state.k;
  const body = {
    model: view.model.name,
    // Beyond what the server allows it says so itself.
    k: Math.max(state.k, Math.min(deep, limits.max_k)),
    filter_seen: state.filterSeen,
    ...(state.user !== null ? { user: state.user } : { history: state.history }),
    ...(view.letter === "B" && state.user === null ? { ignore_unknown: true } : {}),
  };
  const started = performance.now();
  try {
    const answer = await ask("/v1/recommend", { body, signal });
    const { ignored, generation } = answer;
    const ms = performance.now() - started;
    Object.assign(view, { kind: "done", items: answer.items, ignored, generation, ms });
    for (const item of answer.items) if (view.letter === "A") items.set(String(item.item), item);
  } catch (error) {
    if (isAborted(error) || signal.aborted) return;
    Object.assign(view, { kind: "error", items: [], error });
  }
  if (!signal.aborted) showAnswers();
}

function announce(signal) {
  if (signal.aborted || views.some((view) => view.kind !== "done")) return;
  const told = views.map(({ model, items: found }) => {
    const shown = plural(Math.min(found.length, state.k), "recommendation");
    return `${shown} of ${model.name}${found.length ? `, first ${titleOf(found[0])}` : ""}`;
  });
  say(`${told.join("; ")}.`);
}

async function learnPopular(view, signal) {
  try {
    const query = { limit: OFFERED, model: view.model.name };
    view.popular ??= (await ask("/v1/items", { query, signal })).items;
  } catch {
    return; // The search leads to items as well.
  }
  if (!signal.aborted) showAnswers();
}

/** Find the names of items that only the address told of. */
async function learnNames(signal) {
  const model = first().name;
  const missing = [...new Set(state.history)].filter((id) => !items.has(id));
  const learn = async () => {
    for (let id = missing.pop(); id !== undefined && !signal.aborted; id = missing.pop()) {
      try {
        items.set(id, await ask(`/v1/items/${encodeURIComponent(id)}`, { query: { model }, signal }));
      } catch (error) {
        if (error.status === 404) items.set(id, { item: id, title: null, isMissing: true });
        // Whatever else is wrong, the recommendations tell.
      }
    }
  };
  if (!missing.length) return;
  await Promise.all(Array.from({ length: AT_ONCE }, learn));
  if (!signal.aborted) showPerson();
}

async function learnUser(signal) {
  if (state.user === null) user = null;
  const model = first().name;
  if (state.user === null || (String(user?.user) === state.user && user.model === model)) return;
  user = null;
  try {
    const path = `/v1/users/${encodeURIComponent(state.user)}`;
    user = await ask(path, { query: { limit: 50, model }, signal });
  } catch {
    return; // The recommendations tell what is wrong.
  }
  if (!signal.aborted) showPerson();
}

async function learnMap() {
  const model = first();
  if (mapOf === model) return;
  mapOf = model;
  const stillWanted = () => mapOf === model;
  const body = byId("map-body");
  body.setAttribute("aria-busy", "true");
  replace(byId("map-state"), h("p", { class: "quiet" }, "Drawing…"));
  try {
    const found = await ask("/v1/map", { query: { model: model.name, limit: MAPPED } });
    if (!stillWanted()) return;
    asked.clear();
    map.setItems(found.items);
    replace(byId("map-state"), null);
    byId("map-facts").textContent =
      `The ${count(found.items.length)} most popular items of ${model.name}: the first two principal ` +
      `components of their directions, ${Math.round(100 * found.explained)} % of the variance.`;
    body.setAttribute("aria-busy", "false");
    showMarks();
  } catch (error) {
    if (!stillWanted()) return;
    mapOf = null;
    body.setAttribute("aria-busy", "false");
    replace(byId("map-state"), alertOf(error, () => learnMap()));
  }
}

/** Mark the history and what is recommended; places of rare items are asked for. */
async function showMarks() {
  const history = state.user === null ? state.history : (user?.history ?? []).map((item) => String(item.item));
  const lists = views.map(({ letter, model, items: found }) => ({
    letter,
    name: model.name,
    ids: found.slice(0, Math.min(state.k, 50)).map((item) => String(item.item)),
  }));
  map.setMarks({ history, lists });
  const model = first();
  const known = (id) => map.items.has(id) || items.get(id)?.isMissing || asked.has(`${model.name} ${id}`);
  // What the second model alone knows has no place on the first one's map.
  const wanted = [...history, ...lists[0].ids].filter((id) => !known(id)).slice(0, 100);
  if (!wanted.length || mapOf !== model || !map.items.size) return;
  for (const id of wanted) asked.add(`${model.name} ${id}`);
  try {
    const found = await ask("/v1/map", { query: { model: model.name, limit: 0, item: wanted } });
    if (mapOf === model) map.addItems(found.items);
  } catch {
    // Without a place they are not marked; their list tells of them all the same.
  }
}

function prepare() {
  replace(byId("model"), models.map((model) => option(model.name)));
  byId("model").disabled = false;
  byId("other-label").hidden = models.length < 2;
  byId("search").disabled = false;
  byId("k").max = limits.max_k;
  map = new ItemMap({ add, similar: (item) => showSimilar(item, first(), { add }) });
  search(byId("search"), byId("found"), {
    model: () => first().name,
    item: add,
    user: (id) => change({ user: id, history: [] }),
  });
  byId("model").addEventListener("change", (event) => {
    const model = event.target.value;
    // The two change places, rather than the comparison end.
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
    state = read(location.hash);
    update();
  });
}

async function start() {
  replace(byId("panels"), h("p", { class: "quiet" }, "Asking the server what it serves…"));
  try {
    ({ models, limits } = await ask("/v1/model"));
  } catch (error) {
    replace(byId("panels"), alertOf(error, start));
    return;
  }
  prepare();
  state = read(location.hash);
  update();
}

byId("skip").addEventListener("click", (event) => {
  event.preventDefault();
  byId("results").focus();
});
keysFrom(askForKey);
prepareDialogs();
start();
