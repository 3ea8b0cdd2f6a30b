// The page is a function of its fragment: every action writes a new fragment, and `apply` draws what it says.

const NARROWING = ["family", "mode", "capture", "dtype", "on"];
const FLAGS = ["failed", "disagree", "regressed"];
// Of the changes from an earlier run, those that somebody has to look at.
const WORSE = new Set(["regressed", "incomparable"]);
let state = readFragment();

function matches(item) {
  if (["family", "mode", "dtype"].some((key) => state[key] && item[key] !== state[key])) return false;
  if (state.disagree && !item.disagree.includes(state.capture)) return false;
  if (state.q && !state.q.toLowerCase().split(/\s+/).every((part) => textOf(item).includes(part))) return false;
  const cells = state.on ? [item.cells[data.backends.indexOf(state.on)]] : item.cells;
  return cells.map(narrowed).some((cell) => cell && (!state.verdicts.size || state.verdicts.has(cell.verdict))
    && (!state.failed || cell.failed) && (!state.regressed || WORSE.has(cell.change)));
}

// ---- fragment

function readFragment() {
  const given = new URLSearchParams(location.hash.slice(1));
  const texts = Object.fromEntries([...NARROWING, "q", "case", "backend"].map((key) => [key, given.get(key) || ""]));
  const flags = Object.fromEntries(FLAGS.map((key) => [key, given.get(key) === "1"]));
  return { ...texts, ...flags, verdicts: new Set((given.get("verdict") || "").split(",").filter(Boolean)) };
}

function fragment(view) {
  const given = new URLSearchParams();
  if (view.verdicts.size) given.set("verdict", [...view.verdicts].join(","));
  for (const key of FLAGS) if (view[key]) given.set(key, "1");
  for (const key of [...NARROWING, "q", "case", "backend"]) if (view[key]) given.set(key, view[key]);
  return `#${given}`;
}

function go(change) {
  const next = { ...state, ...change };
  // A filter or an opened panel is a step to go back from; typing, and going through open panels, are not.
  const opened = (next.case || next.backend) && !state.case && !state.backend;
  const filters = (view) => fragment({ ...view, q: "", case: "", backend: "" });
  history[opened || filters(next) !== filters(state) ? "pushState" : "replaceState"](null, "", fragment(next));
  apply();
}

// ---- filters

function buildFilters() {
  const flags = [
    ["failed", "unexpected failures", "It counts against the run."],
    ["regressed", "↓ regressed", "Worse than in the earlier run, or not to be compared with it."],
    ["disagree", "≠ disagree", "Cases that backends which ran them end in different verdicts, or round by different rules."],
  ];
  for (const [verdict] of data.verdicts) $("verdicts").append(chip(word(verdict), { name: "verdict", value: verdict }));
  for (const [name, label, title] of flags) $("verdicts").append(chip(label, { name, value: "1", "data-flag": "" }, title));
  for (const key of NARROWING) {
    const values = { on: data.backends, capture: data.captures }[key] || [...new Set(data.rows.map((item) => item[key]))].filter(Boolean).sort();
    const options = values.map((value) => el("option", { value }, value));
    $("filters").elements[key].append(el("option", { value: "" }, "all"), ...options);
    $("filters").elements[key].parentElement.hidden = values.length < 2;
  }
}

// How many cells there are of each kind, as the capture that is looked at gives them; what there is none of has no chip.
function countChips() {
  const count = (wanted) => data.cells.reduce((sum, each) => sum + (wanted(narrowed(each) || {}) ? each.uses : 0), 0);
  const flags = { failed: (cell) => cell.failed, regressed: (cell) => WORSE.has(cell.change) };
  for (const box of $("verdicts").querySelectorAll("input")) {
    const n = box.name === "disagree" ? data.rows.filter((item) => item.disagree.includes(state.capture)).length
      : count(flags[box.name] || ((cell) => cell.verdict === box.value));
    box.parentElement.querySelector(".n").textContent = ` ${n}`;
    box.parentElement.hidden = !n && !box.checked;
  }
}

function chip(label, attributes, title = "") {
  return el("label", { class: "chip", title }, el("input", { type: "checkbox", ...attributes }), label, el("span", { class: "n" }));
}

function readFilters() {
  const form = $("filters").elements;
  const checked = [...document.querySelectorAll("[name=verdict]:checked")].map((box) => box.value);
  const flags = FLAGS.map((key) => [key, Boolean(form[key] && form[key].checked)]);
  const chosen = NARROWING.map((key) => [key, form[key].value]);
  go({ verdicts: new Set(checked), ...Object.fromEntries([...flags, ...chosen]), q: form.q.value.trim() });
}

function showFilters() {
  const form = $("filters").elements;
  for (const box of document.querySelectorAll("[name=verdict]")) box.checked = state.verdicts.has(box.value);
  for (const key of FLAGS) if (form[key]) form[key].checked = state[key];
  for (const key of NARROWING) form[key].value = state[key];
  if (form.q.value.trim() !== state.q) form.q.value = state.q;
  countChips();
  for (const head of document.querySelectorAll("th.c-backend")) head.classList.toggle("chosen", head.title === state.on);
}

// ---- start

function apply() {
  state = readFragment();
  showFilters();
  filterRows();
  if (!$("matrix").querySelector('.nav[tabindex="0"]')?.checkVisibility()) makeStop(firstStop());
  showPanel();
}

function listen() {
  let waiting = 0;
  $("filters").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(readFilters, 80); });
  $("filters").addEventListener("submit", (event) => { event.preventDefault(); readFilters(); });
  $("reset").addEventListener("click", () => { history.pushState(null, "", "#"); apply(); });
  $("matrix").addEventListener("keydown", onMatrixKey);
  $("matrix").addEventListener("click", onMatrixClick);
  $("matrix").addEventListener("focusin", (event) => { if (event.target.matches(".nav")) makeStop(event.target); });
  $("panel").addEventListener("close", onPanelClose);
  $("panel").addEventListener("click", (event) => { if (event.target === $("panel")) $("panel").close(); });
  $("panel").addEventListener("keydown", (event) => { if (event.key === "j" || event.key === "k") step(event.key === "j" ? 1 : -1); });
  $("skip").addEventListener("click", (event) => { event.preventDefault(); (firstStop() || $("matrix")).focus(); });
  for (const link of document.querySelectorAll(".verdict-line a")) {
    link.addEventListener("click", () => setTimeout(() => $("filters").scrollIntoView()));
  }
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-page]");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    go({ case: "", backend: link.dataset.page });
  });
  addEventListener("hashchange", apply);
  addEventListener("popstate", apply);
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
const first = [...$("matrix").tBodies].find((body) => !body.hidden);
if (first) buildRows(first);
// A link to a view means its rows, not the summary above them.
if (location.hash.length > 1 && !state.case && !state.backend) $("filters").scrollIntoView();
// After the first frame, so that there is something to be read and used while the rest is made and unpacked.
const ready = new Promise((done) => setTimeout(done)).then(unpack).then(() => {
  if (state.q || state.case || state.backend) apply();
}).then(buildInTurn).then(() => { if (wide) data.rows.forEach(showDecibels); });
