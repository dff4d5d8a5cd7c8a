/** What lies over the page: items similar to one, and the question for a key. */

import { ask, isAborted } from "./api.js";
import { alertOf, byId, h, replace, titleOf } from "./dom.js";
import { rows } from "./results.js";

const MOST = 10;
let request = new AbortController();

/**
 * Show items near an item.
 *
 * @param {object} item - near which.
 * @param {object} model - its entry of `/v1/model`.
 * @param {object} event_types - `add(item)`.
 */
export async function showSimilar(item, model, event_types) {
  request.abort();
  request = new AbortController();
  const { signal } = request;
  const dialog = byId("similar");
  const body = byId("similar-body");
  byId("similar-heading").textContent = `Similar to ${titleOf(item)}`;
  replace(body, h("p", { class: "quiet" }, "Asking the model…"));
  if (!dialog.open) dialog.showModal();
  try {
    const question = { item: item.item, k: MOST, model: model.name };
    const answer = await ask("/v1/similar", { body: question, signal });
    const listed = rows(answer.items, {
      model,
      scoreName: "cosine",
      event_types: {
        add: (chosen) => {
          dialog.close();
          event_types.add(chosen);
        },
        similar: (chosen) => showSimilar(chosen, model, event_types),
      },
    });
    replace(body, h("p", { class: "quiet" }, `By cosine of the vectors of ${model.name}.`), listed);
    dialog.scrollTop = 0;
  } catch (error) {
    if (isAborted(error)) return;
    replace(body, alertOf(error, () => showSimilar(item, model, event_types)));
  }
}

/** Ask the reader for a key; null: none is given. */
export function askForKey(message) {
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

/** Make the dialogs close. */
export function prepareDialogs() {
  const dialog = byId("similar");
  byId("similar-close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => request.abort());
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });
}
