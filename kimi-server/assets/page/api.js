// The server's API, as any client uses it.

import { setting } from "./store.js";

/** What went wrong, in the server's words. */
export class ApiError extends Error {
  constructor(message, { status = 0, code = "", retryAfter = null } = {}) {
    super(message);
    this.status = status;
    this.code = code;
    this.retryAfter = retryAfter;
  }
}

function headers(extra = {}) {
  const key = setting("key", "");
  return key ? { ...extra, authorization: `Bearer ${key}` } : extra;
}

async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { ...options, headers: headers(options.headers) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server can't be reached. Is `kimi serve` still running?");
  }
  return response;
}

async function failure(response) {
  const retryAfter = parseInt(response.headers.get("retry-after"), 10) || null;
  const text = await response.text();
  try {
    const { message, code } = JSON.parse(text).error;
    return new ApiError(message, { status: response.status, code, retryAfter });
  } catch {
    return new ApiError(`The server answered ${response.status}: ${text.slice(0, 300)}`, { status: response.status, retryAfter });
  }
}

/** The models that are served. */
export async function models() {
  const response = await ask("/v1/models");
  if (!response.ok) throw await failure(response);
  return (await response.json()).data;
}

/** The state of the server; its body is there too where it can't answer chats. */
export async function health() {
  const response = await ask("/health");
  return response.json();
}

/** Values of /metrics by name and labels; null if they need another key. */
export async function metrics() {
  const response = await ask("/metrics");
  if (!response.ok) return null;
  const values = new Map();
  for (const line of (await response.text()).split("\n")) {
    const found = line.match(/^([a-z_]+(?:\{.*\})?) ([^ ]+)$/);
    if (found) values.set(found[1], Number(found[2]));
  }
  return values;
}

/** Asks for an answer and hands each event's data to `take`. Ends with the stream. */
export async function chat(body, signal, take) {
  const response = await ask("/v1/chat/completions", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  if (!response.ok) throw await failure(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    let step;
    try {
      step = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError("The connection broke before the answer was complete.");
    }
    if (step.done) throw new ApiError("The answer ended before it was complete.");
    const lines = (rest + step.value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      const data = line.startsWith("data:") ? line.slice(5).trim() : "";
      if (data === "[DONE]") return;
      if (data === "") continue;
      const event = JSON.parse(data);
      if (event.error) throw new ApiError(event.error.message, { code: event.error.code });
      take(event);
    }
  }
}
