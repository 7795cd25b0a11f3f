// The cluster at a glance: what /health says, every few seconds, with what has changed since.

import * as api from "./api.js";
import { $, bytes, duration, el, svg } from "./dom.js";

/** Between two looks while the panel is open, while it is not, and while the page is in the background, in milliseconds. */
const OPEN = 2000;
const CLOSED = 5000;
const HIDDEN = 30000;
/** Rates that are drawn. */
const POINTS = 60;

let last = null;
let rates = [];
let timer = null;
let onState = () => {};

/** Begins to look. `changed` is told each state, or null where the server can't be reached. */
export function start(changed) {
  onState = changed;
  document.addEventListener("visibilitychange", () => !document.hidden && look());
  look();
}

export function isOpen() {
  return !$("cluster").hidden;
}

export function toggle(open = !isOpen()) {
  $("cluster").hidden = !open;
  document.body.classList.toggle("with-cluster", open);
  for (const id of ["open-cluster", "glance"]) $(id).setAttribute("aria-expanded", open);
  if (open) {
    look();
    $("close-cluster").focus();
  }
}

async function look() {
  clearTimeout(timer);
  let state = null;
  let first = null;
  try {
    state = await api.health();
    if (isOpen()) first = firstToken(await api.metrics());
  } catch {
    // Shown as not reachable.
  }
  const now = performance.now() / 1000;
  const rate = state && last ? change(last.state, state, now - last.time) : null;
  if (rate) rates = [...rates, rate.tokens].slice(-POINTS);
  last = state ? { state, time: now } : null;
  glance(state, rate);
  if (isOpen()) panel(state, rate, first);
  onState(state);
  clearTimeout(timer);
  timer = setTimeout(look, document.hidden ? HIDDEN : isOpen() ? OPEN : CLOSED);
}

const sum = (state, of) => (state.models ?? []).reduce((all, model) => all + of(model), 0);

/** Tokens a second since the last look; null if the server was started meanwhile. */
function change(before, state, seconds) {
  const of = (count) => (sum(state, count) - sum(before, count)) / seconds;
  if (state.uptime_seconds < before.uptime_seconds || seconds <= 0) return null;
  return { tokens: of((model) => model.tokens_generated), prompts: of((model) => model.prompt_tokens) };
}

function firstToken(metrics) {
  if (!metrics) return null;
  let [time, count] = [0, 0];
  for (const [name, value] of metrics) {
    if (name.startsWith("kimi_time_to_first_token_seconds_sum")) time += value;
    if (name.startsWith("kimi_time_to_first_token_seconds_count")) count += value;
  }
  return count > 0 ? time / count : null;
}

/** One word for a state, and whether it is good, being worked on, or bad. */
const WORDS = {
  ok: ["Ready", "good"],
  loading: ["Loading", "wait"],
  recovering: ["Recovering", "wait"],
  reconnecting: ["Reconnecting", "wait"],
  taken: ["Taken by another", "bad"],
  lost: ["Lost", "bad"],
  unavailable: ["Can't answer", "bad"],
};
const word = (status) => WORDS[status] ?? [status, "bad"];
const number = (value) => (value < 10 ? value.toFixed(1) : Math.round(value).toLocaleString("en"));
const plural = (count, one, many = `${one}s`) => `${count} ${count === 1 ? one : many}`;

function loadingText(loading) {
  if (!loading?.total_bytes) return "";
  const part = Math.floor((100 * loading.loaded_bytes) / loading.total_bytes);
  const left = loading.remaining_seconds ? `, about ${duration(loading.remaining_seconds)} left` : "";
  return `${part} %${left}`;
}

function glance(state, rate) {
  const [dot, title, detail] = [$("glance-dot"), $("glance-title"), $("glance-detail")];
  if (!state) {
    dot.className = "dot bad";
    title.textContent = "Not reachable";
    detail.textContent = "the server does not answer";
    return;
  }
  const models = state.models ?? [];
  const worst = models.find((model) => model.status !== "ok") ?? models[0];
  const [text, kind] = word(worst?.status ?? "ok");
  dot.className = `dot ${state.slow && kind === "good" ? "wait" : kind}`;
  title.textContent = state.slow && kind === "good" ? "Slow" : text;
  const machines = new Set(models.flatMap((model) => model.stages.map((stage) => stage.node ?? stage.stage))).size;
  const [running, waiting] = [sum(state, (m) => m.sequences.running), sum(state, (m) => m.sequences.waiting)];
  const facts = [
    worst?.loading && loadingText(worst.loading),
    plural(Math.max(machines, 1), "machine"),
    rate && rate.tokens > 0.05 && `${number(rate.tokens)} tokens/s`,
    running > 0 && `${running} running`,
    waiting > 0 && `${waiting} waiting`,
  ];
  detail.textContent = facts.filter(Boolean).slice(0, 3).join(" · ");
}

function panel(state, rate, first) {
  if (!state) {
    $("cluster-body").replaceChildren(el("p", { class: "callout bad" }, "The server can't be reached."));
    return;
  }
  const callout = state.slow && el("div", { class: "callout wait" }, el("strong", {}, "Why it is slow"), el("p", {}, state.slow));
  const models = (state.models ?? []).flatMap(model);
  const process = state.process ?? {};
  const facts = [
    `kimi ${state.version}`,
    `up ${duration(state.uptime_seconds)}`,
    process.resident_bytes && `${bytes(process.resident_bytes)} of memory here`,
  ];
  const about = el("p", { class: "about" }, facts.filter(Boolean).join(" · "));
  $("cluster-body").replaceChildren(...[callout, speed(rate, first), ...models, about].filter(Boolean));
}

function speed(rate, first) {
  const tile = (value, unit, label) => el("div", { class: "tile" }, el("div", { class: "value" }, value, el("small", {}, unit)), el("div", { class: "label" }, label));
  const tiles = el("div", { class: "tiles" },
    tile(rate ? number(rate.tokens) : "–", " /s", "tokens written"),
    tile(rate ? number(rate.prompts) : "–", " /s", "tokens read"),
    tile(first ? duration(first) : "–", "", "to a first token"));
  return el("section", { class: "speed" }, tiles, spark());
}

/** The tokens a second of the last looks. */
function spark() {
  const [width, height] = [300, 44];
  const max = Math.max(...rates, 1);
  const x = (i) => ((i + POINTS - rates.length) / (POINTS - 1)) * width;
  const y = (value) => height - 3 - (value / max) * (height - 8);
  const points = rates.map((value, i) => `${x(i).toFixed(1)},${y(value).toFixed(1)}`);
  const line = svg("polyline", { points: points.join(" "), class: "spark-line" });
  const area = rates.length > 1 ? svg("polygon", { points: `${x(0)},${height} ${points.join(" ")} ${width},${height}`, class: "spark-area" }) : "";
  const label = `Tokens a second, at most ${number(Math.max(...rates, 0))}`;
  return svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "spark", role: "img", "aria-label": label, preserveAspectRatio: "none" }, area, line);
}

function meter(used, total, label, text) {
  const part = total > 0 ? Math.min(used / total, 1) : 0;
  const bar = el("div", { class: `meter${part > 0.9 ? " full" : ""}`, role: "meter", "aria-label": label, "aria-valuemin": "0", "aria-valuemax": "100", "aria-valuenow": String(Math.round(part * 100)) }, el("i"));
  bar.firstChild.style.width = `${part * 100}%`;
  return el("div", { class: "metered" }, el("div", { class: "between" }, el("span", {}, label), el("span", {}, text)), bar);
}

function model(model) {
  const [text, kind] = word(model.status);
  const { running, waiting } = model.sequences;
  const nodes = [
    el("div", { class: "between" }, el("h3", {}, model.id), el("span", { class: `state ${kind}` }, text)),
    model.reason && el("p", { class: "reason" }, model.reason),
    model.loading && meter(model.loading.loaded_bytes, model.loading.total_bytes, "Loading", loadingText(model.loading)),
    meter(model.pages.used, model.pages.total, "Cache", `${model.pages.used} of ${plural(model.pages.total, "page")}`),
    el("div", { class: "between" }, el("span", {}, "Requests"), el("span", {}, `${running} running, ${waiting} waiting`)),
    model.evictions > 0 && el("div", { class: "between" }, el("span", {}, "Lost their pages"), el("span", {}, `${model.evictions} times`)),
  ];
  const total = model.stages.reduce((all, s) => all + s.compute_seconds + s.queue_seconds + s.wire_seconds, 0);
  const stages = el("ol", { class: "stages" }, model.stages.map((one) => stage(one, total)));
  return [el("section", { class: "model-state" }, nodes.filter(Boolean), stages), model.stages.length > 0 && legend()];
}

function stage(stage, total) {
  const [text, kind] = word(stage.status);
  const held = stage.holds?.match(/layers? ([^ ]+)(?: on (.*))?$/);
  const facts = [
    held ? `layers ${held[1]}` : stage.layers && plural(stage.layers, "layer"),
    stage.bytes && bytes(stage.bytes),
    stage.link?.round_trip_seconds && `${duration(stage.link.round_trip_seconds)} away`,
  ];
  const row = el("li", {},
    el("div", { class: "between" },
      el("span", { class: "node" }, el("span", { class: `dot ${kind}` }), stage.node ?? `stage ${stage.stage}`),
      kind === "good" ? el("span", {}, facts.filter(Boolean).join(" · ")) : el("span", { class: `state ${kind}` }, text)),
    held?.[2] && el("div", { class: "device" }, held[2]),
    stage.reason && el("p", { class: "reason" }, stage.reason),
    stage.loading && meter(stage.loading.loaded_bytes, stage.loading.total_bytes, "Loading", loadingText(stage.loading)));
  if (total > 0) row.append(times(stage, total));
  return row;
}

/** Where the steps' time went, as a part of the time of all stages. */
function times(stage, total) {
  const parts = [["compute", stage.compute_seconds], ["queue", stage.queue_seconds], ["wire", stage.wire_seconds]];
  const share = (seconds) => (100 * seconds) / total;
  const label = parts.map(([name, seconds]) => `${name} ${share(seconds).toFixed(0)} %`).join(", ");
  const bar = el("div", { class: "times", role: "img", "aria-label": `Of all time: ${label}`, title: label });
  for (const [name, seconds] of parts) {
    const piece = el("i", { class: name });
    piece.style.width = `${share(seconds)}%`;
    bar.append(piece);
  }
  return bar;
}

function legend() {
  const names = { compute: "computes", queue: "waits behind others", wire: "on the wire" };
  return el("p", { class: "legend" }, Object.entries(names).map(([kind, text]) => el("span", {}, el("i", { class: kind }), text)));
}
