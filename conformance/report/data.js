// The data of the page: the index at once, the details when they are unpacked.

const ROW_TEXTS = ["family", "mode", "dtype", "why"];
// Changes from an earlier run, the most urgent first.
const SIGNS = { incomparable: "¿", regressed: "↓", improved: "↑", changed: "≠", added: "+" };
const data = readIndex(JSON.parse($("index").textContent));
const GLYPHS = new Map(data.verdicts);
let details = null;

function readIndex(raw) {
  const cells = raw.cells.map(([lead, ...parts]) => joined(lead, parts.map(([capture, verdict, failed, known, change]) => (
    { capture, verdict: raw.verdicts[verdict][0], failed: Boolean(failed), known: known ? (failed ? "known to fail" : "known") : "", change }))));
  const rows = raw.rows.map(([name, ...rest], place) => {
    const places = rest.pop();
    const disagree = raw.texts[rest.pop()];
    const texts = Object.fromEntries(ROW_TEXTS.map((key, i) => [key, raw.texts[rest[i]]]));
    return { name, place, ...texts, disagree, places, cells: places.map((at) => (at < 0 ? null : cells[at])) };
  });
  for (const item of rows) for (const cell of item.cells) if (cell) cell.uses += 1;
  return { ...raw, cells, rows, byName: new Map(rows.map((item) => [item.name, item])) };
}

// A cell over its captures: the verdict of the part that leads, what counts of any, and a score, which is of records. Few
// differ, so that rows share them; `uses` says how many.
function joined(lead, parts) {
  const change = Object.keys(SIGNS).find((kind) => parts.some((part) => part.change === kind)) || "";
  const scored = parts.filter((part) => part.verdict !== "error" && part.verdict !== "unsupported");
  const native = scored.filter((part) => part.verdict === "native").length;
  return { ...parts[lead], failed: parts.some((part) => part.failed), change, parts, native, scored: scored.length, uses: 0 };
}

// A cell as the capture that is looked at gives it, else as all do.
function narrowed(cell) {
  return cell && state.capture ? cell.parts.find((part) => part.capture === state.capture) || null : cell;
}

async function unpack() {
  const bytes = Uint8Array.from(atob($("details").textContent), (char) => char.charCodeAt(0));
  const plain = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const raw = JSON.parse(await new Response(plain).text());
  const { fields, rows, owners } = raw.cases;
  const [id, subject] = [fields.indexOf("case"), raw.records.fields.indexOf("subject")];
  const records = data.rows.map(() => []);
  for (const one of raw.records.rows) records[owners[one[subject]]].push(one);
  const byPlace = new Map(data.rows.map((item) => [item.place, item]));
  // A link may name one case of a row, with its capture.
  rows.forEach((one, i) => data.byName.set(raw.values[one[id]], byPlace.get(owners[i])));
  details = { ...raw, of: records };
}

const named = (fields, values) => Object.fromEntries(fields.map((name, i) => [name, values[i]]));

// The records of a row; read when asked for, as few of the thousands ever are.
function recordsOf(item) {
  item.records ||= details.of[item.place].map((one) => {
    const record = readRecord(one);
    const { parts } = item.cells[data.backends.indexOf(record.backend)];
    return { ...record, failed: parts.find((part) => part.capture === record.subject.capture).failed };
  });
  return item.records;
}

function readRecord(one) {
  const { values, cases, records, measures, layers } = details;
  const record = named(records.fields, one);
  for (const [name, value] of Object.entries(record)) {
    if (Number.isInteger(value) && name !== "subject") record[name] = values[value];
  }
  record.subject = named(cases.fields, cases.rows[record.subject].map((place) => values[place]));
  record.findings = record.findings.map((place) => values[place]);
  record.measures = named(measures, record.measures);
  if (record.layers) record.layers = { ...record.layers, rows: record.layers.rows.map((layer) => named(layers, layer)) };
  const [steps, ...seconds] = record.seconds;
  record.seconds = values[steps].map((step, i) => [step, seconds[i]]);
  return record;
}

// What the search looks through: the id alone until the details are there.
function textOf(item) {
  if (!details) return item.name.toLowerCase();
  item.text ||= haystack(item);
  return item.text;
}

function haystack(item) {
  const parts = [item.name, item.why, item.dtype];
  for (const record of recordsOf(item)) {
    parts.push(record.subject.case, ...Object.keys(record.executed_ops), ...Object.keys(record.expected_ops), ...Object.values(record.properties));
    parts.push(record.error || "", record.stderr, record.known === null ? "" : `known ${record.known}`);
  }
  return parts.join("\n").toLowerCase();
}
