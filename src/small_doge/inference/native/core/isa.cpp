// Which instruction sets this build holds, and which of them this CPU runs.
#include <cstring>

#include "kernels.hpp"

#if defined(_MSC_VER) && defined(_M_X64)
#include <immintrin.h>
#include <intrin.h>
#endif

namespace small_doge {
namespace {

#if defined(SMALL_DOGE_X86) && defined(_MSC_VER)
bool cpuid_bit(int leaf, int reg, int bit) {
    int r[4];
    __cpuidex(r, leaf, 0);
    return (r[reg] >> bit) & 1;
}
bool state_saved(unsigned long long mask) { return cpuid_bit(1, 2, 27) && (_xgetbv(0) & mask) == mask; }
bool has_avx2() { return state_saved(0x6) && cpuid_bit(7, 1, 5) && cpuid_bit(1, 2, 12); }
bool has_avx512() {
    return state_saved(0xe6) && cpuid_bit(7, 1, 16) && cpuid_bit(7, 1, 17) && cpuid_bit(7, 1, 30) &&
           cpuid_bit(7, 1, 31) && cpuid_bit(7, 2, 11);
}
#elif defined(SMALL_DOGE_X86)
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool has_avx512() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni");
}
#endif

}  // namespace

const Kernels* find_kernels(const char* name) {
    const bool any = name[0] == 0;
    const auto wanted = [&](const char* n) { return any || std::strcmp(name, n) == 0; };
#if defined(SMALL_DOGE_X86)
    if (wanted("avx512") && has_avx512()) return kernels_avx512();
    if (wanted("avx2") && has_avx2()) return kernels_avx2();
#elif defined(SMALL_DOGE_ARM64)
    if (wanted("neon")) return kernels_neon();
#endif
    return wanted("plain") ? kernels_plain() : nullptr;
}

}  // namespace small_doge
