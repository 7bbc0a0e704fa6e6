// Requests to the server: JSON in and out, errors in the server's words, and an API key kept as long as the tab.

import { el, field } from "./dom.js";
import { t } from "./i18n.js";

const KEY = "kexue-key";

export class ApiError extends Error {
  constructor(message, status, retryAfter = null) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

export const hasKey = () => sessionStorage.getItem(KEY) !== null;
export const forgetKey = () => sessionStorage.removeItem(KEY);

/** Send a request; a body makes it a POST. Paths are relative, so the page also works below a proxy's prefix. */
async function send(path, { body, signal }) {
  const headers = {};
  if (hasKey()) headers.Authorization = `Bearer ${sessionStorage.getItem(KEY)}`;
  if (body) headers["Content-Type"] = "application/json";
  const request = { method: body ? "POST" : "GET", headers, signal, body: body && JSON.stringify(body) };
  try {
    return await fetch(new URL(path, document.baseURI), request);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(t("unreachable"), 0);
  }
}

/** Ask the server for one answer. */
export async function ask(path, { body, signal } = {}) {
  const response = await send(path, { body, signal });
  const answer = await response.json().catch(() => null);
  if (response.ok && answer !== null) return answer;
  throw refusal(response, answer);
}

/** Ask the server for a stream of events; each goes to `take`. */
export async function stream(path, { body, signal }, take) {
  const response = await send(path, { body, signal });
  if (!response.ok) throw refusal(response, await response.json().catch(() => null));
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  let last = null;
  for (;;) {
    const { done, value } = await reader.read().catch((error) => {
      throw error.name === "AbortError" ? error : new ApiError(t("unreachable"), 0);
    });
    const parts = (text + (value ?? "")).split("\n\n");
    text = parts.pop();
    for (const part of parts) {
      last = JSON.parse(part.slice("data: ".length));
      if (last.error) throw new ApiError(last.error.message, response.status);
      if (signal?.aborted) return;
      take(last);
    }
    if (done) break;
  }
  if (!last?.done) throw new ApiError(t("unreachable"), 0); // cut off
}

function refusal(response, answer) {
  const said = answer?.error?.message ?? (typeof answer?.error === "string" ? answer.error : null);
  const fallback = t("status", { status: response.status });
  return new ApiError(said ?? fallback, response.status, response.headers.get("Retry-After"));
}

/** Runs one request at a time: a newer one aborts the older. */
export class Latest {
  #controller = null;

  abort() {
    this.#controller?.abort();
    this.#controller = null;
  }

  /** What `question(signal)` resolves to goes to `then`, its failure to `fail`; neither when it was overtaken. */
  async run(question, then, fail) {
    this.abort();
    const controller = (this.#controller = new AbortController());
    try {
      const answer = await question(controller.signal);
      if (!controller.signal.aborted) then(answer);
    } catch (error) {
      if (!controller.signal.aborted) fail(error);
      if (!(error instanceof ApiError) && error.name !== "AbortError") console.error(error);
    }
  }
}

/** An error in its place: the server's message, and a field for the key when that is what it wants. */
export function problem(error, retry) {
  const box = el("div", { class: "problem", role: "alert" });
  box.append(el("p", {}, el("strong", {}, t("failed")), " ", error.message));
  if (error.retryAfter) box.append(el("p", {}, t("retryAfter", { seconds: error.retryAfter })));
  if (error.status === 401) box.append(keyForm(retry));
  else box.append(el("p", {}, el("button", { type: "button", onclick: retry }, t("again"))));
  return box;
}

function keyForm(retry) {
  const input = el("input", { type: "password", autocomplete: "off", spellcheck: "false", required: true });
  const submit = (event) => {
    event.preventDefault();
    sessionStorage.setItem(KEY, input.value.trim());
    document.dispatchEvent(new Event("kexue-key"));
    retry();
  };
  return el(
    "form",
    { class: "row", onsubmit: submit },
    field(t("key"), input),
    el("button", { type: "submit" }, t("useKey")),
    el("p", { class: "note" }, t("keyNote")),
  );
}
