// The layers of one case: SQNR along the model, saturation below it, and a table. Foreign text goes in as text nodes.

const CHART = { width: 712, left: 34, right: 10, top: 40, plot: 150, gap: 22, lane: 34, foot: 20 };

function layersOf(record) {
  if (!record.layers) return [];
  const { rows, parted, dropped, words } = record.layers;
  const key = el("p", { class: "key" },
    el("span", { class: "key-final" }, "final form"), el("span", { class: "key-debug" }, "debug form"),
    el("span", { class: "key-saturated" }, "saturated elements"));
  const chart = el("div", { class: "chart" }, chartOf(rows, parted, dropped, words));
  const tableOf = el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "table of the layers" },
    table(["", "tensor", "float range", "scale, zero point", "saturated", "debug dB", "final dB", "differ"],
      rows.map((row, i) => layerRow(row, i, parted, dropped))));
  return [el("h3", {}, `Layers: SQNR against float, in dB`), ...words.map((text) => el("p", { class: "why" }, text)), key, chart, tableOf];
}

function layerRow(row, i, parted, dropped) {
  const marks = [i === parted ? "≠" : "", i === dropped ? "▼" : ""].filter(Boolean).join(" ");
  const few = (value) => String(Number(Number(value).toPrecision(4)));
  const step = row.qmin === null ? "float" : row.scale === null ? "by row" : `${few(row.scale)}, ${row.zero_point}`;
  const like = row.group === row.tensor ? null : el("small", {}, `as ${row.group}`);
  const of = (count) => (count === null ? "" : count ? `${count} of ${row.elements}` : "0");
  const made = [row.operator, placeOf(row)].filter(Boolean).join(" in ");
  return el("tr", marks ? { class: "marked" } : {},
    el("td", { class: "num" }, `${i + 1} `, el("strong", {}, marks)),
    el("th", { scope: "row" }, row.tensor, el("small", {}, made)),
    el("td", { class: "num" }, `${few(row.low)} … ${few(row.high)}`), el("td", { class: "num" }, step, like),
    el("td", { class: "num" }, of(row.saturated)), el("td", { class: "num" }, decibels(row.sqnr_debug_db)),
    el("td", { class: "num" }, decibels(row.sqnr_final_db)), el("td", { class: "num" }, of(row.differing)));
}

function placeOf(row) {
  return row.module || row.source.replace(/^<.*>:/, "line ");
}

function decibels(value) {
  if (value === null) return "";
  return value === "inf" ? "exact" : Number.isFinite(value) ? value.toFixed(1) : value;
}

function svg(name, attributes, ...children) {
  const element = document.createElementNS($("drawing").namespaceURI, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function chartOf(rows, parted, dropped, words) {
  const { width, left, right, top, plot, gap, lane, foot } = CHART;
  const height = top + plot + gap + lane + foot;
  const band = (width - left - right) / rows.length;
  const x = (i) => left + (i + 0.5) * band;
  const y = heightOf(rows);
  return svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": words.join(" ") },
    ...gridOf(y), ...marksOf(rows, parted, dropped, x),
    ...lineOf(rows, "sqnr_debug_db", "debug", x, y), ...lineOf(rows, "sqnr_final_db", "final", x, y),
    ...saturationOf(rows, x, band), ...columnsOf(rows, x, band, height));
}

// dB to pixels, with room for what is exact at the top; the ticks are multiples of 10.
function heightOf(rows) {
  const all = rows.flatMap((row) => [row.sqnr_debug_db, row.sqnr_final_db]).filter(Number.isFinite);
  const low = 10 * Math.floor((all.length ? Math.min(...all) : 0) / 10);
  const high = Math.max(low + 10, 10 * Math.ceil((all.length ? Math.max(...all) : 0) / 10));
  const place = (value) => {
    const finite = value === "inf" ? high : Number.isFinite(value) ? value : low;
    return CHART.top + CHART.plot * (1 - (finite - low) / (high - low));
  };
  return { low, high, place };
}

function gridOf({ low, high, place }) {
  const every = 10 * Math.ceil((high - low) / 60);
  const ticks = [];
  for (let tick = low; tick <= high; tick += every) ticks.push(tick);
  return ticks.flatMap((tick) => [
    svg("line", { class: "grid", x1: CHART.left, x2: CHART.width - CHART.right, y1: place(tick), y2: place(tick) }),
    svg("text", { x: CHART.left - 6, y: place(tick) + 3.5, "text-anchor": "end" }, String(tick)),
  ]);
}

function lineOf(rows, key, form, x, y) {
  const points = rows.map((row, i) => [row[key], i]).filter(([value]) => value !== null);
  const at = points.map(([value, i]) => [x(i), y.place(value)]);
  const path = svg("polyline", { class: `line ${form}`, points: at.map((point) => point.join(",")).join(" ") });
  return [path, ...at.map(([cx, cy]) => svg("circle", { class: `dot ${form}`, cx, cy, r: form === "debug" ? 4.5 : 2.5 }))];
}

function marksOf(rows, parted, dropped, x) {
  const marks = [[dropped, "drop", "▼ largest drop", 12], [parted, "part", "≠ debug and final part", 28]].filter(([i]) => i !== null);
  return marks.flatMap(([i, kind, label, y]) => {
    const late = x(i) > CHART.width / 2;
    return [
      svg("line", { class: `mark ${kind}`, x1: x(i), x2: x(i), y1: y - 8, y2: CHART.top + CHART.plot }),
      svg("text", { class: `mark ${kind}`, x: x(i) + (late ? -5 : 5), y: y, "text-anchor": late ? "end" : "start" }, label),
    ];
  });
}

function saturationOf(rows, x, band) {
  const floor = CHART.top + CHART.plot + CHART.gap + CHART.lane;
  const share = (row) => (row.saturated === null ? 0 : row.saturated / row.elements);
  const most = Math.max(...rows.map(share));
  const whole = Math.max(most, 0.01); // a single element of thousands must not look like all of them
  const wide = Math.min(16, Math.max(2, 0.6 * band));
  const bars = rows.map((row, i) => [share(row), i]).filter(([value]) => value > 0).map(([value, i]) => {
    const high = Math.max(1.5, (CHART.lane * value) / whole);
    return svg("rect", { class: "saturated", x: x(i) - wide / 2, y: floor - high, width: wide, height: high });
  });
  const worst = rows.find((row) => share(row) === most);
  const label = most ? `saturated, at most ${worst.saturated} of ${worst.elements} in layer ${rows.indexOf(worst) + 1}` : "nothing saturates";
  return [svg("line", { class: "grid", x1: CHART.left, x2: CHART.width - CHART.right, y1: floor, y2: floor }), ...bars,
    svg("text", { x: CHART.left, y: floor - CHART.lane - 6 }, label)];
}

// One column for each layer to point at, and the numbers that the table has too.
function columnsOf(rows, x, band, height) {
  const every = Math.ceil(rows.length / 30);
  return rows.flatMap((row, i) => {
    const values = `debug ${decibels(row.sqnr_debug_db)} dB, final ${decibels(row.sqnr_final_db) || "none"}`;
    const tip = svg("title", {}, `${i + 1}  ${row.tensor}\n${row.operator} ${placeOf(row)}\n${values}`);
    const column = svg("rect", { class: "column", x: x(i) - band / 2, y: CHART.top, width: band, height: height - CHART.top }, tip);
    const number = svg("text", { x: x(i), y: height - 5, "text-anchor": "middle" }, String(i + 1));
    return i % every ? [column] : [number, column];
  });
}
