// The data of the page: the index at once, the details when they are unpacked.

const CASE_TEXTS = ["family", "mode", "capture", "dtype", "why"];
const data = readIndex(JSON.parse($("index").textContent));
const GLYPHS = new Map(data.verdicts);
let details = null;

function readIndex(raw) {
  const cells = raw.cells.map(([verdict, failed, known, change]) => (
    { verdict: raw.verdicts[verdict][0], failed: Boolean(failed), known: Boolean(known), change }));
  const cases = raw.cases.map(([id, ...rest]) => {
    const places = rest.pop();
    const disagree = Boolean(rest.pop());
    const texts = Object.fromEntries(CASE_TEXTS.map((name, i) => [name, raw.texts[rest[i]]]));
    return { case: id, ...texts, disagree, places, cells: places.map((place) => (place < 0 ? null : cells[place])) };
  });
  return { ...raw, cells, cases, byId: new Map(cases.map((item) => [item.case, item])) };
}

async function unpack() {
  const bytes = Uint8Array.from(atob($("details").textContent), (char) => char.charCodeAt(0));
  const plain = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const raw = JSON.parse(await new Response(plain).text());
  const backend = raw.records.fields.indexOf("backend");
  const subject = raw.records.fields.indexOf("subject");
  const rows = raw.cases.rows.map(() => new Map());
  for (const one of raw.records.rows) rows[one[subject]].set(raw.values[one[backend]], one);
  const id = raw.cases.fields.indexOf("case");
  const places = new Map(raw.cases.rows.map((one, i) => [raw.values[one[id]], i]));
  details = { ...raw, rows, places };
}

const named = (fields, values) => Object.fromEntries(fields.map((name, i) => [name, values[i]]));

function subjectOf(item) {
  const { cases, values, places } = details;
  return named(cases.fields, cases.rows[places.get(item.case)].map((place) => values[place]));
}

// The records of a case by backend; read when asked for, as few of the thousands ever are.
function recordsOf(item) {
  item.records ||= new Map([...details.rows[details.places.get(item.case)]].map(([name, one]) => {
    const { failed } = item.cells[data.backends.indexOf(name)];
    return [name, { ...readRecord(one), failed }];
  }));
  return item.records;
}

function readRecord(one) {
  const { values, records, measures, layers } = details;
  const record = named(records.fields, one);
  for (const [name, value] of Object.entries(record)) {
    if (Number.isInteger(value) && name !== "subject") record[name] = values[value];
  }
  record.findings = record.findings.map((place) => values[place]);
  record.measures = named(measures, record.measures);
  if (record.layers) record.layers = { ...record.layers, rows: record.layers.rows.map((layer) => named(layers, layer)) };
  const [steps, ...seconds] = record.seconds;
  record.seconds = values[steps].map((step, i) => [step, seconds[i]]);
  return record;
}

// What the search looks through: the id alone until the details are there.
function textOf(item) {
  if (!details) return item.case.toLowerCase();
  item.text ||= haystack(item);
  return item.text;
}

function haystack(item) {
  const parts = [item.case, item.why, item.dtype, ...Object.values(subjectOf(item).parameters)];
  for (const record of recordsOf(item).values()) {
    parts.push(...Object.keys(record.executed_ops), ...Object.keys(record.expected_ops), ...Object.values(record.properties));
    parts.push(record.error || "", record.stderr, record.known === null ? "" : `known ${record.known}`);
  }
  return parts.join("\n").toLowerCase();
}
