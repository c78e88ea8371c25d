// The page: what its buttons and keys do. A writing is a text that the model writes: {view, ask, shorten, past}, where
// ask(kept) is the request that goes on after the tokens kept, shorten() makes it shorter if it is too long for the model
// and can be, and past is what undoing brings back.

import * as alternatives from "./alternatives.js";
import { Refused, model, promptIds, stream, useKey } from "./api.js";
import { hideError, showError, tell } from "./notices.js";
import { textOf, upTo } from "./pieces.js";
import { mostTokens, options, start, systemMessage } from "./settings.js";
import { keepSaying, number, say } from "./words.js";
import { Written } from "./written.js";

const USUAL = 200, TOP = 5;  // new tokens, unless the reader says how many; alternatives of each
const $ = (id) => document.getElementById(id);
const [prompt, output] = [$("prompt"), $("output")];
let served = null;  // {name, block}
let mode = "text";
let text = null;  // the writing in mode text
let turns = [];  // of the chat: {user, element, writing}
let omitted = 0;  // of the turns: the oldest ones, which no longer fit into the model's context
let running = null;  // {controller, writing, seed, count}
const drafts = { text: "", chat: "" };

const latest = () => mode === "text" ? text : turns.at(-1)?.writing;

// Writing ------------------------------------------------------------------------------------------

function writing(given, ask, shorten = () => false) {
  const made = { ask, shorten, past: [], view: new Written(given, (piece) => alternatives.open(piece, (i, candidate) => {
    const kept = made.view.tokens.slice(0, piece.first + i), old = made.view.tokens[piece.first + i];
    forget(made);
    run(made, [...kept, { ...candidate, top_logprobs: alternatives.candidates(old), chosen: true }]);
  })) };
  return made;
}

// Let the model go on after the tokens kept.
async function run(made, kept) {
  halt();
  const before = made.view.tokens, settings = options(), began = performance.now(), fresh = [];
  const mine = running = { controller: new AbortController(), writing: made, seed: settings.seed, count: 0 };
  made.past.push(before);
  made.view.show(kept);
  made.view.writing = true;
  hideError();
  status(() => say("writing"));
  let received = "", reason = null;
  try {
    for await (const chunk of fitting(made, kept, settings, mine.controller.signal)) {
      if (running !== mine) return;
      const following = innerHeight + scrollY > document.documentElement.scrollHeight - 60;
      received += chunk.text;
      fresh.push(...chunk.tokens);
      mine.count = fresh.length;
      chunk.tokens.forEach((token) => made.view.append(token));
      if (following) scrollTo(0, document.documentElement.scrollHeight);
      reason = chunk.reason ?? reason;
    }
    if (running === mine) finish(mine, kept, fresh, received, reason, (performance.now() - began) / 1000);
  } catch (error) {
    if (running === mine) giveUp(mine, before, fresh, error);
  }
}

// The chunks of a stream of the longest request that fits.
async function* fitting(made, kept, settings, signal) {
  while (true) {
    const { path, body } = await made.ask(kept, signal);
    try {
      yield* stream(path, { model: served.name, return_token_ids: true, ...settings, ...body }, signal);
      return;
    } catch (error) {
      if (error.code !== "context_length_exceeded" || !made.shorten()) throw error;
    }
  }
}

function finish({ writing: made, seed }, kept, fresh, received, reason, seconds) {
  rest();
  if (reason === "stop") made.view.show([...kept, ...upTo(fresh, received)]);
  const count = fresh.length, speed = count / seconds;
  status(() => say("done", { tokens: count, seconds: number(seconds), speed: number(speed), seed,
    reason: say(reason === "length" ? "length" : "ended") + (mode === "chat" && omitted ? say("omitted") : "") }));
  $("spoken").textContent = textOf(made.view.tokens.slice(kept.length));
}

function giveUp({ writing: made }, before, fresh, error) {
  rest();
  status(() => "");
  if (!fresh.length) {
    made.view.show(before);
    made.past.pop();
    if (mode === "chat" && !before.length) takeBack();
  }
  buttons();
  complain(error);
}

// What ran is over.
function rest() {
  running.writing.view.writing = false;
  running = null;
  buttons();
}

// End what runs, here and on the server. Returns what it was.
function halt() {
  const was = running;
  was?.controller.abort();
  if (was) rest();
  return was;
}

function stop() {
  const was = halt();
  if (was) status(() => say("stopped", { tokens: was.count, seed: was.seed }));
}

// Text ---------------------------------------------------------------------------------------------

function writeText() {
  halt();
  const given = prompt.value;
  let ids = null;
  text = writing(given, async (kept, signal) => {
    await connect();
    ids ??= await promptIds(served.name, given, signal);
    const whole = [...ids, ...kept.map((token) => token.id)], room = served.block - whole.length;
    if (room < 1) throw new Refused("full");
    const most = Math.min(mostTokens() ?? USUAL, room);
    return { path: "v1/completions", body: { prompt: whole, max_tokens: most, logprobs: TOP } };
  });
  output.replaceChildren(text.view.element);
  return run(text, []);
}

// Chat ---------------------------------------------------------------------------------------------

function send() {
  const user = prompt.value;
  if (!user.trim()) return complain(new Refused("noMessage"));
  halt();
  prompt.value = "";
  const place = turns.length, element = document.createElement("article");
  let limited = true;
  const answer = writing("", async (kept) => {
    await connect();
    const most = mostTokens() ?? Math.min(USUAL, served.block >> 2);
    return { path: "v1/chat/completions", body: { messages: messages(place), logprobs: true, top_logprobs: TOP,
      answer_token_ids: kept.map((token) => token.id), ...(limited && { max_tokens: most }) } };
  }, () => {
    // Half of the turns at once: what then begins alike for some time, the server need not read again.
    if (omitted < place) for (const last = omitted + Math.ceil((place - omitted) / 2); omitted < last;) omit();
    else if (limited) limited = false;  // as many tokens as fit
    else return false;
    return true;
  });
  const [you, said, it] = ["h2", "p", "h2"].map((tag) => document.createElement(tag));
  keepSaying(you, () => say("you"));
  keepSaying(it, () => say("model"));
  said.textContent = user;
  element.className = "turn";
  element.append(you, said, it, answer.view.element);
  turns.push({ user, element, writing: answer });
  output.append(element);
  return run(answer, []);
}

function omit() {
  turns[omitted++].element.classList.add("omitted");
}

// What was said up to the message of turn `place`, as far as it fits.
function messages(place) {
  const system = systemMessage(), found = system ? [{ role: "system", content: system }] : [];
  for (const { user, writing: { view } } of turns.slice(omitted, place)) {
    found.push({ role: "user", content: user }, { role: "assistant", content: textOf(view.tokens).trimStart() });
  }
  return [...found, { role: "user", content: turns[place].user }];
}

// An answer that changes takes back the turns after it.
function forget(answer) {
  const place = turns.findIndex((turn) => turn.writing === answer);
  if (place >= 0) for (const turn of turns.splice(place + 1)) turn.element.remove();
  omitted = Math.min(omitted, turns.length - 1);
  turns.forEach((turn, i) => turn.element.classList.toggle("omitted", i < omitted));
}

// A message without an answer goes back to where it was written.
function takeBack() {
  const turn = turns.pop();
  turn.element.remove();
  prompt.value ||= turn.user;
}

// What the page says -------------------------------------------------------------------------------

const complain = (error) => showError(error, served?.block);

function status(write) {
  tell(write);
  buttons();
}

function buttons() {
  const last = latest(), length = last?.view.tokens.length ?? 0;
  $("write").disabled = running !== null;
  $("stop").disabled = running === null;
  $("continue").disabled = running !== null || !length;
  $("back").disabled = running !== null || !last?.past.some((tokens) => tokens.length);
  $("legend").hidden = !length && !running;
}

function changeMode() {
  halt();
  alternatives.close();
  drafts[mode] = prompt.value;
  mode = document.querySelector("[name=mode]:checked").value;
  document.body.dataset.mode = mode;
  prompt.value = drafts[mode];
  $("ask")[mode === "chat" ? "before" : "after"](output);
  output.replaceChildren(...(mode === "text" ? (text ? [text.view.element] : []) : turns.map((turn) => turn.element)));
  names();
  status(() => "");
}

// Words that depend on the mode.
function names() {
  const chat = mode === "chat";
  $("prompt-label").textContent = say(chat ? "message" : "prompt");
  $("write").textContent = say(chat ? "send" : "write");
  prompt.rows = chat ? 2 : 4;
  $("keys").textContent = say(chat ? "keysChat" : "keysText");
  for (const made of [text, ...turns.map((turn) => turn.writing)]) made?.view.rename();
}

// The server ---------------------------------------------------------------------------------------

// Ask once what is served.
async function connect() {
  if (served) return;
  served = await model();
  keepSaying($("model"), () => say("about", { name: served.name, tokens: served.block }));
}

async function tryKey(event) {
  event.preventDefault();
  useKey($("key").value.trim());
  served = null;
  try {
    await connect();
  } catch (error) {
    return complain(error);
  }
  $("key").value = "";
  $("unlock").hidden = true;
  hideError();
  status(() => say("accepted"));
  prompt.focus();
}

// Buttons and keys ---------------------------------------------------------------------------------

const write = () => mode === "chat" ? send() : writeText();

$("ask").addEventListener("submit", (event) => { event.preventDefault(); write(); });
$("unlock").addEventListener("submit", tryKey);
$("stop").addEventListener("click", stop);
$("continue").addEventListener("click", () => run(latest(), latest().view.tokens));
$("back").addEventListener("click", () => {
  latest().view.show(latest().past.pop());
  status(() => say("undone"));
});
$("clear").addEventListener("click", () => {
  halt();
  if (mode === "chat") [turns, omitted] = [[], 0];
  else text = null;
  output.replaceChildren();
  prompt.value = "";
  hideError();
  status(() => say("cleared"));
  prompt.focus();
});
for (const radio of document.querySelectorAll("[name=mode]")) radio.addEventListener("change", changeMode);
prompt.addEventListener("keydown", (event) => {
  const sends = event.ctrlKey || event.metaKey || (mode === "chat" && !event.shiftKey);
  if (event.key !== "Enter" || event.isComposing || !sends) return;
  event.preventDefault();
  if (!running) write();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") alternatives.isOpen() ? alternatives.close() : stop();
});

document.querySelector("[name=mode][value=text]").checked = true;  // browsers remember forms over a reload
start(names);
buttons();
connect().catch(complain);
