/** Dialogs: items similar to an item, and the prompt for a key. */

import { isAborted, request } from "./api.js";
import { alertOf, byId, h, replace, titleOf } from "./dom.js";
import { rows } from "./results.js";

const K = 10;
let pending = new AbortController();

/**
 * Show the items similar to an item.
 *
 * @param {object} item - the item.
 * @param {object} model - its entry of `/v1/model`.
 * @param {object} handlers - `add(item)`.
 */
export async function showSimilar(item, model, handlers) {
  pending.abort();
  pending = new AbortController();
  const { signal } = pending;
  const dialog = byId("similar");
  const content = byId("similar-body");
  byId("similar-heading").textContent = `Similar to ${titleOf(item)}`;
  replace(content, h("p", { class: "quiet" }, "Loading…"));
  if (!dialog.open) dialog.showModal();
  try {
    const body = { item: item.item, k: K, model: model.name };
    const answer = await request("/v1/similar", { body, signal });
    const list = rows(answer.items, {
      model,
      scoreName: "cosine",
      handlers: {
        add: (selected) => {
          dialog.close();
          handlers.add(selected);
        },
        similar: (selected) => showSimilar(selected, model, handlers),
      },
    });
    replace(content, h("p", { class: "quiet" }, `Ranked by the cosine of item vectors of ${model.name}.`), list);
    dialog.scrollTop = 0;
  } catch (error) {
    if (isAborted(error)) return;
    replace(content, alertOf(error, () => showSimilar(item, model, handlers)));
  }
}

/** Prompt for a key; null: the dialog was cancelled. */
export function promptForKey(message) {
  const dialog = byId("key");
  byId("key-message").textContent = message;
  byId("key-input").value = "";
  dialog.showModal();
  return new Promise((resolve) => {
    const done = new AbortController();
    const { signal } = done;
    let key = null;
    byId("key-form").addEventListener(
      "submit",
      (event) => {
        event.preventDefault();
        key = byId("key-input").value.trim() || null;
        dialog.close();
      },
      { signal },
    );
    byId("key-cancel").addEventListener("click", () => dialog.close(), { signal });
    dialog.addEventListener(
      "close",
      () => {
        done.abort();
        resolve(key);
      },
      { signal },
    );
  });
}

/** Attach the handlers that close the dialogs. */
export function setUpDialogs() {
  const dialog = byId("similar");
  byId("similar-close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => pending.abort());
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });
}
