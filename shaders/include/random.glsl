// runtime/random.h's integers and uniform numbers, restated bit for bit.
#ifndef RANDOM_GLSL
#define RANDOM_GLSL

uint pcg_hash(uint value) {
  const uint state = value * 747796405u + 2891336453u;
  const uint word = ((state >> ((state >> 28u) + 4u)) ^ state) * 277803737u;
  return (word >> 22u) ^ word;
}

// Uniform on the 24-bit grid of [0, 1).
float random_uniform(uint seed, uint stream, uint counter) {
  return float(pcg_hash(pcg_hash(pcg_hash(seed) ^ stream) ^ counter) >> 8) * (1.0 / 16777216.0);
}

#endif  // RANDOM_GLSL
