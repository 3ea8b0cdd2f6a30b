// The matrix: a row for each case, a column for each backend, families that fold.

// With more backends than this a cell holds the sign of its verdict alone, and headings stand upright.
const FEW = 4;
const SIGNS = { regressed: "↓", improved: "↑", changed: "≠", added: "+", incomparable: "¿" };
const wide = data.backends.length <= FEW;
const prototypes = new Map();

function buildMatrix() {
  const matrix = $("matrix");
  matrix.classList.add(wide ? "wide" : "narrow");
  matrix.style.setProperty("--backends", data.backends.length);
  const heads = ["case", "mode", "capture"].map((name) => el("th", { scope: "col", role: "columnheader", class: `c-${name}` }, name));
  const columns = data.backends.map((name) => el("th", { scope: "col", role: "columnheader", class: "c-backend", title: name },
    el("a", { href: `#${new URLSearchParams({ backend: name })}`, "data-page": name }, name)));
  const families = new Map();
  for (const item of data.cases) families.set(item.family, []);
  for (const item of data.cases) families.get(item.family).push(item);
  const sorted = [...families.keys()].sort();
  data.rows = sorted.flatMap((family) => families.get(family));
  const bodies = sorted.map((family) => buildFamily(family, families.get(family)));
  matrix.append(el("thead", { role: "rowgroup" }, el("tr", { role: "row" }, ...heads, ...columns)), ...bodies);
}

function buildFamily(family, cases) {
  const toggle = el("button", { type: "button", class: "nav fold", "aria-expanded": "true", tabindex: "-1" },
    el("span", { class: "family-name" }, family), " ", el("span", { class: "tally" }));
  const heading = el("th", { scope: "rowgroup", role: "rowheader" }, toggle);
  const scores = data.backends.map((backend, i) => {
    const cells = cases.map((item) => item.cells[i]).filter((cell) => cell && cell.verdict !== "error");
    const native = cells.filter((cell) => cell.verdict === "native").length;
    const shown = wide ? `${native} of ${cells.length}` : `${native}/${cells.length}`;
    return el("td", { role: "cell", "data-backend": backend, title: `${backend}: ${native} of ${cells.length} native` }, shown);
  });
  const body = el("tbody", { role: "rowgroup", "data-family": family }, el("tr", { class: "heading", role: "row" }, heading, ...scores));
  body.members = cases;
  // What is not on the screen is not laid out; this is how high it will be, about.
  body.style.setProperty("--rows", cases.length + 1);
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
  item.link = el("a", { class: "nav", href: `#${new URLSearchParams({ case: item.case })}`, tabindex: "-1" }, item.case);
  item.row = el("tr", { role: "row", class: "case" },
    el("th", { scope: "row", role: "rowheader", title: item.why }, item.link),
    el("td", { role: "cell", class: "c-mode" }, item.mode), el("td", { role: "cell", class: "c-capture" }, item.capture),
    ...item.places.map((place, i) => cellOf(place, i)));
  item.row.item = item;
  item.row.hidden = !item.shown;
  return item.row;
}

// Thousands of cells are copies of a few dozens.
function cellOf(place, i) {
  const key = `${place} ${i}`;
  if (!prototypes.has(key)) prototypes.set(key, buildCell(data.cells[place], data.backends[i]));
  return prototypes.get(key).cloneNode(true);
}

function buildCell(cell, backend) {
  if (!cell) return el("td", { role: "cell", "data-backend": backend, class: "verdict absent", title: `${backend}: not run` }, wide ? "not run" : "");
  const known = cell.known ? (cell.failed ? "known to fail" : "known") : "";
  const label = [cell.verdict, known, cell.change].filter(Boolean).join(", ");
  const element = el("td", { role: "cell", "data-backend": backend, class: `verdict v-${cell.verdict}`, title: `${backend}: ${label}` },
    wide ? `${GLYPHS.get(cell.verdict)} ${cell.verdict}` : GLYPHS.get(cell.verdict));
  if (!wide) element.setAttribute("aria-label", label);
  if (cell.change) element.append(el("small", {}, wide ? ` ${SIGNS[cell.change]} ${cell.change}` : SIGNS[cell.change]));
  if (known) element.append(el("small", {}, wide ? ` ${known}` : "k"));
  return element;
}

function showDecibels() {
  for (const item of wide ? data.cases : []) {
    const cells = item.row.querySelectorAll("td.verdict");
    for (const [name, record] of recordsOf(item)) {
      const { sqnr_db: decibel } = record.measures;
      const cell = cells[data.backends.indexOf(name)];
      if (typeof decibel === "number" && cell.childElementCount === 0) cell.append(el("small", { class: "db" }, ` ${decibel.toFixed(1)} dB`));
    }
  }
}

function filterRows() {
  let shown = 0;
  for (const body of $("matrix").tBodies) {
    let here = 0;
    for (const item of body.members) {
      item.shown = matches(item);
      if (item.row) item.row.hidden = !item.shown;
      here += item.shown ? 1 : 0;
    }
    body.hidden = here === 0;
    body.style.setProperty("--rows", here + 1);
    body.querySelector(".tally").textContent = here === body.members.length ? `${here} cases` : `${here} of ${body.members.length} cases`;
    shown += here;
  }
  const unknown = state.case && !data.byId.has(state.case) ? `; no case is called ${state.case}` : "";
  $("shown").textContent = `showing ${shown} of ${data.cases.length} cases${unknown}`;
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
  go({ case: row.item.case, backend: cell ? cell.dataset.backend : "" });
}
