// Requests to the server this page came from.

const KEPT = "onebase.key";

let key = "";
try {
  key = sessionStorage.getItem(KEPT) ?? "";
} catch {
  // storage is switched off: the key lasts until the page is loaded again
}

/** Sends this key with every request, until the tab is closed. */
export function useKey(value) {
  key = value;
  try {
    sessionStorage.setItem(KEPT, value);
  } catch {
    // as above
  }
}

/** What went wrong with a request: `kind` gone, broken, context or refused, and for a refusal its status and message. */
export class RequestError extends Error {
  constructor(kind, status = 0, message = "") {
    super(message);
    this.kind = kind;
    this.status = status;
  }
}

/** Returns the server's JSON answer: GET without a body, else POST. Throws a RequestError, or an AbortError. */
export async function ask(path, body, signal) {
  return (await request(path, body, signal)).json();
}

/** Yields the chunks of a streamed answer. Throws a RequestError, or an AbortError. */
export async function* stream(path, body, signal) {
  const response = await request(path, { ...body, stream: true, stream_options: { include_usage: true } }, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  try {
    while (true) {
      const { done, value } = await reader.read();
      if (done) throw new RequestError("broken");
      const lines = (waiting + value).split("\n");
      waiting = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data:")) continue;
        const data = line.slice(5).trim();
        if (data === "[DONE]") return;
        const chunk = JSON.parse(data);
        if (chunk.error) throw new RequestError("refused", 500, chunk.error.message);
        yield chunk;
      }
    }
  } catch (error) {
    throw error.name === "AbortError" || error instanceof RequestError ? error : new RequestError("broken");
  }
}

async function request(path, body, signal) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const sent = body && { method: "POST", body: JSON.stringify(body), headers: { ...headers, "Content-Type": "application/json" } };
  let response;
  try {
    response = await fetch(path, { headers, signal, cache: "no-store", ...sent });
  } catch (error) {
    throw error.name === "AbortError" ? error : new RequestError("gone");
  }
  if (response.ok) return response;
  const said = (await response.json().catch(() => null))?.error;
  const kind = said?.code === "context_length_exceeded" ? "context" : "refused";
  throw new RequestError(kind, response.status, said?.message);
}
