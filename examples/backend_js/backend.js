// A backend in JavaScript: linear layers on integers, relu and addition in float, by the protocol of docs/protocol.md.
//
//     conformance run --mode numerics --backend "exec:node examples/backend_js/backend.js"
"use strict";

const readline = require("node:readline");
const { Unsupported, load } = require("./graph.js");
const { read, write } = require("./tensor.js");

const OTHERS = "other operators and shapes than those of linear, relu and add";
let loaded = null;

function say(message) {
  process.stdout.write(JSON.stringify(message) + "\n");
}

function answer(message) {
  if (message.load) {
    loaded = load(message.load);
    return { loaded: { ops: loaded.ops } };
  }
  return { outputs: loaded.run(message.run.map(read)).map(write) };
}

say({
  hello: {
    name: "js",
    versions: { node: process.versions.node },
    lacks: [OTHERS],
    properties: { rounding: "half_even" },
  },
});
readline.createInterface({ input: process.stdin }).on("line", (line) => {
  try {
    say(answer(JSON.parse(line)));
  } catch (error) {
    say(error instanceof Unsupported ? { unsupported: error.message, feature: OTHERS } : { failed: error.stack });
  }
});
