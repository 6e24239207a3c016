// How kv_attention.comp and kv_attention_rows.comp end: an invocation's sums become the workgroup's, and with SPLIT
// those of all workgroups that share a head of a sequence. Before this come
//   void prepare()                                 the invocation's place, tables and queries
//   void attend(uint first, uint end, uint length) blocks first .. end, of which the tokens before `length` count
//   uint summed_value(uint of_part, uint j)        the value in all that is the j-th of the sums of a part
//   const uint kMostRowLanes                       lanes that may share a row of the transform: 1, 2, 4 or 8
#ifndef KV_ATTENTION_END_GLSL
#define KV_ATTENTION_END_GLSL

// Merging: all of a workgroup's sums of a query to `merged`.

struct Softmax {
  float largest, total;
};

// Leaves MERGED of this invocation's sums times `share`, those of the given group. Loops with loops or barriers in them
// may stay loops, and what they index would leave the registers: this picks by comparisons.
void share_sums(uint group, float share) {
  UNROLL for (uint g = 0; g < QUERIES * kValues / MERGED; ++g) {
    if (g != group) continue;
    UNROLL for (uint i = 0; i < MERGED; ++i) {
      merge_buffer[i * (THREADS + 1) + gl_LocalInvocationID.x] = share * sums[g * MERGED + i];
    }
  }
}

Softmax merge_invocations(uint query) {
  Softmax own, all;
  UNROLL for (uint r = 0; r < QUERIES; ++r) {
    if (r == query) own = Softmax(largest[r], total[r]);
  }
  all.largest = workgroup_max(own.largest);
  const float share = exp2(own.largest - all.largest);
  all.total = workgroup_sum(share * own.total);
  [[dont_unroll]] for (uint base = 0; base < kValues; base += MERGED) {
    barrier();
    share_sums((query * kValues + base) / MERGED, share);
    barrier();
    UNROLL for (uint items = 0; items < MERGED * PARTS; items += THREADS) {
      const uint item = items + gl_LocalInvocationID.x, i = item / PARTS, of_part = item % PARTS, j = base + i;
      if (item >= MERGED * PARTS) continue;
      float sum = 0.0;
      const uint AT_ONCE = 8;  // divides THREADS / PARTS
      [[dont_unroll]] for (uint first = of_part; first < THREADS; first += AT_ONCE * PARTS) {
        UNROLL for (uint k = 0; k < AT_ONCE; ++k) sum += merge_buffer[i * (THREADS + 1) + first + k * PARTS];
      }
      merged[summed_value(of_part, j)] = sum;
    }
  }
  barrier();
  return all;
}

// Lanes that share a row of the transform, so that neighbours read neighbouring vectors: as many as merge_buffer has
// room for the parts of all rows.
const uint kRoom = MERGED * (THREADS + 1) / HEAD_DIM;
const uint kFittingLanes = kRoom >= 8 ? 8 : kRoom >= 4 ? 4 : kRoom >= 2 ? 2 : 1;
const uint kRowLanes = kMostRowLanes < kFittingLanes ? kMostRowLanes : kFittingLanes;
const uint kRowsAtOnce = THREADS / kRowLanes;

// transform merged: each row's sum in kRowLanes parts, to merge_buffer.
void transform_merged() {
  const uint lane = gl_LocalInvocationID.x % kRowLanes, first = gl_LocalInvocationID.x / kRowLanes;
  UNROLL for (uint base = 0; base < HEAD_DIM; base += kRowsAtOnce) {
    const uint i = base + first;
    if (i >= HEAD_DIM) continue;
    const uint at = ((FLAGS & TRANSFORM_OF_HEAD) != 0 ? head * HEAD_DIM + i : i) * HEAD_DIM;
    float sum = 0.0;
    UNROLL for (uint step = 0; step < HEAD_DIM; step += 4 * kRowLanes) {
      const uint j = step + 4 * lane;
      if (j >= HEAD_DIM) continue;
      sum += dot(load4(transform, DTYPE_F32, at + j), vec4(merged[j], merged[j + 1], merged[j + 2], merged[j + 3]));
    }
    merge_buffer[i * kRowLanes + lane] = sum;
  }
  barrier();
}

// out = transform merged / total + mean
void finish(uint query, float sum_of_weights) {
  const bool is_empty = lengths.at[sequence] == 0;
  const float scale = 1.0 / sum_of_weights;
  if ((FLAGS & HAS_TRANSFORM) != 0) transform_merged();
  UNROLL for (uint base = 0; base < HEAD_DIM; base += 2 * THREADS) {
    const uint i = base + 2 * gl_LocalInvocationID.x;
    if (i >= HEAD_DIM) continue;
    vec2 value = vec2(merged[i], merged[i + 1]);
    if ((FLAGS & HAS_TRANSFORM) != 0) {
      value = vec2(0.0);
      UNROLL for (uint l = 0; l < kRowLanes; ++l) {
        value += vec2(merge_buffer[i * kRowLanes + l], merge_buffer[(i + 1) * kRowLanes + l]);
      }
    }
    value *= scale;
    if ((FLAGS & HAS_MEAN) != 0) value += load2(mean, DTYPE_F32, head * HEAD_DIM + i);
    store2(result, RESULT_DTYPE, row_of(query) * HEAD_DIM + i, is_empty ? vec2(0.0) : value);
  }
}

#ifdef SPLIT
const uint kPartial = HEAD_DIM + 2;
const uint kSlices = THREADS / HEAD_DIM > 1 ? THREADS / HEAD_DIM : 1;  // runs of splits that are merged side by side

uint tile_index() { return gl_WorkGroupID.y * gl_NumWorkGroups.x + gl_WorkGroupID.x; }
uint partial_at(uint split, uint query) {
  return COUNTERS + ((tile_index() * gl_NumWorkGroups.z + split) * QUERIES + query) * kPartial;
}

void store_partial(uint query, Softmax softmax) {
  const uint at = partial_at(gl_WorkGroupID.z, query);
  if (gl_LocalInvocationID.x == 0) {
    scratch.at[at] = floatBitsToUint(softmax.largest);
    scratch.at[at + 1] = floatBitsToUint(softmax.total);
  }
  for (uint i = gl_LocalInvocationID.x; i < HEAD_DIM; i += THREADS) scratch.at[at + 2 + i] = floatBitsToUint(merged[i]);
}

// Whether this workgroup is the last of its head and sequence to have stored its partial sums, which it then sees all.
bool is_last() {
  memoryBarrierBuffer();
  barrier();  // every invocation's sums are there before the first one counts this workgroup
  if (gl_LocalInvocationID.x == 0) {
    arrived = atomicAdd(scratch.at[tile_index()], 1);
    if (arrived == gl_NumWorkGroups.z - 1) scratch.at[tile_index()] = 0;
  }
  memoryBarrierBuffer();
  barrier();
  memoryBarrierBuffer();
  return arrived == gl_NumWorkGroups.z - 1;
}

// The splits' partial sums, in ascending order, to `merged`; returns the sum of weights. There are at most THREADS.
float merge_splits(uint query) {
  const uint splits = gl_NumWorkGroups.z, own = gl_LocalInvocationID.x;
  Softmax softmax = Softmax(kLowest, 0.0);
  if (own < splits) {
    softmax.largest = uintBitsToFloat(scratch.at[partial_at(own, query)]);
    softmax.total = uintBitsToFloat(scratch.at[partial_at(own, query) + 1]);
  }
  const float share = exp2(softmax.largest - workgroup_max(softmax.largest));
  weight_of_split[own] = share;
  const float sum_of_weights = workgroup_sum(share * softmax.total);  // with barriers
  const uint run = (splits + kSlices - 1) / kSlices;
  for (uint item = own; item < kSlices * HEAD_DIM; item += THREADS) {
    const uint i = item % HEAD_DIM, end = min((item / HEAD_DIM + 1) * run, splits);
    float sum = 0.0;
    const uint AT_ONCE = 4;
    for (uint first = item / HEAD_DIM * run; first < end; first += AT_ONCE) {
      float value[AT_ONCE];
      UNROLL for (uint s = 0; s < AT_ONCE; ++s) {
        value[s] = uintBitsToFloat(scratch.at[partial_at(min(first + s, end - 1), query) + 2 + i]);
      }
      UNROLL for (uint s = 0; s < AT_ONCE; ++s) {
        if (first + s < end) sum = fma(weight_of_split[first + s], value[s], sum);
      }
    }
    merge_buffer[item] = sum;
  }
  barrier();
  for (uint i = own; i < HEAD_DIM; i += THREADS) {
    merged[i] = merge_buffer[i];
    for (uint slice = 1; slice < kSlices; ++slice) merged[i] += merge_buffer[slice * HEAD_DIM + i];
  }
  barrier();
  return sum_of_weights;
}
#endif

void main() {
  head = gl_WorkGroupID.x;
  sequence = gl_WorkGroupID.y;
  const uint length = uint(lengths.at[sequence]), used = (length + KV_BLOCK - 1) / KV_BLOCK;
  const uint run = (used + gl_NumWorkGroups.z - 1) / gl_NumWorkGroups.z;
  const uint first = min(gl_WorkGroupID.z * run, used), end = min(first + run, used);

  prepare();
  UNROLL for (uint r = 0; r < QUERIES; ++r) {
    largest[r] = kLowest;
    total[r] = 0.0;
  }
  UNROLL for (uint i = 0; i < QUERIES * kValues; ++i) sums[i] = 0.0;
  barrier();
  attend(first, end, min(length, end * KV_BLOCK));

#ifdef SPLIT
  [[dont_unroll]] for (uint r = 0; r < QUERIES; ++r) store_partial(r, merge_invocations(r));
  if (!is_last()) return;
  [[dont_unroll]] for (uint r = 0; r < QUERIES; ++r) {
    finish(r, merge_splits(r));
    barrier();
  }
#else
  [[dont_unroll]] for (uint r = 0; r < QUERIES; ++r) {
    finish(r, merge_invocations(r).total);
    barrier();
  }
#endif
}

#endif  // KV_ATTENTION_END_GLSL
