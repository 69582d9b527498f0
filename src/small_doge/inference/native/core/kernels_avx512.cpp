#include "simd_avx512.hpp"

#include "kernels.inl"

namespace small_doge {
const Kernels* kernels_avx512() { return &table; }
}  // namespace small_doge
