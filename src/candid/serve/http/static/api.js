/** Requests to the server. */

const KEY = "candid-key";

let promptForKey = async () => null;
let pendingKey = null;

/** Set the function that prompts for a key: it gets a message and returns a key or null. */
export function setKeyPrompt(prompt) {
  promptForKey = prompt;
}

/** An error of a request, with the message of the server. */
export class ApiError extends Error {
  constructor(message, { status = 0, code = null, field = null, retryAfter = null } = {}) {
    super(message);
    Object.assign(this, { status, code, field, retryAfter });
  }
}

/** Whether a request was cancelled because a newer one replaced it. */
export const isAborted = (error) => error.name === "AbortError";

/**
 * Send a request.
 *
 * @param {string} path - under the server's address.
 * @param {object} options - `query`: parameters, lists repeated; `body`: sent as JSON by POST;
 *   `signal`: to cancel.
 * @returns {Promise<object>} the answer; integers beyond the precision of JavaScript numbers are strings.
 */
export async function request(path, { query = {}, body = null, signal = null } = {}) {
  const sentKey = sessionStorage.getItem(KEY);
  const answer = await send(path, query, body, signal, sentKey);
  const { status } = answer;
  if (answer.ok) return parse(await answer.text());
  const error = await errorOf(answer);
  if (status === 401 || error.code === "wrong_key") {
    // Another request may have obtained a key meanwhile.
    const key = sessionStorage.getItem(KEY);
    if ((key !== null && key !== sentKey) || (await promptOnce(error.message))) {
      return request(path, { query, body, signal });
    }
  }
  throw error;
}

async function send(path, query, body, signal, key) {
  const parameters = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) {
    for (const each of [value].flat()) {
      if (each !== null && each !== undefined) parameters.append(name, each);
    }
  }
  const headers = body === null ? {} : { "content-type": "application/json" };
  if (key !== null) headers.authorization = `Bearer ${asBytes(key)}`;
  const text = parameters.size ? `${path}?${parameters}` : path;
  try {
    return await fetch(text, {
      method: body === null ? "GET" : "POST",
      body: body === null ? undefined : JSON.stringify(body),
      headers,
      signal,
    });
  } catch (error) {
    if (isAborted(error)) throw error;
    throw new ApiError("the server does not respond: check that it is running");
  }
}

/** Show one dialog for all requests that need a key. */
async function promptOnce(message) {
  pendingKey ??= promptForKey(message).finally(() => {
    pendingKey = null;
  });
  const key = await pendingKey;
  if (key === null) return false;
  sessionStorage.setItem(KEY, key);
  return true;
}

async function errorOf(answer) {
  const details = { status: answer.status };
  const wait = Number(answer.headers.get("retry-after"));
  if (wait > 0) details.retryAfter = wait;
  try {
    const { error } = await answer.json();
    return new ApiError(error.message, { ...details, code: error.code, field: error.field });
  } catch {
    return new ApiError(`the server responded with status ${answer.status}`, details);
  }
}

/** Header values are bytes: encode as UTF-8, one character per byte. */
function asBytes(text) {
  return String.fromCharCode(...new TextEncoder().encode(text));
}

function parse(text) {
  return JSON.parse(text, (_, value, context) => {
    const isLost = typeof value === "number" && !Number.isSafeInteger(value);
    return isLost && /^-?\d+$/.test(context?.source ?? "") ? context.source : value;
  });
}
