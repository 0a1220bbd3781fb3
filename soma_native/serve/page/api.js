// Talks to the server: addresses are relative to the page's, errors come out in plain words.

export class Refusal extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

const KEY = "soma-key";
const MEANINGS = {
  401: "The server wants an API key: enter it under “Connection”.",
  403: "The server refuses requests from this page.",
  404: "The server does not have this.",
  408: "The request took the server too long.",
  413: "The text is too long for the server.",
  429: "The server is busy: wait a moment and try again.",
  503: "The server is busy or stops: wait a moment and try again.",
  504: "The answer took the server too long.",
};

// The API key lives in this tab alone.
export const getKey = () => sessionStorage.getItem(KEY) ?? "";
export const setKey = (key) => (key ? sessionStorage.setItem(KEY, key) : sessionStorage.removeItem(KEY));

// The words for an answer that is an error: the server's own, and what its status means.
async function refusal(response) {
  let said = "";
  try {
    const { error } = await response.json();
    said = typeof error === "string" ? error : (error?.message ?? "");
  } catch {
    // Something between the page and the server answered, without JSON.
  }
  const meaning = MEANINGS[response.status] ?? (response.status >= 500 ? "The server failed." : "");
  const words = response.status === 400 && said ? [said] : [meaning, said];
  return new Refusal(words.filter(Boolean).join(" ") || `The server answered with status ${response.status}.`, response.status);
}

async function ask(path, body, signal) {
  const headers = { ...(getKey() && { Authorization: `Bearer ${getKey()}` }) };
  const options = { headers, signal };
  if (body) Object.assign(options, { method: "POST", body: JSON.stringify(body) });
  if (body) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal("The server does not answer. Does `soma-native serve` still run?");
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

export async function get(path) {
  return (await ask(path)).json();
}

export async function post(path, body, signal) {
  return (await ask(path, body, signal)).json();
}

// The events of a stream (server-sent events), parsed.
export async function* stream(path, body, signal) {
  const response = await ask(path, { ...body, stream: true, stream_options: { include_usage: true } }, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      signal?.throwIfAborted();
      if (done) break;
      buffer += value;
      const events = buffer.split(/\r?\n\r?\n/);
      buffer = events.pop();
      for (const event of events) {
        const lines = event.split(/\r?\n/).filter((line) => line.startsWith("data:"));
        const data = lines.map((line) => line.slice(5).trimStart()).join("\n");
        if (data === "[DONE]") return;
        if (data === "") continue;
        const document = JSON.parse(data);
        if (document.error) throw new Refusal(document.error.message ?? "The server failed while it wrote.");
        yield document;
      }
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof Refusal) throw error;
    throw new Refusal("The connection broke while the model wrote.");
  } finally {
    reader.cancel().catch(() => {});
  }
  throw new Refusal("The connection ended before the model did.");
}
