// Picks the instruction set at start: the program's main().
//
// train_gpt2_lnfree.cpp is compiled once per instruction set, and the Makefile makes each object self-contained, so
// that no function of one build can be taken for another's by the linker. What is left visible of each is its entry
// lnfree_main_<isa> and the list of its static constructors, which the Makefile moves out of the place where the C
// library would run them all: a constructor compiled for AVX-512 must not run on a processor without it.
//
// LNFREE_ISA=portable|avx2|avx512 forces one of them. This file itself is compiled for the oldest processor.

#include <cstdio>
#include <cstdlib>
#include <cstring>

#ifdef __x86_64__
#include <cpuid.h>
#endif

// The Makefile says what was built, from the most widely supported to the fastest: VARIANT(portable) VARIANT(avx2) ...
#ifndef LNFREE_VARIANTS
#error "LNFREE_VARIANTS is not defined: the Makefile passes the list of builds of train_gpt2_lnfree.cpp"
#endif

using Constructor = void (*)(int, char**, char**);

// A build on its own is linked as it is and has no list: its constructors have run before main(), as usual.
#define VARIANT(isa)                                                                  \
    extern "C" int lnfree_main_##isa(int argc, char** argv);                          \
    extern "C" __attribute__((weak)) Constructor __start_lnfree_constructors_##isa[]; \
    extern "C" __attribute__((weak)) Constructor __stop_lnfree_constructors_##isa[];
LNFREE_VARIANTS
#undef VARIANT

namespace {

struct Variant {
    const char* isa;
    int (*entry)(int, char**);
    Constructor* constructors_begin;
    Constructor* constructors_end;
};

#define VARIANT(isa) {#isa, lnfree_main_##isa, __start_lnfree_constructors_##isa, __stop_lnfree_constructors_##isa},
const Variant variants[] = {LNFREE_VARIANTS};
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

bool processor_runs(const Variant& variant) {
#ifdef __x86_64__
    if (std::strcmp(variant.isa, "avx2") == 0) return has_avx2();
    if (std::strcmp(variant.isa, "avx512") == 0) return has_avx512();
#endif
    return true;
}

// The build to run: what LNFREE_ISA asks for, or the last one that the processor supports. Null after saying why not.
const Variant* choose(const char* wanted) {
    const Variant* chosen = nullptr;
    bool known = false;
    for (const Variant& variant : variants) {
        if (wanted && std::strcmp(wanted, variant.isa) != 0) continue;
        known = true;
        if (processor_runs(variant)) chosen = &variant;
    }
    if (chosen) return chosen;
    if (known) {
        std::fprintf(stderr, "LNFREE_ISA=%s: this processor does not have that instruction set\n", wanted);
        return nullptr;
    }
    std::fprintf(stderr, "LNFREE_ISA=%s: unknown; this program was built for:", wanted);
    for (const Variant& variant : variants) std::fprintf(stderr, " %s", variant.isa);
    std::fprintf(stderr, "\n");
    return nullptr;
}

}  // namespace

int main(int argc, char** argv, char** environment) {
    const char* wanted = std::getenv("LNFREE_ISA");
    const Variant* variant = choose(wanted && *wanted ? wanted : nullptr);
    if (!variant) return 2;
    for (Constructor* c = variant->constructors_begin; c != variant->constructors_end; ++c)
        (*c)(argc, argv, environment);
    return variant->entry(argc, argv);
}
