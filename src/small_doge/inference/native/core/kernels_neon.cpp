#include "simd_neon.hpp"

#include "kernels.inl"

namespace small_doge {
const Kernels* kernels_neon() { return &table; }
}  // namespace small_doge
