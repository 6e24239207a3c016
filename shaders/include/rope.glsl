// The epilogue of the joint projection to q, k and v, each of `width` outputs: rotary embedding (Su et al. 2021) of
// pairs of neighbours.
#ifndef ROPE_GLSL
#define ROPE_GLSL

// The pair turned; angle is its cosine and sine.
vec2 turn(vec2 pair, vec2 angle) {
  return vec2(pair.x * angle.x - pair.y * angle.y, pair.y * angle.x + pair.x * angle.y);
}

// Where in [3, tokens, width] output `column` of a token lies.
uint place_in_qkv(uint tokens, uint width, uint token, uint column) {
  const uint part = uint(column >= width) + uint(column >= 2 * width);
  return (part * tokens + token) * width + column - part * width;
}

#endif  // ROPE_GLSL
