// The page is a function of its fragment: every action writes a new fragment, and `apply` draws what it says.

const $ = (id) => document.getElementById(id);
const NARROWING = ["family", "mode", "capture"];
const data = decode(JSON.parse($("data").textContent));
const GLYPHS = new Map(data.verdicts);
let state = readFragment();

// ---- data

function decode(raw) {
  const object = (fields, row) => Object.fromEntries(fields.map((name, i) => [name, row[i]]));
  const cases = raw.cases.rows.map((row) => ({
    ...object(raw.cases.fields, row.map((place) => raw.values[place])),
    records: new Map(),
  }));
  for (const row of raw.records.rows) {
    const record = object(raw.records.fields, row);
    const owner = cases[record.subject];
    for (const [name, value] of Object.entries(record)) {
      if (Number.isInteger(value) && name !== "subject") record[name] = raw.values[value];
    }
    record.findings = record.findings.map((place) => raw.values[place]);
    record.measures = object(raw.measures, record.measures);
    if (record.layers) record.layers = { ...record.layers, rows: record.layers.rows.map((one) => object(raw.layers, one)) };
    const [steps, ...seconds] = record.seconds;
    record.seconds = raw.values[steps].map((step, i) => [step, seconds[i]]);
    // A case that is known to fail and passes fails the run as much as one that fails unknown.
    record.failed = (record.verdict === "native") === (record.known !== null);
    owner.records.set(record.backend, record);
  }
  cases.forEach((item) => { item.text = haystack(item); });
  return { ...raw, cases, byId: new Map(cases.map((item) => [item.case, item])) };
}

function haystack(item) {
  const parts = [item.case, item.why, ...Object.values(item.parameters)];
  for (const record of item.records.values()) {
    parts.push(...Object.keys(record.executed_ops), ...Object.keys(record.expected_ops));
    parts.push(record.error || "", record.known === null ? "" : `known ${record.known}`);
  }
  return parts.join("\n").toLowerCase();
}

function matches(item) {
  if (NARROWING.some((key) => state[key] && item[key] !== state[key])) return false;
  if (state.q && !state.q.toLowerCase().split(/\s+/).every((word) => item.text.includes(word))) return false;
  if (!state.verdicts.size && !state.failed) return true;
  return [...item.records.values()].some((record) =>
    (!state.verdicts.size || state.verdicts.has(record.verdict)) && (!state.failed || record.failed));
}

// ---- fragment

function readFragment() {
  const given = new URLSearchParams(location.hash.slice(1));
  const text = (key) => given.get(key) || "";
  return {
    family: text("family"), mode: text("mode"), capture: text("capture"), q: text("q"),
    verdicts: new Set(text("verdict").split(",").filter(Boolean)),
    failed: text("failed") === "1", case: text("case"), backend: text("backend"),
  };
}

function fragment(view) {
  const given = new URLSearchParams();
  if (view.verdicts.size) given.set("verdict", [...view.verdicts].join(","));
  if (view.failed) given.set("failed", "1");
  for (const key of [...NARROWING, "q", "case", "backend"]) if (view[key]) given.set(key, view[key]);
  return `#${given}`;
}

function go(change) {
  const next = { ...state, ...change };
  // Only opening a case is a step to go back from; typing in the search must not fill the history.
  const step = next.case && !state.case ? "pushState" : "replaceState";
  history[step](null, "", fragment(next));
  apply();
}

// ---- elements

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

function share(part, whole) {
  if (!whole) return "0 of 0";
  const percent = Math.floor((100 * part) / whole);
  return `${part} of ${whole} (${part && !percent ? "< 1" : percent} %)`;
}

// ---- matrix

function buildMatrix() {
  const wide = data.backends.length < 5;
  const names = [["case", "c-case"], ["mode", "c-mode"], ["capture", "c-capture"]];
  const heads = [...names, ...data.backends.map((name) => [name, "c-backend"])];
  const row = el("tr", { role: "row" }, ...heads.map(([name, kind]) =>
    el("th", { scope: "col", role: "columnheader", class: kind, title: name }, name)));
  const families = new Map(data.cases.map((item) => [item.family, []]));
  for (const item of data.cases) families.get(item.family).push(item);
  const bodies = [...families.keys()].sort().map((family) => buildFamily(family, families.get(family), wide));
  $("matrix").append(el("thead", { role: "rowgroup" }, row), ...bodies);
}

function buildFamily(family, cases, wide) {
  const toggle = el("button", { type: "button", class: "nav fold", "aria-expanded": "true", tabindex: "-1" },
    el("span", { class: "family-name" }, family), " ", el("span", { class: "tally" }));
  const heading = el("th", { colspan: "3", scope: "rowgroup", role: "rowheader" }, toggle);
  const scores = data.backends.map((backend) => {
    const records = cases.map((item) => item.records.get(backend)).filter((r) => r && r.verdict !== "error");
    const native = records.filter((record) => record.verdict === "native").length;
    return el("td", { role: "cell", "data-backend": backend }, `${native} of ${records.length}`);
  });
  const body = el("tbody", { role: "rowgroup", "data-family": family },
    el("tr", { class: "heading", role: "row" }, heading, ...scores));
  for (const item of cases) body.append(buildRow(item, wide));
  body.members = cases;
  return body;
}

function buildRow(item, wide) {
  const link = el("a", { class: "nav", href: `#${new URLSearchParams({ case: item.case })}`, tabindex: "-1" }, item.case);
  const cells = data.backends.map((backend) => buildCell(item.records.get(backend), backend, wide));
  item.link = link;
  item.row = el("tr", { role: "row", class: "case" },
    el("th", { scope: "row", role: "rowheader", title: item.why }, link),
    el("td", { role: "cell", class: "c-mode" }, item.mode),
    el("td", { role: "cell", class: "c-capture" }, item.capture), ...cells);
  item.row.item = item;
  return item.row;
}

function buildCell(record, backend, wide) {
  if (!record) return el("td", { role: "cell", "data-backend": backend, class: "verdict absent" }, "not run");
  // No elements but the cell: thousands of these are laid out at once.
  const text = `${GLYPHS.get(record.verdict)} ${record.verdict}`;
  const cell = el("td", { role: "cell", "data-backend": backend, class: `verdict v-${record.verdict}` }, text);
  if (record.known !== null) cell.append(el("small", {}, record.failed ? " known to fail" : " known"));
  else if (wide && typeof record.measures.sqnr_db === "number") {
    cell.append(el("small", { class: "db" }, ` ${record.measures.sqnr_db.toFixed(1)} dB`));
  }
  return cell;
}

// ---- filters

function buildFilters() {
  const counts = new Map();
  for (const item of data.cases) for (const { verdict } of item.records.values()) counts.set(verdict, (counts.get(verdict) || 0) + 1);
  for (const [verdict] of data.verdicts.filter(([name]) => counts.has(name))) {
    $("verdicts").append(chip(word(verdict), counts.get(verdict), { name: "verdict", value: verdict }));
  }
  const failed = data.cases.reduce((sum, item) => sum + [...item.records.values()].filter((r) => r.failed).length, 0);
  if (failed) $("verdicts").append(chip("unexpected failures", failed, { name: "failed", value: "1" }));
  for (const key of NARROWING) {
    const values = [...new Set(data.cases.map((item) => item[key]))].sort();
    const options = values.map((value) => el("option", { value }, value));
    $("filters").elements[key].append(el("option", { value: "" }, "all"), ...options);
  }
}

function chip(label, count, attributes) {
  return el("label", { class: "chip" }, el("input", { type: "checkbox", ...attributes }), label, el("span", { class: "n" }, ` ${count}`));
}

function readFilters() {
  const form = $("filters").elements;
  const checked = [...document.querySelectorAll("[name=verdict]:checked")].map((box) => box.value);
  const failed = Boolean(form.failed && form.failed.checked);
  go({ verdicts: new Set(checked), failed, family: form.family.value, mode: form.mode.value, capture: form.capture.value, q: form.q.value.trim() });
}

function showFilters() {
  const form = $("filters").elements;
  for (const box of document.querySelectorAll("[name=verdict]")) box.checked = state.verdicts.has(box.value);
  if (form.failed) form.failed.checked = state.failed;
  for (const key of NARROWING) form[key].value = state[key];
  if (form.q.value.trim() !== state.q) form.q.value = state.q;
}

function filterRows() {
  let shown = 0;
  for (const body of $("matrix").tBodies) {
    let here = 0;
    for (const item of body.members) {
      item.row.hidden = !matches(item);
      here += item.row.hidden ? 0 : 1;
    }
    body.hidden = here === 0;
    body.querySelector(".tally").textContent = here === body.members.length ? `${here} cases` : `${here} of ${body.members.length} cases`;
    shown += here;
  }
  const unknown = state.case && !data.byId.has(state.case) ? `; no case is called ${state.case}` : "";
  $("shown").textContent = `showing ${shown} of ${data.cases.length} cases${unknown}`;
  $("nothing").hidden = shown > 0;
}

// ---- keyboard: one stop for Tab in the table, arrows between its rows

function stops() {
  const seen = (body) => !body.hidden;
  const rows = (body) => [...body.rows].filter((row) => !row.hidden && !(body.classList.contains("folded") && row.item));
  return [...$("matrix").tBodies].filter(seen).flatMap(rows).map((row) => row.querySelector(".nav"));
}

function makeStop(stop) {
  $("matrix").querySelectorAll('.nav[tabindex="0"]').forEach((other) => { other.tabIndex = -1; });
  if (stop) stop.tabIndex = 0;
}

function move(key) {
  const all = stops();
  const at = all.indexOf(document.activeElement);
  const target = { ArrowDown: at + 1, j: at + 1, ArrowUp: at - 1, k: at - 1, Home: 0, End: all.length - 1 }[key];
  const stop = all[Math.max(0, Math.min(all.length - 1, target))];
  if (stop) stop.focus();
}

function fold(body, folded) {
  body.classList.toggle("folded", folded);
  const toggle = body.querySelector(".fold");
  toggle.setAttribute("aria-expanded", String(!folded));
  toggle.focus();
}

function onMatrixKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const body = event.target.closest("tbody");
  if (["ArrowDown", "ArrowUp", "j", "k", "Home", "End"].includes(event.key)) move(event.key);
  else if (body && event.key === "ArrowLeft") fold(body, true);
  else if (body && event.key === "ArrowRight") fold(body, false);
  else return;
  event.preventDefault();
}

function onMatrixClick(event) {
  const toggle = event.target.closest(".fold");
  if (toggle) fold(toggle.closest("tbody"), toggle.getAttribute("aria-expanded") === "true");
  const row = event.target.closest("tr.case");
  if (!row || event.ctrlKey || event.metaKey || event.shiftKey) return;
  const cell = event.target.closest("td[data-backend]");
  event.preventDefault();
  go({ case: row.item.case, backend: cell ? cell.dataset.backend : "" });
}

// ---- start

function apply() {
  state = readFragment();
  showFilters();
  filterRows();
  if (!stops().some((stop) => stop.tabIndex === 0)) makeStop(stops()[0]);
  showPanel();
}

function listen() {
  let waiting = 0;
  $("filters").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(readFilters, 80); });
  $("filters").addEventListener("submit", (event) => { event.preventDefault(); readFilters(); });
  $("reset").addEventListener("click", () => { history.replaceState(null, "", "#"); apply(); });
  $("matrix").addEventListener("keydown", onMatrixKey);
  $("matrix").addEventListener("click", onMatrixClick);
  $("matrix").addEventListener("focusin", (event) => { if (event.target.matches(".nav")) makeStop(event.target); });
  $("panel").addEventListener("close", onPanelClose);
  $("panel").addEventListener("click", (event) => { if (event.target === $("panel")) $("panel").close(); });
  $("panel").addEventListener("keydown", (event) => { if (event.key === "j" || event.key === "k") step(event.key === "j" ? 1 : -1); });
  $("skip").addEventListener("click", (event) => { event.preventDefault(); (stops()[0] || $("matrix")).focus(); });
  for (const link of document.querySelectorAll("a.family, .verdict-line a")) {
    link.addEventListener("click", () => setTimeout(() => $("filters").scrollIntoView()));
  }
  addEventListener("hashchange", apply);
  addEventListener("keydown", (event) => {
    if (event.key !== "/" || $("panel").open || event.target.matches("input, select")) return;
    event.preventDefault();
    $("filters").elements.q.focus();
  });
}

$("app").hidden = false;
buildMatrix();
buildFilters();
listen();
apply();
// A link to a view means its rows, not the summary above them.
if (location.hash.length > 1 && !state.case) $("filters").scrollIntoView();
