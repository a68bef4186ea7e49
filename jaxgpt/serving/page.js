"use strict";
const $ = (id) => document.getElementById(id);
const ALTERNATIVES = 5, END = "<|endoftext|>";
let running = null;   // the AbortController of the request under way
let points = [];      // characters of the new text: the server's offsets count code points
let parts = [];       // tokens whose character is not whole yet
let last = null;      // the newest token's element
let before = "";      // what stands before the new text: the prompt, and what was continued
let turns = [];       // the messages of a chat
let asked = null;     // where the newest answer begins, and how many turns there were before it

function say(text, bad = false) {
  $("status").textContent = text;
  $("status").classList.toggle("bad", bad);
}

function headers() {
  const found = { "Content-Type": "application/json" };
  if ($("key").value) found.Authorization = "Bearer " + $("key").value;
  return found;
}

async function ask(path, options = {}) {
  const answer = await fetch(path, { ...options, headers: headers() });
  if (answer.ok) return answer;
  if (answer.status === 401) {
    $("lock").hidden = false;
    $("key").focus();
    throw new Error("The server asks for its key.");
  }
  const wait = answer.headers.get("Retry-After");
  let reason = "The server answered " + answer.status + ".";
  try { reason = (await answer.json()).error.message; } catch { /* not our server's words: the status says enough */ }
  throw new Error(reason + (wait ? " (in " + wait + " s)" : ""));
}

async function showModel() {
  const found = (await (await ask("v1/models")).json()).data[0];
  $("model").textContent = found.id + " · context of " + found.context_length + " tokens";
  $("length").max = found.max_tokens;
  $("length").value = Math.min($("length").valueAsNumber, found.max_tokens);
  $("modes").hidden = !found.chat;
  if (!found.chat) $("mode-text").checked = true;
  showMode();
}

// Server-sent events of a response, as the text of their data.
async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const found = (held + value).split("\n\n");
    held = found.pop();
    for (const event of found) yield event.replace(/^data: /, "");
  }
}

const chatting = () => $("mode-chat").checked;
const stops = () => $("stops").value.split("\n").filter(Boolean).map((text) =>
  text.replace(/\\([nrt\\])/g, (_, letter) => ({ n: "\n", r: "\r", t: "\t", "\\": "\\" })[letter]));

function showMode() {
  const chat = chatting();
  $("prompt-label").textContent = chat ? "Your message" : "Prompt";
  $("continue").hidden = chat;
  $("clear").hidden = !chat;
}

function clear() {
  turns = []; before = ""; points = []; parts = []; last = null; asked = null;
  hideTip();
  closeInside();
  $("text").replaceChildren();
  $("continue").disabled = $("again").disabled = $("copy").disabled = $("look").disabled = true;
}

// What is asked anew: in a chat, the message is added to the turns; otherwise the text begins with the prompt.
function generate() {
  if (running || !$("form").reportValidity()) return;
  if (!chatting()) {
    clear();
    before = $("prompt").value;
    $("text").append(element("span", "given", before));
  } else if ($("prompt").value) {
    turns.push({ role: "user", content: $("prompt").value });
    $("text").append(element("span", "speaker", "You"), element("span", "given", $("prompt").value));
    $("text").append(element("span", "speaker", "Model"));
    $("prompt").value = "";
  } else return;
  write();
}

// The text goes on where it ended.
function goOn() {
  if (running || !asked) return;
  before += points.join("");
  write();
}

// The newest answer is written again, with another seed unless one is given.
function again() {
  if (running || !asked) return;
  if (chatting()) turns.length = asked.turns;
  while ($("text").lastChild !== asked.after) $("text").lastChild.remove();
  write();
}

function request(seed) {
  const shared = {
    max_tokens: $("length").valueAsNumber, temperature: $("temperature").valueAsNumber,
    top_k: $("top-k").valueAsNumber, top_p: $("top-p").valueAsNumber, min_p: $("min-p").valueAsNumber,
    stop: stops(), stream: true, stream_options: { include_usage: true },
  };
  const own = chatting() ? { messages: turns, logprobs: true, top_logprobs: ALTERNATIVES }
    : { prompt: before, logprobs: ALTERNATIVES };
  return JSON.stringify({ ...own, ...shared }).replace(/}$/, ',"seed":' + seed + "}");  // 64 bits: no Number
}

async function write() {
  const control = running = new AbortController(), start = performance.now(), chat = chatting(), talk = turns;
  const seed = $("seed").value || String(crypto.getRandomValues(new Uint32Array(1))[0]);
  const length = $("length").valueAsNumber, decoding = { decoder: new TextDecoder(), count: 0 };
  let count = 0, reason = "", used = length;
  const rate = () => count + " tokens · " + (count / ((performance.now() - start) / 1000)).toFixed(0)
    + " tokens/s · seed " + seed;
  points = []; parts = [];
  asked = { after: $("text").lastChild, turns: turns.length };
  hideTip();
  closeInside();
  $("generate").disabled = $("continue").disabled = $("again").disabled = $("look").disabled = true;
  $("stop").disabled = $("copy").disabled = false;
  say("…");
  try {
    if (!$("model").textContent) await showModel();
    const path = chat ? "v1/chat/completions" : "v1/completions";
    const options = { method: "POST", body: request(seed), signal: control.signal };
    for await (const event of events(await ask(path, options))) {
      if (event === "[DONE]") break;
      const chunk = JSON.parse(event);
      if (chunk.error) throw new Error(chunk.error.message);
      used = chunk.usage?.completion_tokens ?? used;
      for (const choice of chunk.choices) {
        const found = chat ? asText(choice, decoding) : choice;
        count += found.logprobs.tokens.length;
        add(found);
        reason = found.finish_reason || reason;
      }
      say(rate());
    }
    const full = used < length ? " · the context is full" : " · the length is reached";
    say(rate() + ({ stop: " · the text ended", length: full }[reason] ?? " · cut off"), !reason);
  } catch (error) {
    if (error.name === "AbortError") say(rate() + " · stopped");
    else say(error instanceof TypeError ? "The server cannot be reached." : error.message, true);
  } finally {
    running = null;
    if (chat && points.length) talk.push({ role: "assistant", content: points.join("") });
    $("generate").disabled = $("continue").disabled = $("again").disabled = $("look").disabled = false;
    $("stop").disabled = true;
  }
}

// Settings stay in this browser; the key, the prompt and the texts do not.
const KEPT = ["temperature", "top-k", "length", "top-p", "min-p", "seed", "stops"];

function keep() {
  const settings = Object.fromEntries(KEPT.map((id) => [id, $(id).value]));
  localStorage.setItem("settings", JSON.stringify({ ...settings, chat: chatting(), colour: $("colour").checked }));
}

function restore() {
  let settings = {};
  try { settings = JSON.parse(localStorage.getItem("settings")) ?? {}; } catch { /* the browser keeps nothing */ }
  for (const id of KEPT) if (typeof settings[id] === "string") $(id).value = settings[id];
  $("mode-chat").checked = settings.chat === true;
  $("colour").checked = settings.colour !== false;
  $("text").classList.toggle("plain", !$("colour").checked);
  $("shown").value = $("temperature").valueAsNumber.toFixed(2);
}

async function copy() {
  const said = turns.map((turn) => turn.role + ": " + turn.content).join("\n\n");
  const text = chatting() ? said : before + points.join("");
  try {
    await navigator.clipboard.writeText(text);
    say("Copied");
  } catch {  // the browser allows it on secure addresses only
    getSelection().selectAllChildren($("text"));
    say("Selected: copy with Ctrl+C");
  }
}

$("form").addEventListener("submit", (event) => { event.preventDefault(); generate(); });
$("stop").addEventListener("click", () => running?.abort());
$("continue").addEventListener("click", goOn);
$("again").addEventListener("click", again);
$("clear").addEventListener("click", clear);
$("copy").addEventListener("click", copy);
for (const mode of ["mode-text", "mode-chat"]) {
  $(mode).addEventListener("change", () => { running?.abort(); clear(); showMode(); say(""); });
}
$("form").addEventListener("input", keep);
$("colour").addEventListener("change", keep);
$("temperature").addEventListener("input", () => { $("shown").value = $("temperature").valueAsNumber.toFixed(2); });
$("colour").addEventListener("change", () => $("text").classList.toggle("plain", !$("colour").checked));
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); generate(); }
  if (event.key === "Escape") { hideTip(); running?.abort(); }
});
restore();
showModel().catch((error) => say(error.message, true));
