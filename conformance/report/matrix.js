// The matrix: a row for each case whatever its capture, a column for each backend, families that fold.

// With more backends than this a cell holds the sign of its verdict alone, and headings stand upright.
const FEW = 4;
const wide = data.backends.length <= FEW;
const prototypes = new Map();

function buildMatrix() {
  const matrix = $("matrix");
  matrix.classList.add(wide ? "wide" : "narrow");
  matrix.style.setProperty("--backends", data.backends.length);
  const heads = ["case", "mode"].map((name) => el("th", { scope: "col", role: "columnheader", class: `c-${name}` }, name));
  const columns = data.backends.map((name) => el("th", { scope: "col", role: "columnheader", class: "c-backend", title: name },
    el("a", { href: `#${new URLSearchParams({ backend: name })}`, "data-page": name }, name)));
  const families = new Map();
  for (const item of data.rows) families.set(item.family, []);
  for (const item of data.rows) families.get(item.family).push(item);
  const sorted = [...families.keys()].sort();
  data.rows = sorted.flatMap((family) => families.get(family));
  const bodies = sorted.map((family) => buildFamily(family, families.get(family)));
  matrix.append(el("thead", { role: "rowgroup" }, el("tr", { role: "row" }, ...heads, ...columns)), ...bodies);
}

function buildFamily(family, members) {
  const toggle = el("button", { type: "button", class: "nav fold", "aria-expanded": "true", tabindex: "-1" },
    el("span", { class: "family-name" }, family), " ", el("span", { class: "tally" }));
  const heading = el("th", { scope: "rowgroup", role: "rowheader" }, toggle);
  const scores = data.backends.map((backend, i) => {
    const sum = (what) => members.reduce((all, item) => all + (item.cells[i]?.[what] || 0), 0);
    const [native, scored] = [sum("native"), sum("scored")];
    const shown = wide ? `${native} of ${scored}` : `${native}/${scored}`;
    return el("td", { role: "cell", "data-backend": backend, title: `${backend}: ${native} of ${scored} records native` }, shown);
  });
  const body = el("tbody", { role: "rowgroup", "data-family": family }, el("tr", { class: "heading", role: "row" }, heading, ...scores));
  body.members = members;
  // What is not on the screen is not laid out; this is how high it will be, about.
  body.style.setProperty("--rows", members.length + 1);
  return body;
}

// The rows of a family, once; until then its heading stands for them.
function buildRows(body) {
  if (!body.built) for (const item of body.members) body.append(buildRow(item));
  body.built = true;
}

function buildAll() {
  for (const body of $("matrix").tBodies) buildRows(body);
}

// One family at a time, so that the page answers in between.
async function buildInTurn() {
  for (const body of $("matrix").tBodies) {
    buildRows(body);
    await new Promise((done) => setTimeout(done));
  }
}

function buildRow(item) {
  item.link = el("a", { class: "nav", href: `#${new URLSearchParams({ case: item.name })}`, tabindex: "-1" }, item.name);
  item.row = el("tr", { role: "row", class: "case" },
    el("th", { scope: "row", role: "rowheader", title: item.why }, item.link), el("td", { role: "cell", class: "c-mode" }, item.mode));
  item.row.item = item;
  item.row.hidden = !item.shown;
  fillRow(item);
  return item.row;
}

function fillRow(item) {
  item.row.querySelectorAll("td.verdict").forEach((cell) => cell.remove());
  item.row.append(...item.places.map((place, i) => cellOf(place, i)));
  item.drawn = state.capture;
  if (wide && details) showDecibels(item);
}

// Thousands of cells are copies of a few dozens.
function cellOf(place, i) {
  const key = `${place} ${i} ${state.capture}`;
  if (!prototypes.has(key)) prototypes.set(key, buildCell(narrowed(data.cells[place] || null), data.backends[i]));
  return prototypes.get(key).cloneNode(true);
}

function buildCell(cell, backend) {
  if (!cell) return el("td", { role: "cell", "data-backend": backend, class: "verdict absent", title: `${backend}: not run` }, wide ? "not run" : "");
  const label = labelOf(cell);
  const element = el("td", { role: "cell", "data-backend": backend, class: `verdict v-${cell.verdict}`, title: `${backend}: ${label}` },
    wide ? `${GLYPHS.get(cell.verdict)} ${cell.verdict}` : GLYPHS.get(cell.verdict));
  if (!wide) element.setAttribute("aria-label", label);
  if (cell.change) element.append(el("small", {}, wide ? ` ${SIGNS[cell.change]} ${cell.change}` : SIGNS[cell.change]));
  if (cell.known) element.append(el("small", {}, wide ? ` ${cell.known}` : "k"));
  return element;
}

// The verdict, and what each capture gave where they differ.
function labelOf(cell) {
  const parts = cell.parts || [cell];
  const labels = parts.map((part) => [part.verdict, part.known, part.change].filter(Boolean).join(", "));
  if (new Set(labels).size === 1) return labels[0];
  return `${cell.verdict} (${parts.map((part, i) => `${part.capture}: ${labels[i]}`).join("; ")})`;
}

function showDecibels(item) {
  const cells = item.row.querySelectorAll("td.verdict");
  for (const { backend, subject, measures: { sqnr_db: decibel } } of recordsOf(item)) {
    const i = data.backends.indexOf(backend);
    const shown = narrowed(item.cells[i]);
    if (typeof decibel !== "number" || shown?.capture !== subject.capture || cells[i].childElementCount) continue;
    cells[i].append(el("small", { class: "db" }, ` ${decibel.toFixed(1)} dB`));
  }
}

function filterRows() {
  let shown = 0;
  for (const body of $("matrix").tBodies) {
    let here = 0;
    for (const item of body.members) {
      item.shown = matches(item);
      if (item.row) item.row.hidden = !item.shown;
      if (item.row && item.shown && item.drawn !== state.capture) fillRow(item);
      here += item.shown ? 1 : 0;
    }
    body.hidden = here === 0;
    body.style.setProperty("--rows", here + 1);
    body.querySelector(".tally").textContent = here === body.members.length ? `${here} rows` : `${here} of ${body.members.length} rows`;
    shown += here;
  }
  const unknown = details && state.case && !data.byName.has(state.case) ? `; no case is called ${state.case}` : "";
  $("shown").textContent = `showing ${shown} of ${data.rows.length} rows${unknown}`;
  $("nothing").hidden = shown > 0;
}

// ---- keyboard: one stop for Tab in the table, arrows between its rows

function stops() {
  buildAll();
  const seen = (body) => !body.hidden;
  const rows = (body) => [...body.rows].filter((each) => !each.hidden && !(body.classList.contains("folded") && each.item));
  return [...$("matrix").tBodies].filter(seen).flatMap(rows).map((each) => each.querySelector(".nav"));
}

function firstStop() {
  const body = [...$("matrix").tBodies].find((each) => !each.hidden);
  return body ? body.querySelector(".nav") : null;
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
  go({ case: row.item.name, backend: cell ? cell.dataset.backend : "" });
}
