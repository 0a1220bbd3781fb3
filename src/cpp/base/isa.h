// Instruction-set levels: which the CPU and the operating system offer, which were built, and which one is in force.
#pragma once

#include <string>
#include <vector>

namespace soma {

// Chains of supersets above scalar, on x86-64 and on aarch64; the value orders them.
enum class Isa { kScalar = 0, kSse = 1, kAvx2 = 2, kAvx512 = 3, kAvx512Bf16 = 4, kAmx = 5, kNeon = 6, kNeonBf16 = 7 };
constexpr int kIsaCount = 8;

const char* isa_name(Isa isa);

// Levels that this build has and this machine can run, weakest first. On x86-64, CPUID says what the processor
// has; XCR0 says which registers the operating system saves. AMX tiles also need a permission for this process. On
// aarch64 the operating system says both.
const std::vector<Isa>& available_isas();

// The level in force: the highest available, capped by SOMA_ISA=<name>. Throws std::invalid_argument when SOMA_ISA
// names a level that does not exist or that this machine lacks; never falls back silently.
Isa active_isa();

// Sets the level from now on. Throws as active_isa does.
void set_isa(const std::string& name);

}  // namespace soma
