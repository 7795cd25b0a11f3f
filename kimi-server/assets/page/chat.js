// One conversation at a time on the page: messages, the answer that comes in, tools, editing. An answer goes on while another
// conversation is looked at.

import * as api from "./api.js";
import { $, announce, copyButton, duration, el, fit, icon, iconButton } from "./dom.js";
import { Markdown } from "./markdown.js";
import { NO_RESULT, isJson, pretty, result, take, wire } from "./messages.js";
import * as store from "./store.js";

/** How near to its end a conversation is scrolled along with the answer, in pixels. */
const NEAR = 80;
/** Tokens from which a speed says something. */
const MIN_RATE = 16;
/** Between two times that an answer under way is kept, in milliseconds. */
const KEEP = 2000;

/** Conversations that are open or being answered, by id: `{chat, abort}`. */
const live = new Map();
let current = store.newChat();
let hooks = { changed() {}, needsKey() {}, options: () => ({}) };
let parts = [];
let follows = true;
/** Whether the page is being left; that breaks its connections, which is no error then. */
let leaves = false;

/** `changed` is called when the list of conversations or what is under way has changed, `needsKey` after a 401. */
export function start(given) {
  hooks = given;
  const scroll = $("scroll");
  scroll.addEventListener("scroll", () => {
    follows = scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < NEAR;
    $("to-end").hidden = follows;
  }, { passive: true });
  $("to-end").addEventListener("click", () => toEnd(true));
  window.addEventListener("pagehide", () => {
    leaves = true;
    live.forEach(({ chat, abort }) => abort && store.save(cutShort(chat)));
  });
  window.addEventListener("pageshow", () => (leaves = false));
}

export const chat = () => current;
export const isBusy = (id = current.id) => Boolean(live.get(id)?.abort);

/** Shows a conversation; without an id, a new one. */
export function open(id) {
  if (!isBusy()) live.delete(current.id);
  current = live.get(id)?.chat ?? (id && store.load(id)) ?? store.newChat();
  live.set(current.id, { ...live.get(current.id), chat: current });
  store.setShown(current.id);
  show();
  hooks.changed();
}

/** A conversation as it is kept when the page is left while an answer comes in. */
function cutShort(chat) {
  const last = chat.messages.at(-1);
  const calls = last.calls.filter((call) => call && isJson(call.arguments));
  return { ...chat, messages: [...chat.messages.slice(0, -1), { ...last, calls, note: "Cut short when the page was left" }] };
}

/** Forgets a conversation. */
export function forget(id) {
  live.get(id)?.abort?.abort();
  live.delete(id);
  store.forget(id);
  if (id === current.id) open();
  else hooks.changed();
}

export function setSystem(text) {
  current.system = text;
  if (current.messages.length > 0) store.save(current);
}

/** Sends a message of the user. */
export function send(text) {
  if (isBusy() || text.trim() === "") return false;
  for (const call of openCalls()) current.messages.push(result(call, NO_RESULT));
  current.messages.push({ role: "user", content: text });
  current.title ||= text.trim().split("\n")[0].slice(0, 80);
  show();
  answer(current);
  return true;
}

/** Ends the answer under way; what has come stays. */
export function stop() {
  const abort = live.get(current.id)?.abort;
  abort?.abort();
  return Boolean(abort);
}

/** Opens the last message of the user for editing. */
export function editLast() {
  const index = current.messages.findLastIndex((message) => message.role === "user");
  if (index >= 0 && !isBusy()) edit(index);
}

/** Answers again from a message on. */
function again(index) {
  if (isBusy()) return;
  current.messages.length = index;
  show();
  answer(current);
}

/** Asks for an answer and takes it in. */
async function answer(chat) {
  const message = { role: "assistant", content: "", reasoning: "", calls: [] };
  const body = { ...hooks.options(), messages: wire(chat) };
  chat.messages.push(message);
  const abort = new AbortController();
  live.set(chat.id, { chat, abort });
  chat.time = Date.now();
  store.save(chat);
  show(true);
  hooks.changed();
  const begun = performance.now();
  let kept = begun;
  try {
    await api.chat(body, abort.signal, (event) => {
      take(message, event, (performance.now() - begun) / 1000);
      paint(chat);
      if (performance.now() - kept > KEEP) {
        kept = performance.now();
        store.save(chat);
      }
    });
    message.seconds = (performance.now() - begun) / 1000;
  } catch (error) {
    if (leaves) return;
    if (error.name === "AbortError") message.note = "Stopped";
    else {
      message.error = error.retryAfter ? `${error.message} (again in ${duration(error.retryAfter)})` : error.message;
      if (error.status === 401) hooks.needsKey();
    }
  }
  message.calls = message.calls.filter((call) => call && (message.note === undefined || isJson(call.arguments)));
  live.set(chat.id, { chat, abort: null });
  chat.time = Date.now();
  const isKept = store.save(chat);
  // Only the end is new: what the reader has opened or selected stays as it is.
  if (chat.id === current.id) update();
  else live.delete(chat.id);
  hooks.changed();
  if (!isKept) announce("The browser has no more room: this conversation lasts as long as the page.");
  else announce(message.error ?? (message.calls.length > 0 ? "The model calls a tool" : "The answer is complete"));
}

/** Results that follow a message: those of its calls. */
function resultsOf(index) {
  const rest = current.messages.slice(index + 1);
  const end = rest.findIndex((message) => message.role !== "tool");
  return end < 0 ? rest : rest.slice(0, end);
}

/** Calls of the last answer that have no result yet. */
function openCalls() {
  const index = current.messages.findLastIndex((message) => message.role !== "tool");
  const last = current.messages[index];
  const given = resultsOf(index).map((message) => message.id);
  return last?.role === "assistant" && !isBusy() ? last.calls.filter((call) => !given.includes(call.id)) : [];
}

/** Shows the current conversation anew. */
function show(toItsEnd = true) {
  const messages = $("messages");
  parts = current.messages.map((message, i) => (message.role === "tool" ? null : part(message, i)));
  messages.replaceChildren(...parts.filter((one) => one).map((one) => one.node));
  $("welcome").hidden = current.messages.length > 0;
  paint(current);
  if (toItsEnd) toEnd();
}

function toEnd(smoothly = false) {
  const scroll = $("scroll");
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  scroll.scrollTo({ top: scroll.scrollHeight, behavior: smoothly && !still ? "smooth" : "instant" });
  follows = true;
  $("to-end").hidden = true;
}

let painting = false;

/** Shows what has come of an answer, once a frame; a page in the background has none. */
function paint(chat) {
  if (painting || chat.id !== current.id) return;
  painting = true;
  requestAnimationFrame(() => {
    painting = false;
    update();
  });
}

function update() {
  parts[parts.length - 1]?.update?.();
  if (follows) toEnd();
}

function part(message, index) {
  return message.role === "user" ? asked(message, index) : answered(message, index);
}

function asked(message, index) {
  const text = el("div", { class: "bubble" }, message.content);
  const tools = el("div", { class: "actions" },
    copyButton(() => message.content, "Copy the message"),
    iconButton("edit", "Edit the message", () => !isBusy() && edit(index)));
  return { node: el("article", { class: "user", "aria-label": "You" }, text, tools) };
}

/** Turns a message of the user into a box; what comes after it is replaced when it is sent. */
function edit(index) {
  const { node } = parts[index];
  const area = el("textarea", { value: current.messages[index].content, rows: 1, "aria-label": "Edit the message", input: () => fit(area) });
  const leave = () => {
    show(false);
    $("prompt").focus();
  };
  const done = () => {
    if (area.value.trim() === "") return;
    const first = current.messages.findIndex((message) => message.role === "user");
    current.messages.length = index;
    if (index === first) current.title = "";
    send(area.value);
    $("prompt").focus();
  };
  area.addEventListener("keydown", (event) => {
    if (event.key === "Escape") leave();
    else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) done();
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  const row = el("div", { class: "row" },
    el("button", { type: "button", class: "quiet", click: leave }, "Cancel"),
    el("button", { type: "button", class: "primary", click: done }, "Send"));
  node.replaceChildren(el("div", { class: "editor" }, area, row));
  fit(area);
  area.focus();
  area.setSelectionRange(area.value.length, area.value.length);
}

/** An answer: what it thought, what it says, its calls, and how long it took. */
function answered(message, index) {
  const thought = el("div", { class: "markdown" });
  const summary = el("summary");
  const thinking = el("details", { class: "reasoning", hidden: true }, summary, thought);
  const text = el("div", { class: "markdown" });
  const calls = el("div", { class: "calls" });
  const foot = el("div", { class: "foot" });
  const node = el("article", { class: "assistant", "aria-label": "Answer" }, thinking, text, calls, foot);
  const [thoughts, says] = [new Markdown(thought), new Markdown(text)];
  let shownCalls = "";
  const update = () => {
    const busy = isBusy() && index === current.messages.length - 1;
    node.setAttribute("aria-busy", busy);
    thinking.hidden = !message.reasoning;
    const time = message.thought ?? message.seconds;
    summary.textContent = busy && message.thought === undefined ? "Thinking" : time ? `Thought for ${duration(time)}` : "Thoughts";
    summary.classList.toggle("pulse", busy && message.thought === undefined);
    thoughts.show(message.reasoning);
    says.show(message.content);
    text.classList.toggle("writing", busy && message.content !== "" && message.calls.length === 0);
    const seen = JSON.stringify([message.calls, busy]);
    if (seen !== shownCalls) {
      shownCalls = seen;
      calls.replaceChildren(...callCards(message, index, busy));
    }
    foot.replaceChildren(...footer(message, index, busy));
  };
  update();
  return { node, update };
}

function footer(message, index, busy) {
  if (busy) {
    const waits = !message.content && !message.reasoning && message.calls.length === 0;
    return waits ? [el("span", { class: "dots", role: "img", "aria-label": "Waiting for the answer" }, el("i"), el("i"), el("i"))] : [];
  }
  const lines = [];
  if (message.error) {
    lines.push(el("div", { class: "error", role: "alert" }, el("span", {}, message.error),
      el("button", { type: "button", class: "quiet", click: () => again(index) }, "Try again")));
  }
  const rate = message.tokens >= MIN_RATE && message.seconds > message.first ? (message.tokens - 1) / (message.seconds - message.first) : null;
  const stats = [
    message.note,
    message.tokens && `${message.tokens} ${message.tokens === 1 ? "token" : "tokens"}`,
    rate && `${rate.toFixed(rate < 10 ? 1 : 0)} tokens/s`,
    message.first !== undefined && `first after ${duration(message.first)}`,
  ].filter(Boolean);
  if (message.error === undefined || message.content) {
    lines.push(el("div", { class: "actions" },
      message.content !== "" && copyButton(() => message.content, "Copy the answer"),
      iconButton("again", "Answer again", () => again(index)),
      el("span", { class: "stats" }, stats.join(" · "))));
  }
  return lines;
}

function callCards(message, index, busy) {
  const given = resultsOf(index);
  const waiting = openCalls().filter((call) => message.calls.includes(call));
  const areas = [];
  const cards = message.calls.filter(Boolean).map((call) => {
    const shown = given.find((other) => other.id === call.id);
    const parts = [
      el("div", { class: "call-head" }, icon("tool"), el("strong", {}, call.name), el("code", {}, call.id)),
      el("pre", { tabIndex: 0, class: "arguments" }, el("code", {}, pretty(call.arguments))),
    ];
    if (shown) parts.push(el("div", { class: "result" }, el("small", {}, "Result"), el("pre", { tabIndex: 0 }, shown.content)));
    else if (!busy && waiting.includes(call)) {
      const area = el("textarea", { rows: 1, placeholder: "What does it return? Text or JSON", input: () => fit(area) });
      area.addEventListener("keydown", (event) => {
        if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
        event.preventDefault();
        const next = areas.find((other) => other.area.value === "");
        if (next) next.area.focus();
        else giveResults(areas);
      });
      areas.push({ call, area });
      parts.push(el("label", { class: "result" }, el("small", {}, `Result of ${call.name}`), area));
    }
    return el("div", { class: "call" }, parts);
  });
  if (areas.length > 0) {
    const label = areas.length === 1 ? "Send the result" : "Send the results";
    cards.push(el("div", { class: "row" }, el("button", { type: "button", class: "primary", click: () => giveResults(areas) }, label)));
    requestAnimationFrame(() => index >= current.messages.length - 1 && areas[0].area.isConnected && areas[0].area.focus());
  }
  return cards;
}

function giveResults(areas) {
  if (isBusy()) return;
  for (const { call, area } of areas) current.messages.push(result(call, area.value || NO_RESULT));
  $("prompt").focus();
  show();
  answer(current);
}
