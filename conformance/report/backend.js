// What the panel shows of one backend: what it declares, and what its cases show.

function backendPanel(name) {
  const page = details.pages[name];
  const versions = Object.entries(page.versions);
  return [headOf(name),
    el("p", { class: "headline" }, el("span", { class: "word" }, page.score), " native"),
    page.missing.length ? el("p", { class: "known" }, el("strong", {}, "Not installed: "), page.missing.join(", ")) : null,
    versions.length ? factsOf(versions) : null,
    el("p", { class: "why" }, viewOf("cases of this backend alone", { on: name }), " · ", viewOf("its unexpected failures", { on: name, failed: "1" })),
    ...capabilitiesOf(page), ...lacksOf(page), ...propertiesOf(page), ...knownOf(page), ...flowsOf(page), ...coverageOf(page),
  ];
}

function viewOf(label, fragment) {
  return el("a", { href: `#${new URLSearchParams(fragment)}` }, label);
}

function section(title, ...parts) {
  return [el("h3", {}, title), ...parts];
}

function listOf(lines) {
  return el("ul", { class: "lines" }, ...lines.map((line) => el("li", {}, line)));
}

function capabilitiesOf(page) {
  const rows = page.capabilities.map(([kind, name, declared, native, scored, verdict]) => {
    const cells = [kind, declared ? "yes" : "no", share(native, scored), verdict];
    const one = row(name, ...cells);
    if (!["as declared", "no case"].includes(verdict)) one.className = "marked";
    return one;
  });
  return rows.length ? section("Capabilities, declared and shown", table(["name", "kind", "declared", "native", ""], rows)) : [];
}

function lacksOf(page) {
  const rows = page.lacks.map(([name, refused, ran]) => {
    const one = row(name, String(refused), ran ? `${ran}, though declared lacking` : "0");
    if (ran) one.className = "marked";
    return one;
  });
  return rows.length ? section("Declared lacks", table(["operator or feature", "cases refused", "cases that ran it"], rows)) : [];
}

function propertiesOf(page) {
  const rows = page.properties.map(([name, operator, declared, seen, contradicted]) => {
    const values = Object.entries(seen).map(([value, count]) => `${value} (${count} case${count === 1 ? "" : "s"})`);
    const one = row(operator, name.replaceAll("_", " "), values.join(", ") || "not shown", `${declared || "·"}${contradicted ? " ≠" : ""}`);
    if (contradicted) one.className = "marked";
    return one;
  });
  return rows.length ? section("Properties by executed operator", table(["operator", "property", "shown", "declared"], rows)) : [];
}

function knownOf(page) {
  const rows = page.known.map(([reason, count, example]) => el("tr", {}, el("td", {}, reason), el("td", { class: "num" }, String(count)),
    el("td", {}, viewOf(example, { case: example, backend: state.backend }))));
  const debts = page.debts.map((line) => el("p", { class: "why" }, `Entries of known failures: ${line}`));
  return rows.length || debts.length
    ? section("Known failures", ...debts, rows.length ? table(["reason", "cases", "for example"], rows) : "") : [];
}

function flowsOf(page) {
  const [captures, rows] = page.grid;
  const cell = (counts) => (counts ? share(...counts) : "·");
  return rows.length ? section("Native by mode and capture", table(["mode", ...captures, "all"], rows.map(([mode, groups]) => row(mode, ...groups.map(cell))))) : [];
}

function coverageOf(page) {
  if (!page.coverage.length) return [];
  const heads = ["operator", ...page.columns.map((parts) => parts.filter(Boolean).join(" · "))];
  const rows = page.coverage.map(([name, cells]) => el("tr", {}, el("th", { scope: "row" }, name), ...cells.map(coverageCell)));
  const gaps = (title, lines) => (lines.length ? [el("h4", {}, title), listOf(lines)] : []);
  return section("Coverage: native cases of all, by expected operator",
    scrolled("coverage by operator", table(heads, rows)),
    ...gaps("No case asks for", page.never_asked), ...gaps("Cases, and none is native", page.never_native));
}

function coverageCell(cell) {
  if (!cell) return el("td", { class: "num quiet", title: "no case" }, "·");
  const [native, scored, unsupported] = cell;
  const verdict = native === scored ? "native" : unsupported === scored ? "unsupported" : native ? "fallback" : "wrong";
  const sign = native === scored ? "✓" : unsupported === scored ? "–" : native ? "◐" : "✗";
  const title = `${share(native, scored)} native${unsupported ? `, ${unsupported} unsupported` : ""}`;
  return el("td", { class: `num v-${verdict}`, title }, `${sign} ${native}/${scored}`);
}
