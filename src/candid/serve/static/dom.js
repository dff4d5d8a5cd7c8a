/**
 * Elements and words of the page. Whatever comes from the server is inserted as text, never as
 * HTML; the content security policy refuses anything else.
 */

/**
 * Make an element.
 *
 * @param {string} tag - its name.
 * @param {object} attributes - true: present without a value; false, null: absent; `onclick` and
 *   the like: listeners.
 * @param {...(Node|string|number|null|false|Array)} children - text or nodes; null: nothing.
 */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) {
      element.setAttribute(name, value);
    }
  }
  element.append(...children.flat().filter((child) => child !== null && child !== false));
  return element;
}

/** The element of an id. */
export const byId = (id) => document.getElementById(id);

/** Tell a screen reader what happened. */
export function say(text) {
  byId("said").textContent = text;
}

/** What an item is called. */
export function titleOf(item) {
  return item.title || `Item ${item.item}`;
}

const whole = new Intl.NumberFormat("en");

/** A count with thousands apart. */
export const count = (number) => whole.format(number);

/** "1 item", "2 items". */
export const plural = (number, word) => `${count(number)} ${word}${number === 1 ? "" : "s"}`;

/** A probability in percent, two digits. */
export function percent(probability) {
  if (probability < 1e-5) return "< 0.001 %";
  return `${Number((100 * probability).toPrecision(2))} %`;
}

/** The median; NaN of nothing. */
export function median(numbers) {
  const sorted = [...numbers].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  if (!sorted.length) return NaN;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

/**
 * An error as the server tells it.
 *
 * @param {Error} error - its message is one sentence.
 * @param {?function} retry - what to do again; null: it would change nothing.
 */
export function alertOf(error, retry = null) {
  const wait = error.retryAfter ? ` Try again in ${plural(error.retryAfter, "second")}.` : "";
  return h(
    "div",
    { class: "alert", role: "alert" },
    h("p", {}, h("strong", {}, "This did not work. "), `${sentence(error.message)}${wait}`),
    error.code
      ? h("p", { class: "quiet" }, `${error.code}${error.field ? ` in ${error.field}` : ""}`)
      : null,
    retry ? h("button", { type: "button", onclick: retry }, "Try again") : null,
  );
}

function sentence(message) {
  const text = message.charAt(0).toUpperCase() + message.slice(1);
  return /[.!?…]$/.test(text) ? text : `${text}.`;
}

/**
 * Replace the content of an element, and let the keyboard stay where it was: on the same control,
 * or where that is gone on the one that took its place.
 */
export function replace(root, ...children) {
  const focused = root.contains(document.activeElement) ? document.activeElement : null;
  const name = focused?.dataset.control;
  const kind = name?.split(" ")[0];
  const alike = () => [...root.querySelectorAll(`[data-control^="${kind} "]`)];
  const place = kind ? alike().indexOf(focused) : -1;
  root.replaceChildren(...children.flat().filter((child) => child !== null && child !== false));
  if (!focused || focused.isConnected) return;
  const now = kind ? alike() : [];
  const same = now.find((control) => control.dataset.control === name);
  const next = same ?? now[Math.min(place, now.length - 1)] ?? fallback(root);
  next?.focus({ preventScroll: true });
}

function fallback(root) {
  const section = root.closest("section, dialog");
  return section?.id === "ask" ? byId("search") : section;
}
