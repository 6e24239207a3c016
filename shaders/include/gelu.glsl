// GELU with the exact error function, in fp32: gelu(z) = z/2 (1 + erf(z / sqrt 2)) (Hendrycks & Gimpel 2016).
#ifndef GELU_GLSL
#define GELU_GLSL

#include "erf_coefficients.h"
#include "gelu_coefficients.h"

float erf(float x) {
  const float t = x * x;
  float p = TURBOESM_ERF_P6;
  p = fma(p, t, TURBOESM_ERF_P5);
  p = fma(p, t, TURBOESM_ERF_P4);
  p = fma(p, t, TURBOESM_ERF_P3);
  p = fma(p, t, TURBOESM_ERF_P2);
  p = fma(p, t, TURBOESM_ERF_P1);
  p = fma(p, t, TURBOESM_ERF_P0);
  float q = TURBOESM_ERF_Q5;
  q = fma(q, t, TURBOESM_ERF_Q4);
  q = fma(q, t, TURBOESM_ERF_Q3);
  q = fma(q, t, TURBOESM_ERF_Q2);
  q = fma(q, t, TURBOESM_ERF_Q1);
  q = fma(q, t, TURBOESM_ERF_Q0);
  return abs(x) >= TURBOESM_ERF_LIMIT ? sign(x) : clamp(x * (p / q), -1.0, 1.0);
}

float gelu(float z) {
  const float half_z = 0.5 * z;
  return fma(half_z, erf(z * 0.70710678118654752), half_z);
}

// The same with fewer instructions (gelu_coefficients.h), for kernels whose epilogue shows in their time.
float gelu_of_few_instructions(float z) {
  const float h = min(abs(z), TURBOESM_GELU_LIMIT);
  float p = TURBOESM_GELU_P6;
  p = fma(p, h, TURBOESM_GELU_P5);
  p = fma(p, h, TURBOESM_GELU_P4);
  p = fma(p, h, TURBOESM_GELU_P3);
  p = fma(p, h, TURBOESM_GELU_P2);
  p = fma(p, h, TURBOESM_GELU_P1);
  p = fma(p, h, TURBOESM_GELU_P0);
  return fma(-h, exp2(p), 0.5 * (z + abs(z)));  // the latter is max(z, 0), but keeps a NaN
}

#endif  // GELU_GLSL
