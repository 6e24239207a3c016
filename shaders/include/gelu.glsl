// GELU with the exact error function, in fp32: gelu(z) = z/2 (1 + erf(z / sqrt 2)) (Hendrycks & Gimpel 2016).
#ifndef GELU_GLSL
#define GELU_GLSL

#include "erf_coefficients.h"

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

// The same with fewer instructions, right to 2.4e-7 of 1 and, for z > -6, to 2.3e-6 of itself: for kernels whose epilogue
// shows in their time. With a = |z|, gelu(z) = max(z, 0) - a erfc(a / sqrt 2) / 2 (no cancellation for negative z), and
//   erfc(a / sqrt 2) / 2 = exp(-a^2 / 2) R(1 / (1 + 0.36 a)),  R(t) = t (R0 + t (R1 + ... + t R6)),
// a minimax fit of the relative error (6.3e-7) over 0 <= a <= 12; beyond, the exponential is 0 in fp32.
float gelu_of_few_instructions(float z) {
  const float a = min(abs(z), 20.0);
  const float t = 1.0 / fma(0.36, a, 1.0);
  float r = 0.0479430221;
  r = fma(r, t, -0.182798043);
  r = fma(r, t, 0.185085446);
  r = fma(r, t, 0.0236971900);
  r = fma(r, t, 0.140765831);
  r = fma(r, t, 0.141579941);
  r = fma(r, t, 0.143726871);
  const float tail = t * r * exp2(-0.721347520 * a * a);
  return fma(-a, tail, 0.5 * (z + abs(z)));  // the latter is max(z, 0), but keeps a NaN
}

#endif  // GELU_GLSL
