// Picks the instruction set: which of the compiled tables of operations this program uses.
//
// The operations of train_gpt2_lnfree.cpp are compiled once per instruction set, everything else once. This file is
// compiled for the oldest processor. LNFREE_ISA=portable|avx2|avx512 forces one of them.

#include <cstdlib>
#include <cstring>
#include <string>

#ifdef __x86_64__
#include <cpuid.h>
#endif

#include "data/error.h"
#include "dev/cpu/operations.h"

// The Makefile says what was built, from the most widely supported to the fastest: VARIANT(portable) VARIANT(avx2) ...
#ifndef LNFREE_VARIANTS
#error "LNFREE_VARIANTS is not defined: the Makefile passes the list of builds of the operations"
#endif

namespace lnfree {

#define VARIANT(isa) extern const Operations lnfree_operations_##isa;
LNFREE_VARIANTS
#undef VARIANT

namespace {

#define VARIANT(isa) &lnfree_operations_##isa,
const Operations* const variants[] = {LNFREE_VARIANTS};
#undef VARIANT

#ifdef __x86_64__
// -march=haswell and later also emit LZCNT, MOVBE and F16C, for which not every compiler's __builtin_cpu_supports
// has a name; where LZCNT is missing it would silently run as BSR. Bits: Intel SDM volume 2A, CPUID, and AMD's APM.
bool has_haswell_extras() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_MOVBE) || !(c & bit_F16C)) return false;
    return __get_cpuid(0x80000001u, &a, &b, &c, &d) && (c & bit_LZCNT);
}

// __builtin_cpu_supports also asks whether the operating system saves the wide registers.
bool has_avx2() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
           __builtin_cpu_supports("bmi2") && has_haswell_extras();
}

bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512cd");
}
#endif

bool processor_runs(const Operations& variant) {
#ifdef __x86_64__
    if (std::strcmp(variant.isa, "avx2") == 0) return has_avx2();
    if (std::strcmp(variant.isa, "avx512") == 0) return has_avx512();
#endif
    return true;
}

// What LNFREE_ISA asks for, or the last one that the processor supports.
const Operations& choose(const std::string& wanted) {
    const Operations* chosen = nullptr;
    bool known = false;
    std::string built;
    for (const Operations* variant : variants) {
        built += std::string(" ") + variant->isa;
        if (!wanted.empty() && wanted != variant->isa) continue;
        known = true;
        if (processor_runs(*variant)) chosen = variant;
    }
    if (chosen != nullptr) return *chosen;
    if (known) throw BadInput("LNFREE_ISA=" + wanted + ": this processor does not have that instruction set");
    throw BadInput("LNFREE_ISA=" + wanted + ": unknown; this program was built for:" + built);
}

}  // namespace

const Operations& operations() {
    static const Operations& chosen = [&]() -> const Operations& {
        const char* wanted = std::getenv("LNFREE_ISA");
        return choose(wanted == nullptr ? "" : wanted);
    }();
    return chosen;
}

}  // namespace lnfree
