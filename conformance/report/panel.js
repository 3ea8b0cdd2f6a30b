// The panel, and what it shows of one row: the record in view, and beside it those of other backends and captures.

function showPanel() {
  const panel = $("panel");
  const item = data.byName.get(state.case);
  const backend = !item && data.backends.includes(state.backend) ? state.backend : "";
  if (!item && !backend) {
    if (panel.open) panel.close();
    return;
  }
  if (!details) return; // `ready` comes back here
  const focused = panel.open && document.activeElement ? document.activeElement.dataset.keep : null;
  panel.replaceChildren(...(item ? casePanel(item) : backendPanel(backend)).filter((part) => part !== null));
  panel.item = item || null;
  if (!panel.open) panel.showModal();
  panel.scrollTop = 0;
  (panel.querySelector(`[data-keep="${focused || "close"}"]`) || panel.querySelector("[data-keep=close]")).focus();
}

function headOf(title) {
  return el("header", {},
    el("div", { class: "tools" },
      button("↑ previous", () => step(-1), { "data-keep": "previous" }), button("↓ next", () => step(1), { "data-keep": "next" }),
      button("✕ close", () => $("panel").close(), { "data-keep": "close", class: "close" })),
    el("h2", { id: "panel-title" }, title));
}

function casePanel(item) {
  const records = recordsOf(item);
  const record = inView(item, records);
  const { subject } = record;
  const place = [subject.family, subject.mode, subject.capture, subject.dtype, subject.granularity, `seed ${subject.seed}`].filter(Boolean).join(" · ");
  const stage = record.stage === null ? null : el("span", {}, ` in step ${record.stage}`);
  const parameters = Object.entries(subject.parameters).map(([name, value]) => el("code", {}, `${name}: ${value}`));
  return [headOf(item.name),
    el("p", { class: "headline" }, word(record.verdict), stage, el("span", { class: "quiet" }, ` on ${record.backend} · ${place}`)),
    recordSwitch(records, record),
    ...changeOf(record),
    record.known === null ? null : el("p", { class: "known" }, el("strong", {}, record.failed ? "Passes, but is known to fail: " : "Known failure: "), record.known),
    record.lapsed === null ? null : el("p", { class: "known" }, el("strong", {}, "No longer a known failure: "), record.lapsed),
    el("p", { class: "why" }, el("strong", {}, "Why: "), item.why),
    ...record.notes.map((note) => el("p", { class: "why" }, el("strong", {}, "Note: "), note)),
    parameters.length ? el("p", { class: "parameters" }, ...parameters) : null,
    ...findingsOf(record), ...errorOf(record), ...operatorsOf(record, records), ...roundingOf(records, record), ...measuresOf(record),
    ...layersOf(record), ...secondsOf(record),
    el("h3", {}, "Reproduce"),
    command(`conformance show ${shell(subject.case)} --backend ${shell(record.backend)}`),
    command(`conformance show ${shell(subject.case)} --backend ${shell(record.backend)} --script > case.py`),
    command(`pytest ${shell(pytestItem(subject, record.backend))} --backend ${shell(record.backend)}`),
    el("h3", {}, "Spec"), el("p", { class: "quiet" }, `${subject.path}:${subject.line}`), el("pre", { tabindex: "0" }, subject.yaml),
  ];
}

// Of the case that the address names, else of the capture looked at, else of those that lead their cells: the backend's
// own record, else one that failed.
function inView(item, records) {
  const leads = (one) => item.cells[data.backends.indexOf(one.backend)].capture === one.subject.capture;
  const choices = [(one) => one.subject.case === state.case, (one) => one.subject.capture === state.capture, leads];
  const seen = choices.map((wanted) => records.filter(wanted)).find((some) => some.length);
  return seen.find((one) => one.backend === state.backend) || seen.find((one) => one.failed) || seen[0];
}

function changeOf(record) {
  if (!record.change) return [];
  const [kind, shifts] = record.change;
  const texts = shifts.map(([what, before, after]) => `${what} ${[before, after].filter(Boolean).join(" → ")}`);
  return [el("p", { class: "known" }, el("strong", {}, `${SIGNS[kind]} ${kind}: `), texts.join("; "))];
}

function recordSwitch(records, record) {
  if (records.length < 2) return null;
  const groups = Map.groupBy(records, (one) => one.backend);
  return el("div", { class: "switch", role: "group", "aria-label": "backend and capture" },
    ...[...groups].map(([backend, own]) => el("span", { class: "own" }, el("span", {}, backend), ...own.map((one) => recordButton(one, record)))));
}

function recordButton(one, record) {
  const { capture } = one.subject;
  const name = `${one.backend} ${capture}`;
  const element = button("", () => go({ case: one.subject.case, backend: one.backend }),
    { "aria-pressed": String(one === record), "aria-label": `${name}: ${one.verdict}`, title: one.verdict, "data-keep": `on ${name}`, class: `v-${one.verdict}` });
  element.append(`${GLYPHS.get(one.verdict)} ${capture}`);
  return element;
}

// The records of one backend that say the same stand together, under the captures that gave them.
function alike(records, record, said) {
  const groups = [...Map.groupBy(records, (one) => JSON.stringify([one.backend, said(one)])).values()];
  const several = new Set(records.map((one) => one.subject.capture)).size > 1;
  return groups.map((own) => ({
    ...(own.includes(record) ? record : own[0]), inView: own.includes(record),
    label: several ? `${own[0].backend} ${own.map((one) => one.subject.capture).join(", ")}` : own[0].backend,
  }));
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
  const texts = [["Error", record.error], ["Printed by the backend's libraries", record.stderr]].filter(([, text]) => text);
  return texts.flatMap(([title, text]) => [el("h3", {}, title), el("pre", { class: "error", tabindex: "0" }, text)]);
}

// What was expected, and beside it what every backend executed; the one that is looked at comes first.
function operatorsOf(record, records) {
  const expected = record.expected_ops;
  const ran = alike(records.filter((one) => one === record || Object.keys(one.executed_ops).length), record, (one) => [one.executed_ops, one.native_ops])
    .sort((one, other) => other.inView - one.inView);
  const names = [...new Set([expected, ...ran.map((one) => one.executed_ops)].flatMap(Object.keys))];
  const cell = (want, count) => {
    const differs = want !== undefined && want !== count;
    return el("td", { class: differs ? "num differs" : "num" }, differs ? `${count} ≠` : String(count || "·"));
  };
  const rows = names.map((name) => {
    const want = expected[name];
    const counts = ran.map((one) => (Object.keys(one.executed_ops).length ? cell(want, one.executed_ops[name] || 0) : el("td", { class: "num" }, "not run")));
    return el("tr", {}, el("th", { scope: "row" }, name), el("td", { class: "num" }, want === undefined ? "" : String(want)), ...counts);
  });
  const list = (label, ops) => {
    const parts = Object.entries(ops).map(([name, count]) => el("code", {}, `${name} × ${count}`));
    return parts.length ? el("p", { class: "parameters" }, el("strong", {}, label), ...parts) : null;
  };
  const others = ran.slice(1).map((one) => list(`${one.label}: `, one.native_ops)).filter(Boolean);
  const lists = [list("Float graph: ", record.float_ops), list("Backend's own names: ", record.native_ops),
    others.length ? el("details", {}, el("summary", {}, "others' own names"), ...others) : null];
  const heads = ["operator", "expected", ...ran.map((one) => one.label)];
  const shown = rows.length ? scrolled("operators by backend", table(heads, rows)) : null;
  const parts = [shown, ...lists].filter((part) => part !== null);
  return parts.length ? [el("h3", {}, "Operators: expected, and executed"), ...parts] : [];
}

// ---- how the integers came about: properties of each backend, and how far its integers are off

function roundingOf(records, record) {
  const names = [...new Set(records.flatMap((one) => Object.keys(one.properties)))].sort();
  const told = alike(records.filter((one) => Object.keys(one.properties).length), record, (one) => one.properties);
  const rows = told.map((one) => el("tr", one.inView ? { class: "marked" } : {},
    el("th", { scope: "row" }, one.label), ...names.map((name) => el("td", {}, one.properties[name] || "·"))));
  const properties = rows.length ? [el("h3", {}, "Shown of the arithmetic"), table(["backend", ...names.map((name) => name.replaceAll("_", " "))], rows)] : [];
  const counted = alike(records.filter((one) => Object.keys(one.histogram).length), record, (one) => one.histogram);
  return counted.length ? [...properties, el("h3", {}, "Integers by distance from the exact ones, in quanta"),
    scrolled("histogram by backend", histogramOf(counted))] : properties;
}

// Whole quanta from the least to the greatest that any backend shows; beyond `FAR` they are counted together.
const FAR = 9;

function histogramOf(counted) {
  const clipped = counted.map((one) => {
    const bins = new Map();
    for (const [quanta, count] of Object.entries(one.histogram)) {
      const place = Math.max(-FAR, Math.min(FAR, Number(quanta)));
      bins.set(place, (bins.get(place) || 0) + count);
    }
    return bins;
  });
  const places = clipped.flatMap((bins) => [...bins.keys()]);
  const [low, high] = [Math.min(-1, ...places), Math.max(1, ...places)];
  const bins = Array.from({ length: high - low + 1 }, (_, i) => low + i);
  const label = (place) => (place === -FAR ? `≤ −${FAR}` : place === FAR ? `≥ ${FAR}` : place > 0 ? `+${place}` : String(place).replace("-", "−"));
  const rows = counted.map((one, i) => {
    const whole = [...clipped[i].values()].reduce((sum, count) => sum + count, 0);
    return el("tr", one.inView ? { class: "marked" } : {}, el("th", { scope: "row" }, one.label),
      ...bins.map((place) => countCell(clipped[i].get(place) || 0, whole, place)));
  });
  return table(["backend", ...bins.map(label)], rows, { class: "plain histogram" });
}

// The bar is logarithmic: one integer of a thousand must be seen.
function countCell(count, whole, place) {
  const bar = el("span", { class: place ? "column off" : "column", "aria-hidden": "true" });
  bar.style.height = `${count ? 3 + (27 * Math.log1p(count)) / Math.log1p(whole) : 0}px`;
  return el("td", { class: "num", title: share(count, whole) }, bar, count ? String(count) : "·");
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
  return [el("h3", {}, "Accuracy and equality"), factsOf(rows.map(([label, value, unit]) => [label, `${value} ${unit}`]))];
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

// In pytest an item is named by its spec, with the backend before mode, capture and parameters; the file says the suite.
function pytestItem(subject, backend) {
  return `${subject.path}::${subject.case.replace(`${subject.family}::`, "").replace("[", () => `[${backend}-`)}`;
}

function step(by) {
  if (!$("panel").item) {
    const backend = data.backends[data.backends.indexOf(state.backend) + by];
    if (backend) go({ backend });
    return;
  }
  const seen = data.rows.filter((item) => item.shown);
  const next = seen[seen.indexOf($("panel").item) + by];
  if (next) go({ case: next.name });
}

function onPanelClose() {
  const { item } = $("panel");
  if (state.case || state.backend) go({ case: "", backend: "" });
  buildAll();
  (item && item.shown ? item.link : $("matrix")).focus();
}
