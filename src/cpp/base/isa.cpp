// Probes of the processor, and the SOMA_ISA cap.
#include "base/isa.h"

#include <atomic>
#include <cstdint>
#include <cstdlib>

#include "base/check.h"
#include "base/fork.h"

#if defined(_MSC_VER) && defined(_M_X64)
#include <intrin.h>
#define SOMA_X86 1
#elif defined(__x86_64__)
#include <cpuid.h>
#define SOMA_X86 1
#endif
#ifdef SOMA_HAVE_NEON_BF16
#if defined(__linux__)
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(_WIN32)
#include <windows.h>
#endif
#endif
#if defined(SOMA_HAVE_AMX) && !defined(SOMA_EMULATE_AMX)
#define SOMA_REAL_AMX 1
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace soma {
namespace {

constexpr const char* kNames[] = {"scalar", "sse", "avx2", "avx512", "avx512_bf16", "amx", "neon", "neon_bf16"};
std::atomic<int> active{-1};  // -1: not decided yet

#ifdef SOMA_X86
struct Registers {
  uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

#ifdef _MSC_VER
Registers cpuid(uint32_t leaf, uint32_t subleaf = 0) {
  int v[4];
  __cpuidex(v, static_cast<int>(leaf), static_cast<int>(subleaf));
  return {static_cast<uint32_t>(v[0]), static_cast<uint32_t>(v[1]), static_cast<uint32_t>(v[2]),
          static_cast<uint32_t>(v[3])};
}
uint64_t xcr0() { return _xgetbv(0); }
#else
Registers cpuid(uint32_t leaf, uint32_t subleaf = 0) {
  Registers r;
  if (__get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx) == 0) return {};
  return r;
}
uint64_t xcr0() {
  uint32_t low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
}
#endif

bool bit(uint32_t word, int index) { return ((word >> index) & 1u) != 0; }

#ifdef SOMA_REAL_AMX
// Needs AMX-TILE, AMX-BF16, a system that saves their state, and its permission. Linux gives the 8 KB of tile data only
// to a process that asks, once for all threads, and may refuse.
bool may_use_amx(uint32_t leaf7_edx, uint64_t state) {
  constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr long kTileData = 18;
  constexpr uint64_t kTileState = uint64_t{3} << 17;
  return bit(leaf7_edx, 24) && bit(leaf7_edx, 22) && (state & kTileState) == kTileState &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif
#endif

#ifdef SOMA_HAVE_NEON_BF16
// FEAT_BF16, as the system tells it.
bool has_neon_bf16() {
#if defined(__linux__)
  constexpr unsigned long kBf16 = 1ul << 14;  // HWCAP2_BF16
  return (getauxval(AT_HWCAP2) & kBf16) != 0;
#elif defined(__APPLE__)
  int has = 0;
  size_t size = sizeof(has);
  return sysctlbyname("hw.optional.arm.FEAT_BF16", &has, &size, nullptr, 0) == 0 && has == 1;
#elif defined(_WIN32)
  constexpr unsigned long kBf16 = 68;  // PF_ARM_V86_BF16_INSTRUCTIONS_AVAILABLE; an older Windows answers no
  return IsProcessorFeaturePresent(kBf16) != 0;
#else
  return false;
#endif
}
#endif

std::vector<Isa> probe() {
  std::vector<Isa> found{Isa::kScalar};
#ifdef SOMA_X86
  found.push_back(Isa::kSse);  // SSE2 is part of x86-64
  const Registers leaf1 = cpuid(1), leaf7 = cpuid(7);
  const bool os_tells = bit(leaf1.ecx, 27);  // OSXSAVE: XGETBV may be asked
  const uint64_t state = os_tells ? xcr0() : 0;
  const bool ymm_saved = (state & 0x06) == 0x06, zmm_saved = (state & 0xE6) == 0xE6;
  const bool avx2 = ymm_saved && bit(leaf1.ecx, 28) && bit(leaf1.ecx, 12) && bit(leaf7.ebx, 5);  // AVX, FMA, AVX2
  const bool avx512 = avx2 && zmm_saved && bit(leaf7.ebx, 16) && bit(leaf7.ebx, 17) && bit(leaf7.ebx, 30) &&
                      bit(leaf7.ebx, 31);  // F, DQ, BW, VL
  if (avx2) found.push_back(Isa::kAvx2);
  if (avx512) found.push_back(Isa::kAvx512);
#ifdef SOMA_HAVE_AVX512_BF16
  const bool avx512_bf16 = avx512 && bit(cpuid(7, 1).eax, 5);
  if (avx512_bf16) found.push_back(Isa::kAvx512Bf16);
#ifdef SOMA_REAL_AMX
  if (avx512_bf16 && may_use_amx(leaf7.edx, state)) found.push_back(Isa::kAmx);
#endif
#endif
#ifdef SOMA_EMULATE_AMX
  found.push_back(Isa::kAmx);  // emulated tiles: a test build, for the machine that built it
#endif
#endif
#ifdef SOMA_HAVE_NEON
  found.push_back(Isa::kNeon);  // part of aarch64
#endif
#ifdef SOMA_HAVE_NEON_BF16
  if (has_neon_bf16()) found.push_back(Isa::kNeonBf16);
#endif
  return found;
}

Isa parse(const std::string& name, const char* source) {
  std::string runnable;
  for (const Isa isa : available_isas()) {
    if (name == isa_name(isa)) return isa;
    runnable += (runnable.empty() ? "" : ", ") + std::string(isa_name(isa));
  }
  for (const char* other : kNames) {
    if (name == other) fail(source, " asks for '", name, "', which this machine cannot run; it can run ", runnable);
  }
  fail(source, " asks for the unknown instruction-set level '", name, "'; this machine can run ", runnable);
}

}  // namespace

const char* isa_name(Isa isa) { return kNames[static_cast<int>(isa)]; }

const std::vector<Isa>& available_isas() {
  static MadeOnce<std::vector<Isa>> levels;
  return levels.get(probe);
}

Isa active_isa() {
  int current = active.load(std::memory_order_acquire);
  if (current < 0) {
    const char* text = std::getenv("SOMA_ISA");
    const Isa isa = text != nullptr && *text != '\0' ? parse(text, "SOMA_ISA") : available_isas().back();
    current = static_cast<int>(isa);
    active.store(current, std::memory_order_release);
  }
  return static_cast<Isa>(current);
}

void set_isa(const std::string& name) {
  active.store(static_cast<int>(parse(name, "set_isa")), std::memory_order_release);
}

}  // namespace soma
