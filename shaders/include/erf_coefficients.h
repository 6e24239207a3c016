// Coefficients of the error function in fp32, for CUDA and GLSL alike: macros only, so that both evaluate the same form
// (gelu_coefficients.h has the form for kernels in whose time GELU shows).
//
//   erf(x) = x P(x^2) / Q(x^2)      for |x| < ERF_LIMIT
//          = sign(x)                beyond, where 1 - erf(x) < 3.0e-8 is less than half an fp32 ulp
//   P(t) = P0 + t (P1 + t (P2 + ... + t P6)),  Q(t) = Q0 + t (Q1 + ... + t Q5),  Horner's scheme
//
// A minimax fit of the relative error (1.9e-9 in exact arithmetic). Evaluated in fp32: at most 5.2 ulp (4.5 with fused
// multiply-adds), 3.1e-7 absolute, 0.9 ulp on average. The quotient may exceed 1 by its rounding error: clamp it to
// [-1, 1]. A NaN stays one when "beyond" is tested as |x| >= ERF_LIMIT.
#ifndef TURBOESM_ERF_COEFFICIENTS_H
#define TURBOESM_ERF_COEFFICIENTS_H

#define TURBOESM_ERF_LIMIT 3.92f

#define TURBOESM_ERF_P0 0.9261248707771301f
#define TURBOESM_ERF_P1 0.151958167552948f
#define TURBOESM_ERF_P2 0.04452117159962654f
#define TURBOESM_ERF_P3 0.0031507499516010284f
#define TURBOESM_ERF_P4 0.0003091941762249917f
#define TURBOESM_ERF_P5 3.7820127545273863e-06f
#define TURBOESM_ERF_P6 -1.050066700258867e-08f

#define TURBOESM_ERF_Q0 0.8207567930221558f
#define TURBOESM_ERF_Q1 0.40825507044792175f
#define TURBOESM_ERF_Q2 0.09346482157707214f
#define TURBOESM_ERF_Q3 0.012664551846683025f
#define TURBOESM_ERF_Q4 0.0010682258289307356f
#define TURBOESM_ERF_Q5 5.1204606279497966e-05f

#endif  // TURBOESM_ERF_COEFFICIENTS_H
