// Everything around the conversation: the list, the box, settings, tools, the keyboard.

import * as api from "./api.js";
import * as chat from "./chat.js";
import * as cluster from "./cluster.js";
import { $, announce, confirmed, el, fit, icon, iconButton } from "./dom.js";
import * as store from "./store.js";

const IDEAS = [
  ["Explain something", "Explain how a mixture of experts works, to someone who knows a little programming."],
  ["Write", "Write a short story about a lighthouse keeper who receives a letter from the sea."],
  ["Use a tool", "What is the weather in Oslo?"],
  ["Compute", "What is 17 + 25?"],
];
const EXAMPLE = {
  type: "function",
  function: {
    name: "get_weather",
    description: "Get the current weather for a city",
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  },
};
const NEW_TOOL = {
  type: "function",
  function: { name: "my_function", description: "What it does", parameters: { type: "object", properties: {}, required: [] } },
};
const isMac = /mac|iphone|ipad/i.test(navigator.platform);

// -- The list of conversations

function showChats() {
  const now = new Date();
  const days = (time) => Math.round((new Date(now).setHours(0, 0, 0, 0) - new Date(time).setHours(0, 0, 0, 0)) / 86400000);
  const age = (time) => (days(time) < 1 ? "Today" : days(time) < 2 ? "Yesterday" : days(time) < 8 ? "This week" : "Earlier");
  let group = "";
  const rows = store.list().flatMap(({ id, title, time }) => {
    const name = title || "New chat";
    const open = () => {
      chat.open(id);
      sidebar(false);
      $("prompt").focus();
    };
    const row = el("li", { class: chat.isBusy(id) ? "busy" : "" },
      el("button", { type: "button", class: "chat", title: name, "aria-current": id === chat.chat().id ? "page" : null, click: open }, name),
      iconButton("remove", `Delete ${name}`, async () => {
        if (await confirmed(`Delete “${name}”?`)) chat.forget(id);
      }));
    const heading = age(time) === group ? [] : [el("li", { class: "age" }, (group = age(time)))];
    return [...heading, row];
  });
  $("chats").replaceChildren(...rows);
  const busy = chat.isBusy();
  const send = $("send");
  send.replaceChildren(icon(busy ? "stop" : "send"));
  send.setAttribute("aria-label", busy ? "Stop" : "Send");
  send.classList.toggle("stops", busy);
  send.disabled = !busy && $("prompt").value.trim() === "";
  document.title = chat.chat().title ? `${chat.chat().title} – kimi` : "kimi";
}

function sidebar(open) {
  document.body.classList.toggle("with-sidebar", open);
  if (open) $("close-sidebar").focus();
}

function newChat() {
  chat.open();
  sidebar(false);
  $("prompt").focus();
}

function neighbour(step) {
  const ids = store.list().map(({ id }) => id);
  const id = ids[ids.indexOf(chat.chat().id) + step];
  if (id) chat.open(id);
}

// -- The box

function send() {
  if (chat.isBusy()) {
    chat.stop();
    return;
  }
  const box = $("prompt");
  if (chat.send(box.value)) box.value = "";
  fit(box);
  showChats();
}

function options() {
  const body = { model: $("model").value || undefined };
  const [temperature, maxTokens] = [store.setting("temperature", null), store.setting("maxTokens", null)];
  if (temperature !== null) body.temperature = temperature;
  if (maxTokens !== null) body.max_tokens = maxTokens;
  const tools = enabledTools();
  if (tools.length > 0) body.tools = tools;
  return body;
}

// -- Tools: `{on, text}` each, so that a text that is no JSON yet is kept too

const tools = () => store.setting("tools", []);

function parsedTool(text) {
  try {
    const tool = JSON.parse(text);
    if (tool?.type !== "function" || typeof tool.function?.name !== "string" || tool.function.name === "") {
      return { error: 'Expected {"type": "function", "function": {"name": ..., "parameters": ...}}' };
    }
    return { tool };
  } catch (error) {
    return { error: error.message };
  }
}

const enabledTools = () => tools().filter((one) => one.on).flatMap((one) => parsedTool(one.text).tool ?? []);

function changeTool(index, change) {
  const all = tools();
  if (change === null) all.splice(index, 1);
  else all[index] = { ...all[index], ...change };
  store.set("tools", all);
  showChip();
}

function addTool(tool, isOpen) {
  store.set("tools", [...tools(), { on: true, text: JSON.stringify(tool, null, 2) }]);
  showTools(isOpen ? tools().length - 1 : -1);
}

function showTools(opened = -1) {
  const rows = tools().map(({ on, text }, index) => {
    const problem = el("p", { class: "problem", role: "alert" });
    const name = el("strong");
    const area = el("textarea", { value: text, rows: 8, spellcheck: false, class: "mono", "aria-label": "Definition in JSON" });
    const check = () => {
      const { tool, error } = parsedTool(area.value);
      name.textContent = tool?.function.name ?? "not a tool yet";
      problem.textContent = error ?? "";
    };
    area.addEventListener("input", () => {
      changeTool(index, { text: area.value });
      check();
    });
    check();
    const box = el("input", { type: "checkbox", checked: on, "aria-label": "Offer it to the model", change: () => changeTool(index, { on: box.checked }) });
    const remove = iconButton("remove", "Remove the tool", () => {
      changeTool(index, null);
      showTools();
    });
    const details = el("details", { open: index === opened }, el("summary", {}, name), area, problem);
    return el("div", { class: "tool" }, box, details, remove);
  });
  $("tools").replaceChildren(...rows);
  showChip();
}

function showChip() {
  const count = enabledTools().length;
  $("tools-chip").hidden = count === 0;
  $("tools-chip").replaceChildren(icon("tool"), `${count} ${count === 1 ? "tool" : "tools"}`);
}

// -- Settings

function openSettings() {
  $("system").value = chat.chat().system;
  $("temperature").value = store.setting("temperature", "");
  $("max-tokens").value = store.setting("maxTokens", "");
  $("key").value = store.setting("key", "");
  showTools();
  $("settings").showModal();
}

function askKey() {
  const dialog = $("ask-key");
  if (dialog.open) return;
  const known = store.setting("key", "") !== "";
  $("ask-key-text").firstChild.textContent = known ? "The server does not know this key. " : "This server asks for a key. ";
  $("ask-key-value").value = "";
  dialog.showModal();
}

async function loadModels() {
  try {
    const models = await api.models();
    const select = $("model");
    select.replaceChildren(...models.map(({ id, context_length: context }) => el("option", { value: id, title: `context of ${context} tokens` }, id)));
    const wanted = store.setting("model", "");
    if (models.some(({ id }) => id === wanted)) select.value = wanted;
    select.disabled = models.length < 2;
    $("welcome-text").textContent = models.length > 0 ? `${select.value} is here, with a context of ${models[0].context_length.toLocaleString("en")} tokens.` : "";
  } catch (error) {
    if (error.status === 401) askKey();
  }
}

// -- What the server says of itself

let known = false;

function serverChanged(state) {
  const banner = $("banner");
  const loading = state?.models?.find((model) => model.status === "loading");
  const down = state?.models?.find((model) => model.status === "unavailable");
  let text = "";
  if (!state) text = "The server can't be reached. This page tries again by itself.";
  else if (loading) {
    const { loaded_bytes: done, total_bytes: all } = loading.loading ?? {};
    text = `${loading.id} is being loaded${all ? `: ${Math.floor((100 * done) / all)} %` : ""}. Messages can be sent when it is there.`;
  } else if (down) text = `${down.id} can't answer: ${down.reason ?? "see the server's log"}`;
  banner.hidden = text === "";
  if (banner.textContent !== text) banner.textContent = text;
  if (state && !known) loadModels();
  known = Boolean(state);
}

// -- The keyboard

function key(event) {
  const held = isMac ? event.metaKey : event.ctrlKey;
  const dialog = document.querySelector("dialog[open]");
  if (event.key === "Escape" && !dialog) {
    if (chat.stop()) announce("Stopped");
    else if (document.body.classList.contains("with-sidebar")) sidebar(false);
    else if (cluster.isOpen()) cluster.toggle(false);
    else return;
  } else if (held && !event.shiftKey && !event.altKey && event.key.toLowerCase() === "k") newChat();
  else if (held && !event.shiftKey && event.key.toLowerCase() === "i" && !dialog) cluster.toggle();
  else if (held && event.key === "," && !dialog) openSettings();
  else if (event.altKey && !dialog && (event.key === "ArrowUp" || event.key === "ArrowDown")) neighbour(event.key === "ArrowUp" ? -1 : 1);
  else return;
  event.preventDefault();
}

function boxKey(event) {
  const box = $("prompt");
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing && event.keyCode !== 229) {
    event.preventDefault();
    if (!chat.isBusy()) send();
  } else if (event.key === "ArrowUp" && !event.altKey && box.value === "") {
    event.preventDefault();
    chat.editLast();
  }
}

function start() {
  for (const [id, name] of [["close-sidebar", "close"], ["open-sidebar", "menu"], ["open-settings", "settings"], ["open-cluster", "cluster"], ["close-cluster", "close"], ["close-settings", "close"], ["to-end", "down"]]) {
    $(id).append(icon(name));
  }
  if (isMac) {
    $("new-chat-key").textContent = "⌘ K";
    document.querySelectorAll(".keys kbd").forEach((one) => one.textContent === "Ctrl" && (one.textContent = "⌘"));
  }
  const on = (id, name, does) => $(id).addEventListener(name, does);
  on("new-chat", "click", newChat);
  on("open-sidebar", "click", () => sidebar(true));
  on("close-sidebar", "click", () => sidebar(false));
  on("shade", "click", () => (sidebar(false), cluster.toggle(false)));
  on("glance", "click", () => (sidebar(false), cluster.toggle()));
  on("open-cluster", "click", () => cluster.toggle());
  on("close-cluster", "click", () => (cluster.toggle(false), $("open-cluster").focus()));
  on("open-settings", "click", openSettings);
  on("tools-chip", "click", openSettings);
  on("close-settings", "click", () => $("settings").close());
  on("settings", "click", (event) => event.target === $("settings") && $("settings").close());
  on("system", "input", () => chat.setSystem($("system").value));
  const numeric = (id, name) => on(id, "change", () => store.set(name, $(id).value === "" ? null : Number($(id).value)));
  numeric("temperature", "temperature");
  numeric("max-tokens", "maxTokens");
  on("key", "change", () => (store.set("key", $("key").value.trim()), loadModels()));
  on("add-tool", "click", () => addTool(tools().length === 0 ? EXAMPLE : NEW_TOOL, true));
  on("clear-all", "click", async () => {
    $("settings").close();
    if (!(await confirmed("Delete all conversations in this browser?"))) return;
    chat.stop();
    store.forgetAll();
    newChat();
  });
  on("ask-key-cancel", "click", () => $("ask-key").close());
  on("ask-key-form", "submit", (event) => {
    event.preventDefault();
    store.set("key", $("ask-key-value").value.trim());
    $("ask-key").close();
    loadModels();
  });
  on("model", "change", () => store.set("model", $("model").value));
  on("composer", "submit", (event) => (event.preventDefault(), send()));
  on("prompt", "keydown", boxKey);
  on("prompt", "input", () => (fit($("prompt")), showChats()));
  document.addEventListener("keydown", key);
  $("ideas").append(...IDEAS.map(([title, text]) => el("li", {}, el("button", {
    type: "button",
    click: () => {
      if (title === "Use a tool" && enabledTools().length === 0) addTool(EXAMPLE, false);
      $("prompt").value = text;
      send();
    },
  }, el("strong", {}, title), el("span", {}, text)))));
  chat.start({ changed: showChats, needsKey: askKey, options });
  store.onChange(showChats);
  showChip();
  chat.open(store.shown());
  cluster.start(serverChanged);
  // On a phone that would open the keyboard.
  if (!matchMedia("(pointer: coarse)").matches) $("prompt").focus();
}

start();
