// Building elements. Text of models and users becomes text nodes only: nothing here parses HTML.

const SVG = "http://www.w3.org/2000/svg";

/** The element with an id, which index.html has. */
export const $ = (id) => document.getElementById(id);

/**
 * An element. `props` are its properties; `class`, `data-*`, `aria-*`, `role` and `for` are attributes, and functions are
 * listeners. Children are nodes or texts; null and false are left out.
 */
export function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null) continue;
    if (typeof value === "function") node.addEventListener(name, value);
    else if (name === "class" || name === "role" || name === "for" || name.includes("-")) node.setAttribute(name, value);
    else node[name] = value;
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** An SVG element. */
export function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// Lines of 24 by 24.
const ICONS = {
  menu: "M4 7h16M4 12h16M4 17h10",
  close: "M6 6l12 12M18 6L6 18",
  settings: "M4 8h9M19 8h1M4 16h1M11 16h9M16 5.5v5M8 13.5v5",
  cluster: "M5 4.5h14v6H5zM5 13.5h14v6H5zM8.5 7.5h.01M8.5 16.5h.01",
  send: "M12 19V5M6 11l6-6 6 6",
  stop: "M8 8h8v8H8z",
  down: "M12 5v14M6 13l6 6 6-6",
  copy: "M9 9h10v10H9zM5 15V5h10",
  done: "M5 13l4 4L19 7",
  again: "M20 11a8 8 0 1 0-2.3 6.3M20 5v6h-6",
  edit: "M4 20h4L19 9l-4-4L4 16zM13 7l4 4",
  remove: "M5 7h14M10 7V5h4v2M7 7l1 12h8l1-12",
  tool: "M14.5 6.5a4 4 0 0 0 5 5L12 19a2.8 2.8 0 0 1-4-4l7.5-7.5",
};

/** An icon, for people who see; what it is in must have a label. */
export function icon(name) {
  const line = svg("path", { d: ICONS[name], fill: name === "stop" ? "currentColor" : "none" });
  return svg("svg", { viewBox: "0 0 24 24", class: "glyph", "aria-hidden": "true" }, line);
}

/** A button with an icon. */
export function iconButton(name, label, click) {
  return el("button", { type: "button", class: "icon", "aria-label": label, title: label, click }, icon(name));
}

/** Puts text on the clipboard, also where the page is not on a secure origin, as on another machine's plain HTTP. */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = el("textarea", { value: text, class: "visually-hidden", readOnly: true });
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}

/** A button that copies what `text` returns, and says so. */
export function copyButton(text, label = "Copy") {
  const button = iconButton("copy", label, async () => {
    if (!(await copy(text()))) return;
    button.replaceChildren(icon("done"));
    announce("Copied");
    setTimeout(() => button.replaceChildren(icon("copy")), 1500);
  });
  return button;
}

/** Has a screen reader say something. */
export function announce(text) {
  const place = $("announce");
  place.textContent = "";
  // Said again, the same text would be no change.
  setTimeout(() => (place.textContent = text), 50);
}

/** Asks whether to delete something. */
export function confirmed(text) {
  const dialog = $("confirm");
  $("confirm-text").textContent = text;
  return new Promise((resolve) => {
    const end = (answer) => () => {
      dialog.close();
      resolve(answer);
    };
    $("confirm-yes").onclick = end(true);
    $("confirm-no").onclick = end(false);
    dialog.oncancel = () => resolve(false);
    dialog.showModal();
    $("confirm-no").focus();
  });
}

/** Makes a text area as high as its text, up to what its style allows, where the style can't do it (field-sizing). */
export function fit(area) {
  if (CSS.supports("field-sizing", "content")) return;
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight + area.offsetHeight - area.clientHeight}px`;
}

/** 1234567 bytes as 1.2 MB. */
export function bytes(count) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let power = 0;
  while (count >= 1000 && power < units.length - 1) {
    count /= 1000;
    power += 1;
  }
  return `${power === 0 || count >= 100 ? Math.round(count) : count.toFixed(1)} ${units[power]}`;
}

/** Seconds as people say them. */
export function duration(seconds) {
  if (seconds < 0.001) return `${Math.round(seconds * 1e6)} µs`;
  if (seconds < 1) return `${(seconds * 1000).toFixed(seconds < 0.01 ? 1 : 0)} ms`;
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 86400)} d ${Math.floor((seconds % 86400) / 3600)} h`;
}
