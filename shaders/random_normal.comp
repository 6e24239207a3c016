#version 450
// out[i] = stddev n_i, n_i ~ N(0, 1) a function of (seed, i) alone: runtime/random.h restated, with its hashes bit for
// bit. The pair (2j, 2j + 1) is Box-Muller of u1 in (0, 1] and u2 in [0, 1), both on the 24-bit grid:
//   (r cos a, r sin a),  r = sqrt(-2 ln u1),  a = 2 pi u2
//
//   -> out [2 x pairs] any
//
// One pair per invocation and step. Vulkan lets sin, cos and log be far less exact than fp32 (2^-11 for the first two),
// so polynomials stand in for them (S. Moshier's Cephes: sinf, cosf and logf, errors below 2 ulp on these ranges).
#extension GL_GOOGLE_include_directive : require
#include "dtype.glsl"
#include "random.glsl"

layout(local_size_x = 256) in;

layout(constant_id = 0) const uint DTYPE = DTYPE_F32;

layout(push_constant, scalar) uniform Push {
  Words result;
  uint pairs;
  uint seed;
  float stddev;
};

// ln(n 2^-24) for 1 <= n <= 2^24: n = 2^e (1 + f) with |f| small, then ln(1 + f) as a polynomial.
float log_of_fraction(uint n) {
  const uint bits = floatBitsToUint(float(n));  // exact
  float exponent = float(int(bits >> 23) - 127 - 24);
  float mantissa = uintBitsToFloat((bits & 0x007fffffu) | 0x3f800000u);
  if (mantissa > 1.41421356) {
    mantissa *= 0.5;
    exponent += 1.0;
  }
  const float f = mantissa - 1.0, square = f * f;
  float p = 7.0376836292e-2;
  p = fma(p, f, -1.1514610310e-1);
  p = fma(p, f, 1.1676998740e-1);
  p = fma(p, f, -1.2420140846e-1);
  p = fma(p, f, 1.4249322787e-1);
  p = fma(p, f, -1.6668057665e-1);
  p = fma(p, f, 2.0000714765e-1);
  p = fma(p, f, -2.4999993993e-1);
  p = fma(p, f, 3.3333331174e-1);
  p = fma(p * f, square, fma(-0.5, square, exponent * -2.12194440e-4));  // ln 2 = 0.693359375 - 2.12194440e-4
  return fma(exponent, 0.693359375, f + p);
}

// (cos 2 pi u, sin 2 pi u) for 0 <= u < 1, from the nearest quarter turn.
vec2 point_on_circle(float u) {
  const float quarter = floor(4.0 * u + 0.5);
  const float angle = (4.0 * u - quarter) * 1.57079632679;  // within pi / 4 of zero
  const float square = angle * angle;
  float s = fma(-1.9515295891e-4, square, 8.3321608736e-3);
  s = fma(s, square, -1.6666654611e-1);
  s = fma(s * square, angle, angle);
  float c = fma(2.443315711809948e-5, square, -1.388731625493765e-3);
  c = fma(c, square, 4.166664568298827e-2);
  c = fma(c * square, square, fma(-0.5, square, 1.0));
  const uint turn = uint(quarter) & 3u;
  const vec2 point = (turn & 1u) == 0 ? vec2(c, s) : vec2(-s, c);
  return turn < 2 ? point : -point;
}

void main() {
  const uint key = pcg_hash(seed);
  for (uint j = gl_GlobalInvocationID.x; j < pairs; j += gl_NumWorkGroups.x * gl_WorkGroupSize.x) {
    const uint n1 = (pcg_hash(key ^ (2u * j)) >> 8) + 1u;
    const float u2 = float(pcg_hash(key ^ (2u * j + 1u)) >> 8) * (1.0 / 16777216.0);
    const float radius = sqrt(-2.0 * log_of_fraction(n1));
    store2(result, DTYPE, 2 * j, stddev * radius * point_on_circle(u2));
  }
}
