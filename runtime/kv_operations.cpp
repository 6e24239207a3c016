#include "runtime/kv_operations.h"

#include <cmath>

#include "runtime/operation_rules.h"

namespace turboesm {
namespace {

uint32_t codebook_values(uint32_t bits) { return (2u << bits) - 1; }

void check_side(std::string_view operation, const KvSide& side, uint32_t head_dim) {
  require(side.segments == 1 || side.segments == 2, operation, "a side has 1 or 2 segments");
  require(head_dim % (4 * side.segments) == 0, operation, "a segment's values must be a multiple of 4");
  for (uint32_t segment = 0; segment < side.segments; ++segment) {
    const uint32_t bits = side.bits[segment];
    require((bits >= 1 && bits <= 4) || bits == 8 || bits == 16 || bits == 32, operation,
            "a value has 1, 2, 3, 4, 8, 16 or 32 bits");
    require(side.segments == 1 || bits <= 4, operation, "two segments need 1 to 4 bits in each");
  }
  require(side.scale_bits == 0 || side.scale_bits == 8 || side.scale_bits == 16, operation,
          "a scale has 0, 8 or 16 bits");
  require(side.scale <= KvScale::absmax, operation, "the kind of scale is unknown");
  require((side.scale == KvScale::none) == (side.scale_bits == 0), operation,
          "scale_bits must be 0 without a scale and only then");
  require(side.bits[0] != 8 || side.scale == KvScale::absmax, operation, "8-bit values need the scale absmax");
  require(side.bits[0] < 16 || side.scale == KvScale::none, operation, "16- and 32-bit values have no scale");
  require(!side.qjl || side.has_codebook(), operation, "qjl needs a codebook");
  require(!side.gaussian || side.has_codebook(), operation, "16-bit and wider values and integers are not gaussian");
}

void check_format(std::string_view operation, const KvFormat& format, uint32_t head_dim) {
  check_side(operation, format.k, head_dim);
  check_side(operation, format.v, head_dim);
  require(!format.v.qjl, operation, "qjl is for K only");
}

void check_cache(std::string_view operation, uint32_t sequences, uint32_t heads, uint32_t capacity) {
  require(sequences <= kMaxGrid && heads <= kMaxGrid, operation, "at most 65535 heads and sequences");
  require(capacity > 0 && capacity % KV_BLOCK == 0, operation, "capacity must be a multiple of 32, and not 0");
}

}  // namespace

uint32_t KvSide::codebook_size() const {
  if (!has_codebook()) return 0;
  return codebook_values(bits[0]) + (segments == 2 ? codebook_values(bits[1]) : 0);
}

uint32_t KvSide::block_words(uint32_t head_dim) const {
  return kv_side_words(head_dim / segments, segments, bits[0], bits[1], scale_bits, qjl);
}

void check_sizes(const KvAppend& a) {
  check_head_dim(a.kName, a.head_dim);
  check_format(a.kName, a.format, a.head_dim);
  check_cache(a.kName, a.sequences, a.heads, a.capacity);
  require(a.k.dtype == a.v.dtype, a.kName, "k and v must have one dtype");
  require(!a.v_side.position_mean, a.kName, "position_mean is for K only");
  require(a.max_count > 0, a.kName, "max_count must not be 0");
}

void check_sizes(const KvQuery& a) {
  check_head_dim(a.kName, a.head_dim);
  require(a.heads <= kMaxGrid, a.kName, "at most 65535 heads");
}

void check_sizes(const KvAttention& a) {
  check_head_dim(a.kName, a.head_dim);
  check_format(a.kName, a.format, a.head_dim);
  check_cache(a.kName, a.sequences, a.heads, a.capacity);
  require(a.queries >= 1 && a.queries <= kMaxQueries, a.kName, "1 to 4 queries of a sequence");
}

void check_sizes(const Sample& a) {
  require(a.sequences <= kMaxGrid, a.kName, "at most 65535 sequences");
  require(a.vocab > 0, a.kName, "vocab must not be 0");
  require(a.capacity > 0, a.kName, "capacity must not be 0");
  require(a.candidate_count >= 1 && a.candidate_count <= kMaxCandidates, a.kName, "1 to 64 candidates");
  require(a.temperature >= 0 && std::isfinite(a.temperature), a.kName, "temperature must be finite and at least 0");
  require(a.top_p > 0 && a.top_p <= 1, a.kName, "top_p must be above 0 and at most 1");
}

}  // namespace turboesm
