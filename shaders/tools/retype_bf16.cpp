// retype_bf16 IN.spv OUT.spv: makes the bfloat16 variant of a cooperative-matrix shader out of its float16 module.
//
// Such a shader has the 16-bit float type only as the component of cooperative matrices: it loads them from arrays of
// integers and does all conversion in integer code, so its modules for both formats differ in the type's declaration
// alone; a conversion of a whole matrix to the type rounds to whichever it is. Doing that here rather than with
// GL_EXT_bfloat16 lets any glslang with cooperative matrices build both. SPV_KHR_bfloat16: OpTypeFloat 16 takes a third
// operand, its encoding; two capabilities and the extension's name.
//
// A module that computes or converts with the type means something else when retyped; it is refused.
#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>
#include <exception>
#include <set>
#include <span>
#include <string>
#include <string_view>

#include "shaders/tools/spirv_file.h"

namespace {

// The numbers are those of the SPIR-V specification, sections 3.31 and 3.49.
enum Op : uint32_t {
  kOpExtension = 10,
  kOpExtInst = 12,
  kOpCapability = 17,
  kOpTypeFloat = 22,
  kOpTypeVector = 23,
  kOpTypeLast = 39,
  kOpConstant = 43,
  kOpDecorate = 71,
  kOpMemberDecorate = 72,
  kOpConvertFToU = 109,
  kOpConvertFToS = 110,
  kOpFConvert = 115,
  kOpFirstArithmetic = 126,  // OpSNegate
  kOpLastComparison = 191,   // OpFUnordGreaterThanEqual
  kOpTypeCooperativeMatrix = 4456,
};

// What may yield a 16-bit float or a matrix of them: instructions that move values without looking at them.
constexpr std::array<uint32_t, 15> kMovingOps{
    1,     // OpUndef
    44,    // OpConstantComposite
    46,    // OpConstantNull
    54,    // OpFunction
    55,    // OpFunctionParameter
    57,    // OpFunctionCall
    61,    // OpLoad
    80,    // OpCompositeConstruct
    81,    // OpCompositeExtract
    82,    // OpCompositeInsert
    83,    // OpCopyObject
    169,   // OpSelect
    245,   // OpPhi
    4457,  // OpCooperativeMatrixLoadKHR
    5367,  // OpCooperativeMatrixLoadTensorNV
};

constexpr uint32_t kEncodingBFloat16 = 0;
constexpr uint32_t kCapabilityFloat16 = 9;
constexpr uint32_t kCapabilityBFloat16Type = 5116;
constexpr uint32_t kCapabilityBFloat16CooperativeMatrix = 5118;
constexpr std::string_view kExtensionBFloat16 = "SPV_KHR_bfloat16";

using Words = std::vector<uint32_t>;
using Instruction = std::span<const uint32_t>;  // [0]: length in words << 16 | opcode, then the operands

uint32_t opcode(Instruction instruction) { return instruction[0] & 0xffffu; }

std::vector<Instruction> split_instructions(const Words& module) {
  std::vector<Instruction> instructions;
  for (size_t at = kSpirvHeaderWords; at < module.size();) {
    const size_t length = module[at] >> 16;
    if (length == 0 || length > module.size() - at) throw std::runtime_error("an instruction runs past the end");
    instructions.push_back(Instruction(module).subspan(at, length));
    at += length;
  }
  return instructions;
}

bool is_float16_type(Instruction i) { return opcode(i) == kOpTypeFloat && i[2] == 16; }

struct Float16Types {
  std::set<uint32_t> all;       // ids of the 16-bit float type and of the vectors and cooperative matrices of it
  std::set<uint32_t> matrices;  // of these alone
};

Float16Types float16_types(std::span<const Instruction> instructions) {
  std::set<uint32_t> types, matrices;
  for (Instruction i : instructions) {
    if (is_float16_type(i) && i.size() > 3) throw std::runtime_error("its 16-bit float type has an encoding already");
    const bool derived = (opcode(i) == kOpTypeVector || opcode(i) == kOpTypeCooperativeMatrix) && types.contains(i[2]);
    if (is_float16_type(i) || derived) types.insert(i[1]);
    if (derived && opcode(i) == kOpTypeCooperativeMatrix) matrices.insert(i[1]);
  }
  if (types.empty()) throw std::runtime_error("it has no 16-bit float type");
  return {types, matrices};
}

// True for the parts of a module that name types or hold literals where a function's instructions have a result type.
bool is_declaration(uint32_t op) {
  return (op > 1 && op <= kOpTypeLast && op != kOpExtInst) || op == kOpDecorate || op == kOpMemberDecorate ||
         op == kOpTypeCooperativeMatrix;
}

void refuse_arithmetic(std::span<const Instruction> instructions, const Float16Types& types) {
  std::set<uint32_t> values;  // ids of values of those types
  for (Instruction i : instructions) {
    const uint32_t op = opcode(i);
    if (is_declaration(op) || i.size() < 3) continue;
    const bool is_zero = op == kOpConstant && i.size() == 4 && i[3] == 0;  // the same bits in both formats
    const bool yields = types.all.contains(i[1]);
    const bool converts = op == kOpConvertFToU || op == kOpConvertFToS || op == kOpFConvert;
    const bool computes = (op >= kOpFirstArithmetic && op <= kOpLastComparison) || op == kOpExtInst;
    const bool takes =
        i.size() > 3 && std::ranges::any_of(i.subspan(3), [&](uint32_t word) { return values.contains(word); });
    const bool rounds = op == kOpFConvert && types.matrices.contains(i[1]) && !values.contains(i[3]);
    const bool moves = is_zero || rounds || std::ranges::find(kMovingOps, op) != kMovingOps.end();
    if ((yields && !moves) || (takes && !moves && (converts || computes)))
      throw std::runtime_error("it computes with its 16-bit float type (opcode " + std::to_string(op) +
                               "), which may only be the component type of cooperative matrices");
    if (yields) values.insert(i[2]);
  }
}

void append(Words& out, uint32_t op, std::span<const uint32_t> operands) {
  out.push_back(uint32_t(operands.size() + 1) << 16 | op);
  out.insert(out.end(), operands.begin(), operands.end());
}

// A literal string: UTF-8, four bytes a word, closed and padded with zeros.
Words string_operand(std::string_view text) {
  Words words(text.size() / sizeof(uint32_t) + 1, 0);
  std::memcpy(words.data(), text.data(), text.size());
  return words;
}

Words retype(const Words& module) {
  const auto instructions = split_instructions(module);
  refuse_arithmetic(instructions, float16_types(instructions));

  Words out(module.begin(), module.begin() + kSpirvHeaderWords);
  append(out, kOpCapability, std::array{kCapabilityBFloat16Type});
  append(out, kOpCapability, std::array{kCapabilityBFloat16CooperativeMatrix});
  bool in_capabilities = true;
  for (Instruction i : instructions) {
    if (in_capabilities && opcode(i) != kOpCapability) {
      append(out, kOpExtension, string_operand(kExtensionBFloat16));
      in_capabilities = false;
    }
    if (opcode(i) == kOpCapability && i[1] == kCapabilityFloat16) continue;  // not every bf16 device has it
    if (is_float16_type(i))
      append(out, kOpTypeFloat, std::array{i[1], i[2], kEncodingBFloat16});
    else
      out.insert(out.end(), i.begin(), i.end());
  }
  return out;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: retype_bf16 IN.spv OUT.spv\n");
    return 2;
  }
  try {
    const Words module = retype(read_spirv(argv[1]));
    std::ofstream out(argv[2], std::ios::binary);
    out.write(reinterpret_cast<const char*>(module.data()), std::streamsize(module.size() * sizeof(uint32_t)));
    out.close();
    if (!out) throw std::runtime_error(std::string(argv[2]) + " cannot be written");
  } catch (const std::exception& error) {
    std::fprintf(stderr, "retype_bf16: %s: %s\n", argv[1], error.what());
    return 1;
  }
}
