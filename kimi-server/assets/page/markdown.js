// Markdown of answers as elements. Every piece of text becomes a text node and every element is made by name, so that an answer
// cannot bring HTML, scripts or pictures into the page. Links go to http, https and mailto only.

import { copyButton, el } from "./dom.js";

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*\s*$/;
const RULE = /^ {0,3}([-*_])(?:\s*\1){2,}\s*$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const QUOTE = /^ {0,3}>\s?(.*)$/;
const TABLE_LINE = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;
/** How deep lists and quotes may nest; deeper is text. */
const MAX_DEPTH = 8;

/** Shows text that grows: blocks that are the same as before stay as they are. */
export class Markdown {
  constructor(place) {
    this.place = place;
    this.sources = [];
  }

  show(text) {
    const blocks = split(text);
    let same = 0;
    while (same < blocks.length && this.sources[same] === blocks[same].source) same += 1;
    while (this.place.childNodes.length > same) this.place.lastChild.remove();
    for (const block of blocks.slice(same)) this.place.append(element(block, 0));
    this.sources = blocks.map((block) => block.source);
  }
}

/** Blocks of a text: each has its kind, its lines, and its source, by which it is known again. */
export function split(text) {
  const lines = text.replace(/\r\n?/g, "\n").split("\n");
  const blocks = [];
  let i = 0;
  const take = (kind, end, extra = {}) => {
    const own = lines.slice(i, end);
    blocks.push({ kind, lines: own, source: `${kind}\n${own.join("\n")}`, ...extra });
    i = end;
  };
  while (i < lines.length) {
    const line = lines[i];
    const fence = line.match(FENCE);
    if (line.trim() === "") i += 1;
    else if (fence) take("code", endOfFence(lines, i, fence[1]), { language: fence[2].trim(), mark: fence[1] });
    else if (HEADING.test(line)) take("heading", i + 1);
    else if (RULE.test(line)) take("rule", i + 1);
    else if (QUOTE.test(line)) take("quote", endOf(lines, i, (next) => QUOTE.test(next)));
    else if (ITEM.test(line)) take("list", endOfList(lines, i));
    else if (isTable(lines, i)) take("table", endOf(lines, i, (next) => next.includes("|")));
    else take("text", endOfText(lines, i));
  }
  return blocks;
}

function endOf(lines, start, belongs) {
  let end = start + 1;
  while (end < lines.length && belongs(lines[end])) end += 1;
  return end;
}

function endOfFence(lines, start, mark) {
  const closes = (line) => {
    const found = line.match(/^ {0,3}(`{3,}|~{3,})\s*$/);
    return found && found[1][0] === mark[0] && found[1].length >= mark.length;
  };
  const end = endOf(lines, start, (line) => !closes(line));
  return Math.min(end + 1, lines.length);
}

/** A list goes on over empty lines if what follows is indented or another item. */
function endOfList(lines, start) {
  let end = start + 1;
  while (end < lines.length) {
    const line = lines[end];
    if (line.trim() === "") {
      const next = lines.slice(end).find((other) => other.trim() !== "");
      if (next === undefined || !(/^\s{2,}/.test(next) || ITEM.test(next))) break;
    } else if (!(/^\s{2,}/.test(line) || ITEM.test(line)) && begins(lines, end)) break;
    end += 1;
  }
  return end;
}

function isTable(lines, i) {
  return lines[i].includes("|") && i + 1 < lines.length && lines[i + 1].includes("-") && TABLE_LINE.test(lines[i + 1]);
}

function begins(lines, i) {
  const line = lines[i];
  return [FENCE, HEADING, RULE, QUOTE, ITEM].some((form) => form.test(line)) || isTable(lines, i);
}

function endOfText(lines, start) {
  let end = start + 1;
  while (end < lines.length && lines[end].trim() !== "" && !begins(lines, end)) end += 1;
  return end;
}

function element(block, depth) {
  const { kind, lines } = block;
  if (kind === "code") return code(block);
  if (kind === "rule") return el("hr");
  if (kind === "heading") {
    const [, marks, text] = lines[0].match(HEADING);
    // The page's own headings come first.
    return el(`h${Math.min(marks.length + 2, 6)}`, {}, inline(text));
  }
  if (kind === "quote") {
    return el("blockquote", {}, nested(lines.map((line) => line.match(QUOTE)[1]).join("\n"), depth));
  }
  if (kind === "list") return list(lines, depth);
  if (kind === "table") return table(lines);
  return el("p", {}, broken(lines));
}

function nested(text, depth) {
  return depth >= MAX_DEPTH ? [text] : split(text).map((block) => element(block, depth + 1));
}

function code({ lines, language, mark }) {
  const last = lines[lines.length - 1].trim();
  const closed = lines.length > 1 && last.length >= mark.length && [...last].every((c) => c === mark[0]);
  const text = lines.slice(1, closed ? -1 : undefined).join("\n");
  const head = el("div", { class: "code-head" }, el("span", {}, language || "text"), copyButton(() => text, "Copy the code"));
  return el("div", { class: "code" }, head, el("pre", { tabIndex: 0 }, el("code", {}, text)));
}

function list(lines, depth) {
  const first = lines[0].match(ITEM);
  const ordered = /\d/.test(first[2]);
  const items = [];
  for (const line of lines) {
    const found = line.match(ITEM);
    // An item of this list is not indented further than the first.
    if (found && found[1].length <= first[1].length + 1) items.push({ width: found[1].length + found[2].length + 1, lines: [found[3]] });
    else {
      const item = items[items.length - 1];
      item.lines.push(line.replace(new RegExp(`^\\s{0,${item.width}}`), ""));
    }
  }
  const rows = items.map((item) => {
    const box = item.lines[0].match(/^\[([ xX])\]\s+(.*)$/);
    if (box) item.lines[0] = `${box[1] === " " ? "☐" : "☑"} ${box[2]}`;
    const blocks = split(item.lines.join("\n"));
    const children = blocks.map((block, i) => {
      // An item of one paragraph needs none of its own.
      if (i === 0 && block.kind === "text") return broken(block.lines);
      return depth >= MAX_DEPTH ? [block.lines.join("\n")] : [element(block, depth + 1)];
    });
    return el("li", {}, children.flat());
  });
  return ordered ? el("ol", { start: parseInt(first[2], 10) }, rows) : el("ul", {}, rows);
}

function cells(line) {
  return line.trim().replace(/^\||\|$/g, "").split(/(?<!\\)\|/).map((cell) => cell.trim().replace(/\\\|/g, "|"));
}

function table(lines) {
  const sides = cells(lines[1]).map((cell) => (/^:-+:$/.test(cell) ? "center" : /-:$/.test(cell) ? "right" : "left"));
  const row = (tag, line) => el("tr", {}, cells(line).map((cell, i) => el(tag, { class: sides[i] ?? "left" }, inline(cell))));
  const head = el("thead", {}, row("th", lines[0]));
  return el("div", { class: "table", tabIndex: 0 }, el("table", {}, head, el("tbody", {}, lines.slice(2).map((line) => row("td", line)))));
}

/** Lines of a paragraph; two spaces or a backslash at an end break it. */
function broken(lines) {
  const text = lines.map((line, i) => (i < lines.length - 1 && /(?: {2,}|\\)$/.test(line) ? `${line.replace(/(?: +|\\)$/, "")}\u0000` : line.trim()));
  const parts = text.join("\n").replace(/\u0000\n/g, "\u0000").split("\u0000");
  return parts.flatMap((part, i) => (i === 0 ? inline(part) : [el("br"), ...inline(part)]));
}

// Code first: nothing counts inside it. Each form is found from its left end to the nearest right end.
const FORMS = [
  { form: /(`+)([^]*?[^`])\1(?!`)/, make: (found) => el("code", {}, found[2].replace(/^ (.*) $/s, "$1")) },
  // Formulas stay as they were written.
  { form: /\\\(([^]+?)\\\)|\\\[([^]+?)\\\]|\$\$([^]+?)\$\$/, make: (found) => el("code", { class: "math" }, (found[1] ?? found[2] ?? found[3]).trim()) },
  { form: /\\([\\`*_{}[\]()#+\-.!|~<>$])/, make: (found) => found[1] },
  { form: /!?\[([^\]\n]*)\]\(\s*<?([^\s()<>]*(?:\([^\s()]*\)[^\s()<>]*)*)>?(?:\s+"[^"\n]*")?\s*\)/, make: (found) => link(found[2], inline(found[1] || found[2]), found[0]) },
  { form: /<(https?:\/\/[^\s<>]+|[^\s<>@]+@[^\s<>@]+\.[^\s<>@]+)>/, make: (found) => link(found[1].includes("://") ? found[1] : `mailto:${found[1]}`, [found[1]], found[0]) },
  { form: /\*\*(?=\S)([^]*?\S)\*\*(?!\*)/, make: (found) => el("strong", {}, inline(found[1])) },
  { form: /(?<![\p{L}\p{N}_])__(?=\S)([^]*?\S)__(?![\p{L}\p{N}_])/u, make: (found) => el("strong", {}, inline(found[1])) },
  { form: /~~(?=\S)([^]*?\S)~~/, make: (found) => el("del", {}, inline(found[1])) },
  { form: /\*(?=[^\s*])([^*]*[^\s*])\*(?!\*)/, make: (found) => el("em", {}, inline(found[1])) },
  { form: /(?<![\p{L}\p{N}_])_(?=\S)([^_]*[^\s_])_(?![\p{L}\p{N}_])/u, make: (found) => el("em", {}, inline(found[1])) },
  { form: /https?:\/\/[^\s<>"'`]*[^\s<>"'`.,;:!?)\]}*_~]/, make: (found) => link(found[0], [found[0]], found[0]) },
];

/** Most characters of a paragraph that are looked at for forms; the rest is text. */
const MAX_INLINE = 8000;

function inline(text) {
  const nodes = [];
  const tail = text.slice(MAX_INLINE);
  text = text.slice(0, MAX_INLINE);
  const next = FORMS.map(({ form }) => form.exec(text));
  let from = 0;
  for (;;) {
    let best = -1;
    for (let i = 0; i < FORMS.length; i += 1) {
      if (next[i] && next[i].index < from) next[i] = search(FORMS[i].form, text, from);
      if (next[i] && (best < 0 || next[i].index < next[best].index)) best = i;
    }
    if (best < 0) break;
    const found = next[best];
    if (found.index > from) nodes.push(text.slice(from, found.index));
    nodes.push(FORMS[best].make(found));
    from = found.index + found[0].length;
  }
  nodes.push(text.slice(from) + tail);
  return nodes.filter((node) => node !== "");
}

function search(form, text, from) {
  const sticky = new RegExp(form.source, `${form.flags.replace("g", "")}g`);
  sticky.lastIndex = from;
  return sticky.exec(text);
}

function link(address, children, source) {
  let url;
  try {
    url = new URL(address);
  } catch {
    return source;
  }
  if (!["http:", "https:", "mailto:"].includes(url.protocol)) return source;
  return el("a", { href: url.href, target: "_blank", rel: "noopener noreferrer nofollow" }, children);
}
