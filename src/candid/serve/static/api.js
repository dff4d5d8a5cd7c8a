/** Questions to the server. */

const KEY = "candid-key";

let askForKey = async () => null;
let asking = null;

/** Say how to get a key from the reader: a function of a message, to a key or null. */
export function keysFrom(ask) {
  askForKey = ask;
}

/** What is wrong with a request, in the words of the server. */
export class ApiError extends Error {
  constructor(message, { status = 0, code = null, field = null, retryAfter = null } = {}) {
    super(message);
    Object.assign(this, { status, code, field, retryAfter });
  }
}

/** Whether a request was given up because a newer one took its place. */
export const isAborted = (error) => error.name === "AbortError";

/**
 * Ask the server.
 *
 * @param {string} path - under the server's address.
 * @param {object} options - `query`: parameters, lists repeated; `body`: sent as JSON by POST;
 *   `signal`: to give up.
 * @returns {Promise<object>} the answer; integers that no number of JavaScript holds are strings.
 */
export async function ask(path, { query = {}, body = null, signal = null } = {}) {
  const used = sessionStorage.getItem(KEY);
  const answer = await send(path, query, body, signal, used);
  const { status } = answer;
  if (answer.ok) return parsed(await answer.text());
  const error = await errorOf(answer);
  if (status === 401 || error.code === "wrong_key") {
    // Another request may have got a key meanwhile.
    const key = sessionStorage.getItem(KEY);
    if ((key !== null && key !== used) || (await newKey(error.message))) {
      return ask(path, { query, body, signal });
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
    throw new ApiError("the server does not answer: is it running?");
  }
}

/** One dialog for all requests that wait for a key. */
async function newKey(message) {
  asking ??= askForKey(message).finally(() => {
    asking = null;
  });
  const key = await asking;
  if (key === null) return false;
  sessionStorage.setItem(KEY, key);
  return true;
}

async function errorOf(answer) {
  const facts = { status: answer.status };
  const wait = Number(answer.headers.get("retry-after"));
  if (wait > 0) facts.retryAfter = wait;
  try {
    const { error } = await answer.json();
    return new ApiError(error.message, { ...facts, code: error.code, field: error.field });
  } catch {
    return new ApiError(`the server answered with status ${answer.status}`, facts);
  }
}

/** Headers hold bytes: those of UTF-8, one character each. */
function asBytes(text) {
  return String.fromCharCode(...new TextEncoder().encode(text));
}

function parsed(text) {
  return JSON.parse(text, (_, value, context) => {
    const isLost = typeof value === "number" && !Number.isSafeInteger(value);
    return isLost && /^-?\d+$/.test(context?.source ?? "") ? context.source : value;
  });
}
