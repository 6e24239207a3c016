#pragma once

#include "runtime/cuda/kernels.h"

namespace turboesm::cuda {

// Linear and QkvRope as one: y = epilogue(x weight^T + bias) (+ residual), with addresses on the device.
//   Linear:  y [rows, outputs], epilogue nothing or GELU(z) = z/2 (1 + erf(z / sqrt 2))
//   QkvRope: y [3, rows, heads, head_dim]; q is scaled, q and k turned (runtime/operations.h)
struct Product {
  const void* x = nullptr;          // [rows, inputs] dtype
  const void* weight = nullptr;     // [outputs, inputs] dtype
  const float* bias = nullptr;      // [outputs] or null
  const float* residual = nullptr;  // [rows, outputs] or null; may be y itself
  void* y = nullptr;
  DType dtype = DType::f32, y_dtype = DType::f32;
  uint32_t rows = 0, inputs = 0, outputs = 0;
  bool gelu = false;
  // QkvRope only; heads is 0 otherwise.
  const int32_t* positions = nullptr;  // [rows]
  const float* table = nullptr;        // [table_rows, head_dim]
  uint32_t heads = 0, head_dim = 0;
  float q_scale = 1;
};

Product product_of(const Linear& a);
Product product_of(const QkvRope& a);

// `count` numbers of N(0, 1), an even number of them, as RandomNormal makes them (elements.cu).
void fill_random(void* out, uint64_t count, DType dtype, const Launch& l);

// On the CUDA cores, in fp32: any type and shape.
void launch_plain(const Product& p, const Launch& l);

// f32 with few outputs; variants differ in the rows of a block.
inline constexpr uint32_t kNarrowVariants = 4;
bool narrow_can(const Product& p, uint32_t variant, const Gpu& gpu);
void launch_narrow(const Product& p, uint32_t variant, const Launch& l);

// f16 and bf16 with few inputs, without GELU and residual; variants differ in the outputs of a block.
inline constexpr uint32_t kShallowVariants = 4;
bool shallow_can(const Product& p, uint32_t variant, const Gpu& gpu);
void launch_shallow(const Product& p, uint32_t variant, const Launch& l);

// What cuBLASLt has no epilogue for: the rows [first, first + rows) of y from `sums` [rows, outputs], products without
// bias.
void launch_epilogue(const Product& p, const float* sums, uint32_t first, uint32_t rows, const Launch& l);

}  // namespace turboesm::cuda
