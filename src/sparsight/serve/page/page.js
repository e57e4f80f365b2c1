"use strict";
// Plain scripts, no request to any other host. What a server says is only ever put in as text.

const BUDGETS = ["1/32", "1/16", "1/8", "1/4", "1/2", "1"];
const LARGEST_FILE = 1 << 20;
const HEAT = 8;
const $ = (id) => document.getElementById(id);
const sides = {
  dense: { id: null, reading: null, details: new Map(), stop: null },
  sparse: { id: null, reading: null, details: new Map(), stop: null },
};
let model = null;
let shown = null; // what the text below shows: {side, token, detail}
let wanted = 0; // counts what was pointed at, so that a late answer does not replace a newer one

function say(message) {
  $("error").hidden = !message;
  $("error").textContent = message || "";
}

async function ask(path, options = {}) {
  const headers = { ...(options.headers || {}) };
  if ($("key").value) headers.Authorization = "Bearer " + $("key").value;
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer; it may have stopped.");
  }
  if (!answer.ok) {
    let message = "The server answered with status " + answer.status + ".";
    try {
      message = (await answer.json()).error.message;
    } catch (error) { /* not in its shape: the status says it */ }
    throw new Error(message);
  }
  return answer;
}

// ---- asking ----

function request(side) {
  const chat = $("chat").checked && !$("chat").disabled;
  const body = {
    model: model.id,
    max_tokens: Number($("tokens").value),
    temperature: Number($("temperature").value),
    seed: 0,
    reading: true,
    select: side === "dense" ? "dense" : $("method").value,
  };
  if (side === "sparse" && body.select !== "dense") body.budget = BUDGETS[$("budget").value];
  if (chat) body.messages = [{ role: "user", content: $("prompt").value }];
  else body.prompt = $("prompt").value;
  return ["v1/" + (chat ? "chat/" : "") + "completions", body];
}

async function answer(side) {
  const state = sides[side];
  const [path, body] = request(side);
  Object.assign(state, { id: null, reading: null, details: new Map(), stop: new AbortController() });
  if (shown && shown.side === side) shown = null;
  $(side).replaceChildren();
  $(side + "-figures").textContent = "reading the prompt …";
  const streams = Boolean(window.ReadableStream && window.TextDecoder);
  const send = { method: "POST", headers: { "Content-Type": "application/json" }, signal: state.stop.signal };
  const reply = await ask(path, { ...send, body: JSON.stringify({ ...body, stream: streams }) });
  const took = streams && reply.body ? await follow(side, reply) : whole(side, await reply.json());
  state.reading = await (await ask("v1/readings/" + state.id)).json();
  setTokens(side);
  setContext(state.reading, state.reading.prompt_tokens); // so that pointing finds it there
  figures(side, took);
}

function whole(side, data) {
  sides[side].id = data.id;
  add(side, textOf(data.choices[0]));
  return data.sparsight;
}

const textOf = (choice) => choice.text || (choice.message || choice.delta || {}).content || "";

async function follow(side, reply) {
  const reader = reply.body.getReader();
  const decoder = new TextDecoder();
  let left = "";
  let took = null;
  let count = 0;
  const began = performance.now();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    left += decoder.decode(value, { stream: true });
    const events = left.split("\n\n");
    left = events.pop();
    for (const event of events) {
      if (!event.startsWith("data: ") || event === "data: [DONE]") continue;
      const data = JSON.parse(event.slice(6));
      if (data.error) throw new Error(data.error.message);
      sides[side].id = data.id;
      took = data.sparsight || took;
      for (const choice of data.choices) {
        const text = textOf(choice);
        if (!text) continue;
        add(side, text);
        count += 1;
      }
    }
    $(side + "-figures").textContent = count + " pieces in " + ((performance.now() - began) / 1000).toFixed(1) + " s";
  }
  if (!took) throw new Error("The answer broke off.");
  return took;
}

function add(side, text) {
  const span = document.createElement("span");
  span.textContent = text;
  $(side).append(span);
}

function figures(side, took) {
  const read = took.share_read < 1 ? ", " + (100 * took.share_read).toFixed(1) + "% of the cached tokens read" : ", every token read";
  $(side + "-figures").textContent =
    took.ms_per_token.toFixed(2) + " ms and " + (took.bytes_per_token / 1e6).toFixed(1) + " MB a token" + read +
    "; prompt " + Math.round(took.prefill_ms) + " ms";
}

// The tokens themselves in place of the pieces that the text came in.
function setTokens(side) {
  const { reading } = sides[side];
  const spans = reading.tokens.slice(reading.prompt_tokens).map((text, token) => {
    const span = document.createElement("span");
    span.textContent = text === "" ? "\u200b" : text;
    span.id = side + "-" + token;
    span.dataset.token = token;
    span.setAttribute("role", "option");
    span.setAttribute("aria-selected", "false");
    return span;
  });
  $(side).replaceChildren(...spans);
}

async function run(which) {
  say("");
  $("run").disabled = true;
  $("stop").disabled = false;
  document.body.dataset.state = "running";
  const ended = await Promise.allSettled(which.map(answer));
  ended.forEach((one, i) => {
    if (one.status === "fulfilled") return;
    const stopped = one.reason.name === "AbortError";
    $(which[i] + "-figures").textContent = stopped ? "stopped" : "no answer";
    if (!stopped) say(one.reason.message);
  });
  $("run").disabled = false;
  $("stop").disabled = true;
  document.body.dataset.state = "ready";
}

// ---- what was read ----

async function point(side, token, began = performance.now()) {
  const state = sides[side];
  if (!state.reading || token < 0 || token >= state.reading.new_tokens) return;
  const turn = ++wanted;
  for (const name of ["dense", "sparse"]) {
    const before = $(name).querySelector('[aria-selected="true"]');
    if (before) before.setAttribute("aria-selected", "false");
    $(name).removeAttribute("aria-activedescendant");
  }
  $(side + "-" + token).setAttribute("aria-selected", "true");
  $(side).setAttribute("aria-activedescendant", side + "-" + token);
  try {
    let detail = state.details.get(token);
    if (!detail) {
      detail = await (await ask("v1/readings/" + state.id + "/" + token)).json();
      detail.weights = weightsOf(detail.attention);
      state.details.set(token, detail);
    }
    if (turn !== wanted) return;
    shown = { side, token, detail };
    draw();
    // Two frames on, it is on the screen.
    requestAnimationFrame(() => requestAnimationFrame(() => {
      document.body.dataset.pointed = side + "-" + token;
      document.body.dataset.milliseconds = (performance.now() - began).toFixed(1);
    }));
  } catch (error) {
    if (turn === wanted) say(error.message);
  }
}

function weightsOf(encoded) {
  if (!encoded) return null;
  const bytes = Uint8Array.from(atob(encoded), (c) => c.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  const weights = new Float32Array(bytes.length / 2);
  for (let i = 0; i < weights.length; i++) weights[i] = view.getUint16(2 * i, true) / 65535;
  return weights;
}

// Shares by token over the chosen layers and heads: of heads that read it, of the attention it gets, of that where it is not read.
function shares(reading, detail) {
  const { length } = detail;
  const layers = reading.layers.map((_, i) => i).filter((i) => $("layer").value === "all" || Number($("layer").value) === i);
  const some = detail.read.some((layer) => layer !== null);
  // With all layers together, those that read everything by design say nothing.
  const counted = $("layer").value === "all" && some ? layers.filter((i) => detail.read[i] !== null) : layers;
  const heads = [...Array(reading.kv_heads).keys()].filter((h) => $("head").value === "all" || Number($("head").value) === h);
  const read = new Float32Array(length);
  const attention = new Float32Array(length);
  const missed = new Float32Array(length);
  const pairs = counted.length * heads.length;
  let mass = 0;
  let chosen = 0;
  for (const i of counted) {
    for (const h of heads) {
      const positions = detail.read[i] === null ? null : detail.read[i][h];
      const own = new Uint8Array(length);
      if (positions === null) own.fill(1);
      else for (const position of positions) own[position] = 1;
      const at = (i * reading.kv_heads + h) * length;
      for (let p = 0; p < length; p++) {
        read[p] += own[p] / pairs;
        chosen += own[p];
        if (!detail.weights) continue;
        const weight = detail.weights[at + p] / pairs;
        attention[p] += weight;
        if (!own[p]) missed[p] += weight;
      }
      if (detail.read_mass) mass += detail.read_mass[i][h] / pairs;
    }
  }
  return { read, attention, missed, mass, tokens: chosen / pairs, layers: counted.length };
}

function draw() {
  const { side, token, detail } = shown;
  const { reading } = sides[side];
  const found = shares(reading, detail);
  const kind = document.querySelector('input[name="shown"]:checked').value;
  const values = found[kind];
  let top = 1;
  if (kind !== "read") {
    // One or two first tokens draw most of the attention; the scale is that of the others.
    const sorted = Float32Array.from(found.attention).sort();
    top = Math.max(sorted[Math.floor(0.98 * (sorted.length - 1))], 1e-6);
  }
  setContext(reading, detail.length);
  const spans = $("context").children;
  for (let p = 0; p < spans.length; p++) {
    const level = values[p] > 0 ? Math.max(1, Math.min(HEAT, Math.round(HEAT * Math.sqrt(values[p] / top)))) : 0;
    const name = level ? "h" + level : "";
    if (spans[p].className !== name) spans[p].className = name;
  }
  const text = JSON.stringify(reading.tokens[reading.prompt_tokens + token]);
  const known = detail.weights ? ", which hold " + (100 * found.mass).toFixed(1) + "% of what dense attention would give" : "";
  $("summary").textContent =
    "To make " + text + ", token " + (token + 1) + " of the " + side + " answer, a KV head read " + Math.round(found.tokens) + " of " +
    detail.length + " tokens" + known + " (" + found.layers + (found.layers === 1 ? " layer" : " layers") + ")." +
    (detail.weights || kind === "read" ? "" : " The attention of this token was not kept.");
}

// The spans stay as they are where the same text is shown.
function setContext(reading, length) {
  const context = $("context");
  let same = 0; // the prompt of both answers is one
  while (same < length && same < context.children.length && context.children[same].textContent === reading.tokens[same]) same++;
  while (context.children.length > same) context.lastChild.remove();
  const more = document.createDocumentFragment();
  for (let p = context.children.length; p < length; p++) {
    const span = document.createElement("span");
    span.textContent = reading.tokens[p];
    more.append(span);
  }
  context.append(more);
}

function setChoices(reading) {
  if ($("layer").options.length === reading.layers.length + 1 && $("head").options.length === reading.kv_heads + 1) return;
  const options = (names) => names.map(([value, text]) => Object.assign(document.createElement("option"), { value, textContent: text }));
  $("layer").replaceChildren(...options([["all", "all that choose"], ...reading.layers.map((layer, i) => [i, layer])]));
  $("head").replaceChildren(...options([["all", "all"], ...[...Array(reading.kv_heads).keys()].map((h) => [h, h])]));
}

// ---- the page ----

function listen(side) {
  const box = $(side);
  const tokenAt = (target) => (target.dataset && target.dataset.token !== undefined ? Number(target.dataset.token) : null);
  box.addEventListener("mouseover", (event) => {
    const token = tokenAt(event.target);
    if (token !== null) point(side, token);
  });
  box.addEventListener("click", (event) => {
    const token = tokenAt(event.target);
    if (token !== null) point(side, token);
  });
  box.addEventListener("focus", () => {
    if (!box.querySelector('[aria-selected="true"]')) point(side, 0);
  });
  box.addEventListener("keydown", (event) => {
    const current = box.querySelector('[aria-selected="true"]');
    const at = current ? Number(current.dataset.token) : 0;
    const last = sides[side].reading ? sides[side].reading.new_tokens - 1 : 0;
    const to = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: last }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    point(side, Math.max(0, Math.min(last, to)));
  });
}

async function take(file) {
  say("");
  if (file.size > LARGEST_FILE) return say(file.name + " has more than 1 MiB; take a part of it.");
  try {
    const text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
    if (text.includes("\u0000")) throw new TypeError();
    if (!text.trim()) return say(file.name + " is empty.");
    $("prompt").value = text;
    $("file-note").textContent = file.name + ", " + text.length.toLocaleString("en") + " characters";
  } catch (error) {
    say(file.name + " is not text in UTF-8; choose a text file.");
  }
}

function setBudget() {
  const budget = BUDGETS[$("budget").value];
  $("budget-text").textContent = budget;
  $("budget").setAttribute("aria-valuetext", budget + " of the tokens");
}

async function load() {
  try {
    model = (await (await ask("v1/models")).json()).data[0];
  } catch (error) {
    say(error.message);
    return;
  }
  const own = model.sparsight;
  $("model").textContent = model.id + ", weights in " + own.weights + ", context of " + own.context_length.toLocaleString("en") + " tokens";
  const names = own.methods.filter((name) => name !== "dense");
  const best = own.default_method !== "dense" ? own.default_method : names.includes("foresight") ? "foresight" : names[0];
  $("method").replaceChildren(...names.map((name) => Object.assign(document.createElement("option"), { value: name, textContent: name })));
  $("method").value = best;
  if (!own.chat) Object.assign($("chat"), { checked: false, disabled: true });
  const at = BUDGETS.indexOf(own.default_budget);
  if (at >= 0) $("budget").value = at;
  setBudget();
  document.body.dataset.state = "ready";
}

document.querySelector("main").hidden = false;
$("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  if (!model) await load();
  if (!model) return;
  await run(["dense", "sparse"]);
  const made = sides.sparse.reading || sides.dense.reading;
  if (made) setChoices(made);
});
$("stop").addEventListener("click", () => Object.values(sides).forEach((side) => side.stop && side.stop.abort()));
$("budget").addEventListener("input", setBudget);
$("budget").addEventListener("change", () => {
  if (sides.sparse.reading && !$("run").disabled) run(["sparse"]);
});
$("file").addEventListener("change", () => $("file").files.length && take($("file").files[0]));
for (const name of ["dragover", "dragleave", "drop"]) {
  $("prompt").addEventListener(name, (event) => {
    if (name !== "dragleave") event.preventDefault();
    $("prompt").classList.toggle("over", name === "dragover");
    if (name !== "drop") return;
    if (event.dataTransfer.files.length) take(event.dataTransfer.files[0]);
    else $("prompt").value += event.dataTransfer.getData("text");
  });
}
for (const element of [$("layer"), $("head"), ...document.querySelectorAll('input[name="shown"]')]) {
  element.addEventListener("change", () => shown && draw());
}
listen("dense");
listen("sparse");
load();
