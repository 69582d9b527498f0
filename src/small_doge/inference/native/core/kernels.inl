// The inner loops, written once over the lanes of a simd_*.hpp file that is included before this one: here what
// they share and the table, in kernels_matmul.inl, kernels_attention.inl and kernels_vector.inl the loops.
// Everything is in an anonymous namespace: each instruction set has its own copy, and none leaks into another.
#include <cmath>
#include <cstring>

#include "kernels.hpp"

#if defined(SMALL_DOGE_PLAIN)
#define SMALL_DOGE_UNROLL  // compilers take minutes over unrolled lambdas and gain nothing
#elif defined(__clang__)
#define SMALL_DOGE_UNROLL _Pragma("unroll")
#elif defined(__GNUC__)
#define SMALL_DOGE_UNROLL _Pragma("GCC unroll 16")
#define SMALL_DOGE_ROLLED _Pragma("GCC unroll 1")  // unrolled, its sums become a tree that registers cannot hold
#else
#define SMALL_DOGE_UNROLL
#endif
#if !defined(SMALL_DOGE_ROLLED)
#define SMALL_DOGE_ROLLED
#endif

namespace {
using namespace small_doge;
using namespace simd;

constexpr int NV = kPanel / W;  // vectors across a panel

constexpr int at_least_one(int n) { return n < 1 ? 1 : n; }

}  // namespace

#include "kernels_attention.inl"
#include "kernels_matmul.inl"
#include "kernels_vector.inl"

namespace {

const Kernels table = {kName,     W,           matmul,     quantize,    mix<float>, mix<bf16>, dot<float>,
                       dot<bf16>, axpy<float>, axpy<bf16>, rms_norm,    silu_mul,   residual,  rope,
                       to_bf16,   softmax,     stats,      exp_weights, lowest,     read};

}  // namespace
