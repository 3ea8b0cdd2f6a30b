"use strict";

// The panel of one case. Everything foreign goes in as text nodes, never as markup.

function showPanel() {
  const panel = $("panel");
  const item = data.byId.get(state.case);
  if (!item) {
    if (panel.open) panel.close();
    return;
  }
  const given = item.records.get(state.backend);
  const worst = [...item.records.values()].find((record) => record.failed);
  const focused = panel.open && document.activeElement ? document.activeElement.dataset.keep : null;
  panel.replaceChildren(...panelOf(item, given || worst || [...item.records.values()][0]));
  panel.item = item;
  if (!panel.open) panel.showModal();
  panel.scrollTop = 0;
  (panel.querySelector(`[data-keep="${focused || "close"}"]`) || panel.querySelector("[data-keep=close]")).focus();
}

function panelOf(item, record) {
  const head = el("header", {},
    el("div", { class: "tools" },
      button("↑ previous", () => step(-1), { "data-keep": "previous" }), button("↓ next", () => step(1), { "data-keep": "next" }),
      button("✕ close", () => $("panel").close(), { "data-keep": "close", class: "close" })),
    el("h2", { id: "panel-title" }, item.case), backendSwitch(item, record));
  const place = `${item.family} · ${item.mode} · ${item.capture} · seed ${item.seed}`;
  const stage = record.stage === null ? null : el("span", {}, ` in step ${record.stage}`);
  const parameters = Object.entries(item.parameters).map(([name, value]) => el("code", {}, `${name}: ${value}`));
  return [head,
    el("p", { class: "headline" }, word(record.verdict), stage, el("span", { class: "quiet" }, ` on ${record.backend} · ${place}`)),
    record.known === null ? null : el("p", { class: "known" }, el("strong", {}, record.failed ? "Passes, but is known to fail: " : "Known failure: "), record.known),
    record.lapsed === null ? null : el("p", { class: "known" }, el("strong", {}, "No longer a known failure: "), record.lapsed),
    el("p", { class: "why" }, el("strong", {}, "Why: "), item.why),
    ...record.notes.map((note) => el("p", { class: "why" }, el("strong", {}, "Note: "), note)),
    parameters.length ? el("p", { class: "parameters" }, ...parameters) : null,
    ...findingsOf(record), ...errorOf(record), ...operatorsOf(record), ...measuresOf(record), ...secondsOf(record),
    el("h3", {}, "Reproduce"),
    command(`conformance show ${shell(item.case)} --backend ${shell(record.backend)}`),
    command(`pytest ${shell(pytestItem(item, record.backend))} --backend ${shell(record.backend)}`),
    el("h3", {}, "Spec"), el("p", { class: "quiet" }, `${item.path}:${item.line}`), el("pre", { tabindex: "0" }, item.yaml),
  ].filter((part) => part !== null);
}

function backendSwitch(item, record) {
  if (item.records.size < 2) return null;
  const buttons = [...item.records.values()].map((other) => {
    const pressed = String(other === record);
    const element = button(other.backend, () => go({ backend: other.backend }), { "aria-pressed": pressed, "data-keep": `on ${other.backend}` });
    element.append(" ", word(other.verdict));
    return element;
  });
  return el("div", { class: "switch", role: "group", "aria-label": "backend" }, ...buttons);
}

function table(heads, rows) {
  const head = el("tr", {}, ...heads.map((name) => el("th", { scope: "col" }, name)));
  return el("table", { class: "plain" }, el("thead", {}, head), el("tbody", {}, ...rows));
}

function findingsOf(record) {
  if (!record.findings.length) return [];
  const sign = { held: "✓", failed: "✗", vacuous: "○" };
  const looks = { held: "v-native", failed: "v-wrong", vacuous: "v-vacuous" };
  const rows = record.findings.map(([check, outcome, expected, got]) => el("tr", {},
    el("th", { scope: "row" }, check), el("td", { class: `outcome ${looks[outcome]}` }, `${sign[outcome]} ${outcome}`),
    el("td", {}, expected), el("td", {}, got)));
  return [el("h3", {}, "Checks"), table(["check", "outcome", "expected", "got"], rows)];
}

function errorOf(record) {
  return record.error ? [el("h3", {}, "Error"), el("pre", { class: "error", tabindex: "0" }, record.error)] : [];
}

function operatorsOf(record) {
  const { expected_ops: expected, executed_ops: executed } = record;
  const names = [...new Set([...Object.keys(expected), ...Object.keys(executed)])];
  const rows = names.map((name) => {
    const [want, ran] = [expected[name], executed[name] || 0];
    const note = want === undefined ? "not asked for" : want === ran ? "as expected" : "≠ differs";
    return el("tr", want !== undefined && want !== ran ? { class: "differs" } : {},
      el("th", { scope: "row" }, name), el("td", { class: "num" }, want === undefined ? "" : String(want)),
      el("td", { class: "num" }, String(ran)), el("td", {}, note));
  });
  const list = (label, ops) => {
    const parts = Object.entries(ops).map(([name, count]) => el("code", {}, `${name} × ${count}`));
    return parts.length ? el("p", { class: "parameters" }, el("strong", {}, label), ...parts) : null;
  };
  const lists = [list("Float graph: ", record.float_ops), list("Backend's own names: ", record.native_ops)];
  const shown = rows.length ? table(["operator", "expected", "executed", ""], rows) : null;
  const parts = [shown, ...lists].filter((part) => part !== null);
  return parts.length ? [el("h3", {}, "Operators"), ...parts] : [];
}

function measuresOf(record) {
  const m = record.measures;
  const judged = (m.exact || 0) + (m.tie || 0) + (m.wrong || 0);
  const rows = [
    ["SQNR against float", m.sqnr_db, "dB"], ["largest absolute difference", m.max_abs, ""], ["largest difference", m.max_quanta, "quanta"],
    ["debug against final form", m.debug_quanta, "quanta"],
    ["exact roundings", m.exact === null ? null : share(m.exact, judged), ""], ["within a tie", m.tie, ""], ["wrong roundings", m.wrong, ""],
  ].filter(([, value]) => value !== null);
  if (!rows.length) return [];
  const entries = rows.map(([label, value, unit]) => el("div", {}, el("dt", {}, label), el("dd", {}, `${value} ${unit}`)));
  return [el("h3", {}, "Accuracy and equality"), el("dl", { class: "facts" }, ...entries)];
}

function secondsOf(record) {
  if (!record.seconds.length) return [];
  const most = Math.max(...record.seconds.map(([, seconds]) => seconds));
  const whole = record.seconds.reduce((sum, [, seconds]) => sum + seconds, 0);
  const rows = record.seconds.map(([name, seconds]) => {
    const bar = el("span", { class: "fill" });
    bar.style.width = `${most ? (100 * seconds) / most : 0}%`;
    return el("li", {}, el("span", {}, name), el("span", { class: "track", "aria-hidden": "true" }, bar), el("span", { class: "num" }, `${(seconds * 1000).toFixed(2)} ms`));
  });
  return [el("h3", {}, `Time: ${(whole * 1000).toFixed(1)} ms`), el("ul", { class: "times" }, ...rows)];
}

function shell(text) {
  return /^[\w:.,/=-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

// In pytest an item is named by its spec, with the backend before mode, capture and parameters; the file says the suite.
function pytestItem(item, backend) {
  return `${item.path}::${item.case.replace(`${item.family}::`, "").replace("[", () => `[${backend}-`)}`;
}

function command(text) {
  const code = el("code", {}, text);
  const copy = button("copy", async () => {
    getSelection().selectAllChildren(code);
    // Where a page from a file may not use the clipboard, the selection is what the older way copies.
    const done = await navigator.clipboard?.writeText(text).then(() => true, () => document.execCommand("copy"));
    status.textContent = done ? "copied" : "selected";
  }, { "aria-label": `copy: ${text}` });
  const status = el("span", { role: "status", class: "quiet" });
  return el("div", { class: "command" }, code, copy, status);
}

function step(by) {
  const links = stops().filter((stop) => stop.tagName === "A").map((stop) => stop.closest("tr").item);
  const next = links[links.indexOf($("panel").item) + by];
  if (next) go({ case: next.case });
}

function onPanelClose() {
  const { item } = $("panel");
  if (state.case) go({ case: "", backend: "" });
  const stop = stops().includes(item.link) ? item.link : $("matrix");
  stop.focus();
}
