// Coefficients of GELU by a power of two, in fp32, for C++, CUDA and GLSL alike: macros only.
//
//   GELU(z) = z/2 (1 + erf(z / sqrt 2)) = max(z, 0) - h Q(h),  h = |z|,  Q(h) = erfc(h / sqrt 2) / 2 = 2^P(h)
//   P(h) = P0 + h (P1 + h (P2 + ... + h P6)), Horner's scheme, with h capped at LIMIT
//
// A fit over [0, LIMIT] with the weight h Q(h): GELU's absolute error is 2.8e-7 in fp32, one rounding near z = 4. It
// needs no division.
#ifndef TURBOESM_GELU_COEFFICIENTS_H
#define TURBOESM_GELU_COEFFICIENTS_H

#define TURBOESM_GELU_LIMIT 6.0f

#define TURBOESM_GELU_P0 -0.999993085861206f
#define TURBOESM_GELU_P1 -1.1512017250061035f
#define TURBOESM_GELU_P2 -0.4587709307670593f
#define TURBOESM_GELU_P3 -0.053412169218063354f
#define TURBOESM_GELU_P4 0.008080758154392242f
#define TURBOESM_GELU_P5 -0.0007692324579693377f
#define TURBOESM_GELU_P6 3.309427120257169e-05f

#endif  // TURBOESM_GELU_COEFFICIENTS_H
