#pragma once

#include <cstdint>

#include "runtime/cuda/product.h"

// Products with Hopper's own instructions (wgmma, TMA, clusters; compute capability 9.0): `large` for many rows,
// `medium` for tens to hundreds, `few` for a handful of rows or of outputs. Which variant is fastest for a shape is for
// the caller to measure.
namespace turboesm::cuda {

// Variants are numbered 0 .. hopper_variants() - 1.
uint32_t hopper_variants();

// Whether the variant computes this product, and may sensibly be tried for it.
bool hopper_can(const Product& product, uint32_t variant, const Gpu& gpu);

// Throws Error as require() does. hopper_can() holds.
void launch_hopper(const Product& product, uint32_t variant, const Launch& l);

}  // namespace turboesm::cuda
