#pragma once

#include <cstdint>

#include "runtime/operations.h"

namespace turboesm::vulkan {

// What Linear and QkvRope have in common, and one kernel computes: a product x weight^T [rows, outputs] and an
// epilogue.
struct Product {
  explicit Product(const Linear& a)
      : x(a.x),
        weight(a.weight),
        bias(a.bias),
        y(a.y),
        rows(a.rows),
        inputs(a.inputs),
        outputs(a.outputs),
        residual(a.residual),
        gelu(a.gelu) {}
  explicit Product(const QkvRope& a)
      : x(a.x),
        weight(a.weight),
        bias(a.bias),
        y(a.qkv),
        rows(a.tokens),
        inputs(a.inputs),
        outputs(uint32_t(a.outputs())),
        positions(a.positions),
        table(a.table),
        head_dim(a.head_dim),
        q_scale(a.q_scale) {}

  Tensor x, weight, bias, y;
  uint32_t rows, inputs, outputs;

  // Of a Linear.
  Tensor residual;
  bool gelu = false;

  // Of a QkvRope; head_dim is 0 for a Linear.
  Tensor positions, table;
  uint32_t head_dim = 0;
  float q_scale = 1;
};

}  // namespace turboesm::vulkan
