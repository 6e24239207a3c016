#include "runtime/cpu/features.h"

#include <array>
#include <cstring>

#if (defined(__x86_64__) || defined(__i386__)) && defined(__GNUC__)
#include <cpuid.h>
#define TURBOESM_X86_CPUID 1
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace turboesm::cpu {

#if defined(TURBOESM_X86_CPUID)

std::string processor_name() {
  // The brand string is 48 bytes in the registers of leaves 0x80000002 .. 4 (Intel SDM, CPUID).
  std::array<unsigned, 12> words{};
  for (unsigned leaf = 0; leaf < 3; ++leaf) {
    unsigned* r = words.data() + 4 * leaf;
    if (!__get_cpuid(0x80000002u + leaf, r, r + 1, r + 2, r + 3)) return "x86-64 processor";
  }
  std::array<char, 49> text{};
  std::memcpy(text.data(), words.data(), 48);
  std::string name(text.data());
  name.erase(0, name.find_first_not_of(' '));
  name.erase(name.find_last_not_of(' ') + 1);
  return name;
}

namespace {

// AMX with bf16, for which Linux must be asked (Documentation/arch/x86/xstate.rst): the tiles' state is 8 KiB more a
// thread. It is not taken up elsewhere.
bool may_use_tiles() {
#if defined(__linux__) && defined(__x86_64__)
  constexpr unsigned kFeatures = 7, kBf16 = 1u << 22, kTiles = 1u << 24;  // of EDX
  constexpr long kRequestPermission = 0x1023, kTileData = 18;             // arch_prctl's
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid_count(kFeatures, 0, &eax, &ebx, &ecx, &edx) && (edx & kBf16) && (edx & kTiles) &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

}  // namespace

bool can_run(std::string_view variant) {
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  if (variant == "avx2") return avx2;
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (variant == "avx512") return avx512;
  const bool avx512_bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
  if (variant == "avx512_bf16") return avx512_bf16;
  if (variant == "amx_bf16") return avx512_bf16 && may_use_tiles();
  return variant == "baseline";
}

#else

std::string processor_name() {
#if defined(__aarch64__) || defined(_M_ARM64)
  return "Arm 64-bit processor";
#else
  return "processor";
#endif
}

bool can_run(std::string_view variant) { return variant == "baseline"; }

#endif

}  // namespace turboesm::cpu
