// Conversations and settings, kept in this browser only.

const INDEX = "kimi.chats";
const chatKey = (id) => `kimi.chat.${id}`;
const memory = new Map();

/** localStorage, or the page's memory where the browser has none for it. */
function read(key) {
  try {
    return localStorage.getItem(key) ?? memory.get(key) ?? null;
  } catch {
    return memory.get(key) ?? null;
  }
}

function write(key, text) {
  try {
    localStorage.setItem(key, text);
    memory.delete(key);
    return true;
  } catch {
    // Full or forbidden: it lasts as long as the page does.
    memory.set(key, text);
    return false;
  }
}

function remove(key) {
  memory.delete(key);
  try {
    localStorage.removeItem(key);
  } catch {
    // Nothing was kept there.
  }
}

function parsed(text, otherwise) {
  try {
    return JSON.parse(text) ?? otherwise;
  } catch {
    return otherwise;
  }
}

/** `{id, title, time}` of all conversations, the newest first. */
export function list() {
  const chats = parsed(read(INDEX), []);
  return Array.isArray(chats) ? chats.sort((a, b) => b.time - a.time) : [];
}

/** A conversation: `{id, title, time, system, messages}`. */
export function load(id) {
  const chat = parsed(read(chatKey(id)), null);
  return chat && Array.isArray(chat.messages) ? chat : null;
}

export function newChat() {
  const id = `${Date.now().toString(36)}${Math.random().toString(36).slice(2, 8)}`;
  return { id, title: "", time: Date.now(), system: "", messages: [] };
}

/** Keeps a conversation; false if the browser has no more room for it. */
export function save(chat) {
  const others = list().filter((other) => other.id !== chat.id);
  const { id, title, time } = chat;
  const kept = write(chatKey(id), JSON.stringify(chat));
  return write(INDEX, JSON.stringify([{ id, title, time }, ...others])) && kept;
}

export function forget(id) {
  remove(chatKey(id));
  write(INDEX, JSON.stringify(list().filter((chat) => chat.id !== id)));
}

export function forgetAll() {
  for (const chat of list()) remove(chatKey(chat.id));
  remove(INDEX);
}

/** The conversation that this tab showed before the page was loaded again. */
export function shown() {
  try {
    return sessionStorage.getItem("kimi.shown");
  } catch {
    return null;
  }
}

export function setShown(id) {
  try {
    sessionStorage.setItem("kimi.shown", id);
  } catch {
    // Then the page begins with a new conversation.
  }
}

/** One of the settings: `key`, `temperature`, `maxTokens`, `model`, `tools`. */
export function setting(name, otherwise) {
  return parsed(read(`kimi.${name}`), otherwise);
}

export function set(name, value) {
  if (value === "" || value === null || value === undefined) remove(`kimi.${name}`);
  else write(`kimi.${name}`, JSON.stringify(value));
}

/** Calls back when another tab has changed something. */
export function onChange(callback) {
  window.addEventListener("storage", (event) => {
    if (event.key === null || event.key === INDEX) callback();
  });
}
