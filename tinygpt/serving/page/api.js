// The server's public interface, as any client sees it: OpenAI's paths, streams and errors.

let key = "";  // nowhere but here

export const useKey = (given) => { key = given; };
export const hasKey = () => key !== "";

// An error with a sentence of the server's, or "unreachable", or "broken" for a stream that ended too early.
export class Refused extends Error {
  constructor(kind, message = "", status = 0, code = null) {
    super(message || kind);
    Object.assign(this, { kind, status, code });
  }
}

async function request(path, options = {}) {
  const headers = { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("unreachable");
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  const { message = `HTTP ${response.status}`, code } = body?.error ?? {};
  throw new Refused("refused", message, response.status, code);
}

const post = (path, body, signal) => request(path, { method: "POST", body: JSON.stringify(body), signal });

// The model that is served: its name, and how many tokens fit into its context.
export async function model() {
  const found = await (await request("v1/models")).json();
  return { name: found.data[0].id, block: found.data[0].max_model_len };
}

// The ids of a prompt: a completion of no tokens tells them.
export async function promptIds(name, prompt, signal) {
  const body = { model: name, prompt, max_tokens: 0, return_token_ids: true };
  return (await (await post("v1/completions", body, signal)).json()).choices[0].prompt_token_ids;
}

// The chunks of a stream: {text, tokens, reason}. A token is {id, bytes, logprob, top_logprobs}.
export async function* stream(path, body, signal) {
  const response = await post(path, { ...body, stream: true }, signal);
  for await (const data of events(response.body, signal)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Refused("refused", chunk.error.message, 500);
    const choice = chunk.choices[0];
    if (choice) {
      yield { text: choice.text ?? choice.delta?.content ?? "", tokens: choice.logprobs?.content ?? [],
        reason: choice.finish_reason };
    }
  }
  throw new Refused("broken");
}

// The data of each server-sent event.
async function* events(body, signal) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  while (true) {
    let read;
    try {
      read = await reader.read();
    } catch (error) {
      throw signal.aborted ? error : new Refused("broken");
    }
    if (read.done) return;
    const parts = (held + read.value).split("\n\n");
    held = parts.pop();
    for (const part of parts) if (part.startsWith("data: ")) yield part.slice(6);
  }
}
