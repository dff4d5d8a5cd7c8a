/**
 * Elements and texts of the page. Data from the server is inserted as text, never as HTML; the
 * content security policy blocks anything else.
 */

/**
 * Create an element.
 *
 * @param {string} tag - its name.
 * @param {object} attributes - true: present without a value; false, null: absent; `onclick` and
 *   the like: listeners.
 * @param {...(Node|string|number|null|false|Array)} children - text or nodes; null is skipped.
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

/** Return the element with an id. */
export const byId = (id) => document.getElementById(id);

/** Announce a change to screen readers. */
export function announce(text) {
  byId("announcement").textContent = text;
}

/** Return the title of an item, or its id if it has no title. */
export function titleOf(item) {
  return item.title || `Item ${item.item}`;
}

const whole = new Intl.NumberFormat("en");

/** Format a count with a thousands separator. */
export const count = (number) => whole.format(number);

/** Format a count with its noun: "1 item", "2 items". */
export const plural = (number, word, words = `${word}s`) => `${count(number)} ${number === 1 ? word : words}`;

/** Format a probability in percent with two significant digits. */
export function percent(probability) {
  if (probability < 1e-5) return "< 0.001 %";
  return `${Number((100 * probability).toPrecision(2))} %`;
}

/** Return the median; NaN for an empty list. */
export function median(numbers) {
  const sorted = [...numbers].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  if (!sorted.length) return NaN;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

/**
 * Create an alert with the message of the server.
 *
 * @param {Error} error - its message is one sentence.
 * @param {?function} retry - called by the "Try again" button; null: no button.
 */
export function alertOf(error, retry = null) {
  const wait = error.retryAfter ? ` Try again in ${plural(error.retryAfter, "second")}.` : "";
  return h(
    "div",
    { class: "alert", role: "alert" },
    h("p", {}, h("strong", {}, "Request failed. "), `${sentence(error.message)}${wait}`),
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
 * Replace the content of an element and keep the keyboard focus: on the same control, or on the
 * control at its position if it was removed.
 */
export function replace(root, ...children) {
  const focused = root.contains(document.activeElement) ? document.activeElement : null;
  const name = focused?.dataset.control;
  const type = name?.split(" ")[0];
  const ofType = () => [...root.querySelectorAll(`[data-control^="${type} "]`)];
  const position = type ? ofType().indexOf(focused) : -1;
  root.replaceChildren(...children.flat().filter((child) => child !== null && child !== false));
  if (!focused || focused.isConnected) return;
  const controls = type ? ofType() : [];
  const same = controls.find((control) => control.dataset.control === name);
  const next = same ?? controls[Math.min(position, controls.length - 1)] ?? fallback(root);
  next?.focus({ preventScroll: true });
}

function fallback(root) {
  const section = root.closest("section, dialog");
  return section?.id === "query" ? byId("search") : section;
}
