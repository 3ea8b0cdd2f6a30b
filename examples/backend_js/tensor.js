// Tensors as the protocol writes them: a type, a shape, and the little-endian bytes of the elements in base64.
"use strict";

const ARRAYS = { float32: Float32Array, float64: Float64Array, int8: Int8Array, uint8: Uint8Array, int32: Int32Array };

function read({ dtype, shape, data }) {
  const bytes = Uint8Array.from(Buffer.from(data, "base64"));
  return { shape, values: Array.from(new ARRAYS[dtype](bytes.buffer)), dtype };
}

function write({ shape, values, dtype }) {
  const array = ARRAYS[dtype].from(values);
  return { dtype, shape, data: Buffer.from(array.buffer).toString("base64") };
}

module.exports = { read, write };
