// AVX-512 (F, BW, DQ, VL) + VNNI lanes for kernels.inl.
#pragma once
#include <immintrin.h>

#include <cstring>

#include "types.hpp"

namespace {
namespace simd {
using small_doge::bf16;

constexpr int W = 16;
constexpr int kTokens = 12;
constexpr int kTokensBf16 = 8;
constexpr int kTokensInt8 = 8;
constexpr int kTokensInt4 = 8;
constexpr const char* kName = "avx512";

inline void prefetch(const uint8_t* p) { _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0); }

using F = __m512;
inline F zero() { return _mm512_setzero_ps(); }
inline F set1(float x) { return _mm512_set1_ps(x); }
inline F load(const float* p) { return _mm512_loadu_ps(p); }
inline F load(const bf16* p) {
    const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16));
}
inline void store(float* p, F x) { _mm512_storeu_ps(p, x); }
inline F add(F a, F b) { return _mm512_add_ps(a, b); }
inline F sub(F a, F b) { return _mm512_sub_ps(a, b); }
inline F mul(F a, F b) { return _mm512_mul_ps(a, b); }
inline F div(F a, F b) { return _mm512_div_ps(a, b); }
inline F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
inline F max(F a, F b) { return _mm512_max_ps(a, b); }
inline F min(F a, F b) { return _mm512_min_ps(a, b); }
inline F abs(F a) { return _mm512_abs_ps(a); }
inline F round(F a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline F scale2(F x, F n) { return _mm512_scalef_ps(x, n); }
inline float hsum(F x) { return _mm512_reduce_add_ps(x); }
inline float hmax(F x) { return _mm512_reduce_max_ps(x); }

// The even and the odd of two neighbouring bf16 columns, 16 rows.
inline F load_even(const uint8_t* p) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(p), 16)); }
inline F load_odd(const uint8_t* p) {
    const __m512i mask = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(p), mask));
}

using I = __m512i;
struct X4 {
    __m512i q;
};
// vpdpbusd wants one unsigned operand: weights enter as w + 128, so that the sum begins with -128 times that of x.
constexpr int kX4 = 4;
inline int32_t store_x4(const int8_t* q, int n, int32_t sum, int8_t* out) {
    std::memcpy(out, q, n);
    return -128 * sum;
}
inline I int_start(int32_t sum) { return _mm512_set1_epi32(sum); }
inline X4 broadcast4(const int8_t* q) {
    int32_t a;
    std::memcpy(&a, q, 4);
    return {_mm512_set1_epi32(a)};
}
using W4 = __m512i;
inline W4 load_w4(const uint8_t* p) {
    return _mm512_xor_si512(_mm512_loadu_si512(p), _mm512_set1_epi8(static_cast<char>(0x80)));
}
inline I dot4(I acc, W4 w, X4 x) { return _mm512_dpbusd_epi32(acc, w, x.q); }
inline F to_float(I x) { return _mm512_cvtepi32_ps(x); }

using N = __m512i;
using NX = X4;
inline N nibble_start() { return _mm512_setzero_si512(); }
inline NX nibble_x(const int8_t* q) { return broadcast4(q); }
inline void load_nibbles(const uint8_t* p, W4& low, W4& high) {
    const __m512i raw = _mm512_loadu_si512(p);
    const __m512i mask = _mm512_set1_epi8(15);
    low = _mm512_and_si512(raw, mask);
    high = _mm512_and_si512(_mm512_srli_epi16(raw, 4), mask);
}
inline N nibble_dot(N acc, W4 w, NX x) { return _mm512_dpbusd_epi32(acc, w, x.q); }
inline F nibble_end(N acc, int32_t sum) {
    return _mm512_cvtepi32_ps(_mm512_sub_epi32(acc, _mm512_set1_epi32(8 * sum)));
}
}  // namespace simd
}  // namespace
