"use strict";

// What the page is made of. Everything foreign goes in as text nodes, never as markup.

const $ = (id) => document.getElementById(id);

function el(name, attributes, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) element.setAttribute(key, value);
  element.append(...children.filter((child) => child !== null));
  return element;
}

function button(label, action, attributes) {
  const element = el("button", { type: "button", ...attributes }, label);
  element.addEventListener("click", action);
  return element;
}

function word(verdict) {
  return el("span", { class: `v-${verdict} word` }, el("span", { "aria-hidden": "true" }, GLYPHS.get(verdict)), ` ${verdict}`);
}

function table(heads, rows, attributes) {
  const head = el("tr", {}, ...heads.map((name) => el("th", { scope: "col" }, name)));
  return el("table", { class: "plain", ...attributes }, el("thead", {}, head), el("tbody", {}, ...rows));
}

function scrolled(label, content) {
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label }, content);
}

function row(name, ...cells) {
  return el("tr", {}, el("th", { scope: "row" }, name), ...cells.map((cell) => el("td", { class: "num" }, cell)));
}

function factsOf(pairs) {
  return el("dl", { class: "facts" }, ...pairs.map(([label, value]) => el("div", {}, el("dt", {}, label), el("dd", {}, value))));
}

function command(text) {
  const code = el("code", {}, text);
  const status = el("span", { role: "status", class: "quiet" });
  const copy = button("copy", async () => {
    getSelection().selectAllChildren(code);
    // Where a page from a file may not use the clipboard, the selection is what the older way copies.
    const done = await navigator.clipboard?.writeText(text).then(() => true, () => document.execCommand("copy"));
    status.textContent = done ? "copied" : "selected";
  }, { "aria-label": `copy: ${text}` });
  return el("div", { class: "command" }, code, copy, status);
}

function shell(text) {
  return /^[\w:.,/=-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

function share(part, whole) {
  if (!whole) return "0 of 0";
  const percent = Math.floor((100 * part) / whole);
  return `${part} of ${whole} (${part && !percent ? "< 1" : percent} %)`;
}
