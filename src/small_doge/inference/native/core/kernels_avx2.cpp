#include "simd_avx2.hpp"

#include "kernels.inl"

namespace small_doge {
const Kernels* kernels_avx2() { return &table; }
}  // namespace small_doge
