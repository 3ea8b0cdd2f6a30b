// A given graph as a list of steps, each of which computes one value and says by which operator.
"use strict";

const { read } = require("./tensor.js");

const LIMITS = { int8: [-128, 127], uint8: [0, 255] };

class Unsupported extends Error {}

function halfEven(v) {
  const down = Math.floor(v);
  const rest = v - down;
  return rest < 0.5 || (rest === 0.5 && down % 2 === 0) ? down : down + 1;
}

function saturated(v, zero, dtype) {
  const [low, high] = LIMITS[dtype];
  return Math.min(high, Math.max(low, halfEven(v) + zero));
}

// The scale and the zero point for the element at `index`: one of a tensor, or one of each slice along `axis`.
function parameters(node, constants) {
  const [scale, zero] = node.inputs.slice(1, 3).map((name) => constants[name]);
  if (!scale || !zero || !(zero.dtype in LIMITS || zero.dtype === "int32")) {
    throw new Unsupported("scales and zero points that are not constants of 8 bits");
  }
  const single = scale.values.length === 1;
  const at = (values) => (channel) => values[single ? 0 : channel];
  return { scale: at(scale.values), zero: at(zero.values), dtype: zero.dtype, axis: node.attributes.axis ?? 1, single };
}

function channelOf(index, shape, axis) {
  const inner = shape.slice(axis + 1).reduce((a, b) => a * b, 1);
  return Math.floor(index / inner) % shape[axis];
}

function quantize(node, constants) {
  const q = parameters(node, constants);
  if (!q.single || !(q.dtype in LIMITS)) throw new Unsupported("activations with a scale for each channel");
  return ([x]) => ({
    shape: x.shape,
    values: x.values.map((v) => saturated(v / q.scale(0), q.zero(0), q.dtype)),
    dtype: q.dtype,
  });
}

function dequantize(node, constants) {
  const q = parameters(node, constants);
  return ([x]) => ({
    shape: x.shape,
    values: x.values.map((v, index) => {
      const channel = q.single ? 0 : channelOf(index, x.shape, q.axis);
      return Math.fround(q.scale(channel) * (v - q.zero(channel)));
    }),
    dtype: "float32",
  });
}

// The element of a matrix product; `transposed` where the rows of `w` are those of the result's columns.
function product(x, w, transposed, row, column, term) {
  const [inner, columns] = [x.shape[1], transposed ? w.shape[0] : w.shape[1]];
  let sum = 0;
  for (let k = 0; k < inner; k++) {
    sum += term(x.values[row * inner + k], w.values[transposed ? column * inner + k : k * columns + column]);
  }
  return sum;
}

function matrix(x, w, transposed, element) {
  if (x.shape.length !== 2 || w.shape.length !== 2) throw new Unsupported("products of other than matrices");
  const [rows, columns] = [x.shape[0], transposed ? w.shape[0] : w.shape[1]];
  const places = Array.from({ length: rows * columns }, (_, i) => [Math.floor(i / columns), i % columns]);
  return { shape: [rows, columns], values: places.map(([row, column]) => element(row, column)) };
}

function linear(node) {
  const transposed = node.attributes.transB === 1;
  return ([x, w, bias]) => {
    const element = (row, column) =>
      Math.fround(product(x, w, transposed, row, column, (a, b) => a * b) + (bias ? bias.values[column] : 0));
    return { ...matrix(x, w, transposed, element), dtype: "float32" };
  };
}

// The same on integers: exact sums of products, one multiplication and one rounding at the end.
function integerLinear({ node, x, w, bias, output, relu }, constants) {
  const [qx, qw, qy] = [x, w, output].map((each) => parameters(each, constants));
  const transposed = node.attributes.transB === 1;
  return ([given]) => {
    const weight = constants[w.inputs[0]];
    const offsets = bias ? constants[bias.inputs[0]].values : null;
    const element = (row, column) => {
      const term = (a, b) => (a - qx.zero(0)) * (b - qw.zero(column));
      const sum = product(given, weight, transposed, row, column, term) + (offsets ? offsets[column] : 0);
      const real = sum * ((qx.scale(0) * qw.scale(column)) / qy.scale(0));
      return saturated(relu ? Math.max(real, 0) : real, qy.zero(0), qy.dtype);
    };
    return { ...matrix(given, weight, transposed, element), dtype: qy.dtype };
  };
}

const same = (x, y) => x.shape.join() === y.shape.join();

const FLOAT = {
  QuantizeLinear: quantize,
  DequantizeLinear: dequantize,
  Gemm: linear,
  MatMul: linear,
  Identity: () => ([x]) => x,
  Relu: () => ([x]) => ({ ...x, values: x.values.map((v) => Math.max(v, 0)) }),
  Add: () => ([x, y]) => {
    if (!same(x, y)) throw new Unsupported("additions of different shapes");
    return { ...x, values: x.values.map((v, index) => Math.fround(v + y.values[index])) };
  },
};
const BORDERS = {
  QuantizeLinear: "quantized::quantize_per_tensor",
  DequantizeLinear: "quantized::dequantize_per_tensor",
  Identity: "",
};

function load(graph) {
  const constants = Object.fromEntries(Object.entries(graph.constants).map(([name, each]) => [name, read(each)]));
  const made = Object.fromEntries(graph.nodes.map((node) => [node.outputs[0], node]));
  const readers = (name) => graph.nodes.filter((node) => node.inputs.includes(name));
  const only = (node, op) => {
    const [next, ...more] = readers(node.outputs[0]);
    return next && next.op === op && !more.length && !graph.outputs.includes(node.outputs[0]) ? next : null;
  };

  // A product whose operands come from integers, and whose result goes into integers at once.
  function integers(node) {
    const [x, w, bias] = node.inputs.map((name) => made[name]);
    const plain = (node.attributes.alpha ?? 1) === 1 && (node.attributes.beta ?? 1) === 1;
    if (![x, w].every((each) => each && each.op === "DequantizeLinear") || !plain) return null;
    if (!(w.inputs[0] in constants) || x.inputs[0] in constants) return null;
    if (node.inputs.length > 2 && !(bias && bias.op === "DequantizeLinear" && bias.inputs[0] in constants)) return null;
    const relu = only(node, "Relu");
    const output = only(relu ?? node, "QuantizeLinear");
    if (!output || !parameters(x, constants).single || !parameters(output, constants).single) return null;
    return { node, x, w, bias, relu, output };
  }

  const products = graph.nodes.filter((node) => node.op === "Gemm" || node.op === "MatMul");
  const fused = products.map(integers).filter((found) => found);
  const inside = new Set(fused.flatMap(({ node, relu, output }) => [node, relu, output]));
  const needed = (node) =>
    graph.outputs.includes(node.outputs[0]) || readers(node.outputs[0]).some((reader) => !inside.has(reader));

  const steps = [];
  for (const node of graph.nodes) {
    const found = fused.find(({ output }) => output === node);
    if (found) {
      const operator = found.relu ? "quantized::linear_relu" : "quantized::linear";
      const run = integerLinear(found, constants);
      steps.push({ operator, inputs: [found.x.inputs[0]], output: node.outputs[0], run });
    } else if (!inside.has(node) && needed(node)) {
      if (!(node.op in FLOAT)) throw new Unsupported(`the operator ${node.op}`);
      const constant = node.inputs[0] in constants;
      const operator = constant ? "" : BORDERS[node.op] ?? node.source.split(" ")[0];
      const used = node.op.endsWith("Linear") ? node.inputs.slice(0, 1) : node.inputs;
      steps.push({ operator, inputs: used, output: node.outputs[0], run: FLOAT[node.op](node, constants) });
    }
  }
  return {
    ops: steps.map(({ operator }) => operator).filter((operator) => operator),
    run(inputs) {
      const values = { ...constants, ...Object.fromEntries(graph.inputs.map((name, i) => [name, inputs[i]])) };
      for (const { inputs: names, output, run } of steps) values[output] = run(names.map((name) => values[name]));
      return graph.outputs.map((name) => values[name]);
    },
  };
}

module.exports = { Unsupported, load };
