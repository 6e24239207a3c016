#include "runtime/operations.h"

#include <limits>
#include <string>

#include "runtime/backend.h"
#include "runtime/error.h"
#include "runtime/operation_rules.h"

namespace turboesm {

void require(bool condition, std::string_view operation, std::string_view rule) {
  if (!condition) throw_error(ErrorKind::usage, "[{}] {}", operation, rule);
}

void check_head_dim(std::string_view operation, uint32_t head_dim) {
  if (head_dim == 0 || head_dim % 8 != 0 || head_dim > kMaxHeadDim)
    throw_error(ErrorKind::usage, "[{}] head_dim is {}; it must be a multiple of 8 and at most {}", operation, head_dim,
                kMaxHeadDim);
}

namespace {

std::string names_of(uint32_t dtypes) {
  std::string names;
  for (DType dtype : {DType::f32, DType::f16, DType::bf16, DType::i32})
    if (dtypes & (1u << uint32_t(dtype))) names += (names.empty() ? "" : " or ") + std::string(name_of(dtype));
  return names;
}

void check_operand(std::string_view operation, std::string_view name, const Tensor& tensor, uint64_t elements,
                   uint32_t dtypes) {
  const auto fail = [&](const std::string& what) {
    throw_error(ErrorKind::usage, "[{}] operand {} {}", operation, name, what);
  };
  if (!tensor) fail("is missing");
  if (!(dtypes & (1u << uint32_t(tensor.dtype))))
    fail(fmt::format("is {}, not {}", name_of(tensor.dtype), names_of(dtypes)));
  if (tensor.count < elements) fail(fmt::format("has {} elements where {} are needed", tensor.count, elements));
  if (tensor.offset % 16 != 0) fail(fmt::format("is at byte {}, which is no multiple of 16", tensor.offset));
  const uint64_t size = tensor.buffer->size();
  if (tensor.offset > size || tensor.count > (size - tensor.offset) / size_of(tensor.dtype))
    fail(fmt::format("ends at byte {} of a buffer of {}", tensor.offset + tensor.bytes(), size));
  // Kernels index with 32 bits.
  if (elements > std::numeric_limits<int32_t>::max())
    throw_error(ErrorKind::out_of_memory, "[{}] operand {} has {} elements, more than 2^31 - 1: use a smaller batch",
                operation, name, elements);
}

bool even_if_16_bit(const Tensor& tensor, uint64_t n) { return size_of(tensor.dtype) == 4 || n % 2 == 0; }

// What operands() cannot say: the sizes themselves and the dtypes that must agree.
void check_sizes(const TokenDropout&) {}
void check_sizes(const Embed& a) { require(a.vocab > 0 && a.width % 2 == 0, a.kName, "width must be even, vocab > 0"); }
void check_sizes(const LayerNorm& a) { require(a.width > 0 && a.width % 2 == 0, a.kName, "width must be even"); }
// `outputs` of x weight^T: both kinds of product have these rules.
void check_product(std::string_view operation, const Tensor& x, const Tensor& weight, uint32_t inputs,
                   uint64_t outputs) {
  require(inputs > 0 && inputs % 2 == 0, operation, "inputs must be even");
  require(x.dtype == weight.dtype, operation, "x and weight must have one dtype");
  require(outputs <= (1u << 20), operation, "at most 2^20 outputs");  // a grid's width is limited
}
void check_sizes(const Linear& a) {
  check_product(a.kName, a.x, a.weight, a.inputs, a.outputs);
  require(even_if_16_bit(a.y, a.outputs), a.kName, "outputs must be even when y is a 16-bit type");
}
void check_sizes(const QkvRope& a) {
  check_head_dim(a.kName, a.head_dim);
  check_product(a.kName, a.x, a.weight, a.inputs, a.outputs());
}
void check_sizes(const Attention& a) {
  check_head_dim(a.kName, a.head_dim);
  require(a.q.dtype == a.k.dtype && a.q.dtype == a.v.dtype, a.kName, "q, k and v must have one dtype");
  require(a.heads <= 65535 && a.sequences <= 65535, a.kName, "at most 65535 heads and sequences");
}
void check_sizes(const PoolMean& a) { require(a.sequences <= 65535, a.kName, "at most 65535 sequences"); }
void check_sizes(const AttentionMaps& a) {
  check_head_dim(a.kName, a.head_dim);
  require(a.q.dtype == a.k.dtype, a.kName, "q and k must have one dtype");
  require(a.length > 0 && uint64_t(a.begin) + a.length <= a.tokens, a.kName, "the sequence must lie inside the tokens");
}
void check_sizes(const ContactSums& a) { require(a.length > 2, a.kName, "the sequence has no residue"); }
void check_sizes(const ContactAccumulate& a) { require(a.length > 2, a.kName, "the sequence has no residue"); }
void check_sizes(const Fill& a) { require(even_if_16_bit(a.out, a.out.count), a.kName, "count must be even"); }
void check_sizes(const RandomNormal& a) { require(a.out.count % 2 == 0, a.kName, "count must be even"); }
void check_sizes(const Copy& a) {
  require(a.source.dtype == a.destination.dtype && a.source.count == a.destination.count, a.kName,
          "source and destination must have one dtype and one count");
  require(a.destination.bytes() % 4 == 0, a.kName, "the bytes must be a multiple of 4");
}

}  // namespace

std::string_view name_of(const Operation& operation) {
  return std::visit([](const auto& a) { return a.kName; }, operation);
}

void check(const Operation& operation) {
  std::visit(
      [](const auto& a) {
        check_sizes(a);
        a.operands([&](std::string_view name, const Tensor& tensor, uint64_t elements, Access, uint32_t dtypes) {
          check_operand(a.kName, name, tensor, elements, dtypes);
        });
      },
      operation);
}

double flops(const Operation& operation) {
  return std::visit([](const auto& a) { return a.flops(); }, operation);
}

uint64_t bytes(const Operation& operation) {
  uint64_t sum = 0;
  std::visit(
      [&](const auto& a) {
        a.operands([&](std::string_view, const Tensor& tensor, uint64_t elements, Access access, uint32_t) {
          sum += elements * size_of(tensor.dtype) * (access == Access::read_write ? 2 : 1);
        });
      },
      operation);
  return sum;
}

}  // namespace turboesm
