#define SMALL_DOGE_PLAIN
#include "simd_plain.hpp"

#include "kernels.inl"

namespace small_doge {
const Kernels* kernels_plain() { return &table; }
}  // namespace small_doge
