// AVX2 + FMA lanes for kernels.inl.
#pragma once
#include <immintrin.h>

#include <cstring>

#include "types.hpp"

namespace {
namespace simd {
using small_doge::bf16;

constexpr int W = 8;
constexpr int kTokens = 6;  // tokens in the register tile of the float kernels: 6 x 2 of the 16 registers
constexpr int kTokensBf16 = 4;
constexpr int kTokensInt8 = 2;
constexpr int kTokensInt4 = 4;
constexpr const char* kName = "avx2";

inline void prefetch(const uint8_t* p) { _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0); }

using F = __m256;
inline F zero() { return _mm256_setzero_ps(); }
inline F set1(float x) { return _mm256_set1_ps(x); }
inline F load(const float* p) { return _mm256_loadu_ps(p); }
inline F load(const bf16* p) {
    const __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw), 16));
}
inline void store(float* p, F x) { _mm256_storeu_ps(p, x); }
inline F add(F a, F b) { return _mm256_add_ps(a, b); }
inline F sub(F a, F b) { return _mm256_sub_ps(a, b); }
inline F mul(F a, F b) { return _mm256_mul_ps(a, b); }
inline F div(F a, F b) { return _mm256_div_ps(a, b); }
inline F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
inline F max(F a, F b) { return _mm256_max_ps(a, b); }
inline F min(F a, F b) { return _mm256_min_ps(a, b); }
inline F abs(F a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
inline F round(F a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
// x * 2^n for whole n in [-126, 127]
inline F scale2(F x, F n) {
    const __m256i e = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(x, _mm256_castsi256_ps(e));
}
inline float hsum(F x) {
    const __m256 pairs = _mm256_hadd_ps(x, x), s = _mm256_hadd_ps(pairs, pairs);
    return _mm_cvtss_f32(_mm_add_ss(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1)));
}
inline float hmax(F x) {
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}

// The even and the odd of two neighbouring bf16 columns, W rows.
inline F load_even(const uint8_t* p) {
    const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(raw, 16));
}
inline F load_odd(const uint8_t* p) {
    const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm256_castsi256_ps(_mm256_and_si256(raw, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
}

inline __m256i broadcast_bytes(const int8_t* q) {
    int32_t a;
    std::memcpy(&a, q, 4);
    return _mm256_set1_epi32(a);
}

// Integer products: a lane is one row, four columns a step. vpmaddubsw wants one unsigned operand: |x|, with the sign
// of x moved to w. An exclusive or makes -w - 1 of w where x is negative, so that the sum begins with what that takes
// off, the |x| of every negative x. |x| <= 127 and |w| <= 127: a pair of products is at most 32,512 and never
// saturates.
using I = __m256i;
struct X4 {
    __m256i magnitude, sign;
};
constexpr int kX4 = 8;  // bytes that hold four activations: magnitudes, then signs
inline int32_t store_x4(const int8_t* q, int n, int32_t, int8_t* out) {
    int32_t negative = 0;
    for (int i = 0; i < n; i += 16) {
        const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(q + i));
        const __m128i magnitude = _mm_abs_epi8(x), sign = _mm_cmpgt_epi8(_mm_setzero_si128(), x);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 2 * i), _mm_unpacklo_epi32(magnitude, sign));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 2 * i + 16), _mm_unpackhi_epi32(magnitude, sign));
        const __m128i sums = _mm_sad_epu8(_mm_and_si128(magnitude, sign), _mm_setzero_si128());
        negative += _mm_cvtsi128_si32(sums) + _mm_extract_epi32(sums, 2);
    }
    return negative;
}
inline I int_start(int32_t sum) { return _mm256_set1_epi32(sum); }
inline X4 broadcast4(const int8_t* q) { return {broadcast_bytes(q), broadcast_bytes(q + 4)}; }
using W4 = __m256i;
inline W4 load_w4(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline I dot4(I acc, W4 w, X4 x) {
    const __m256i pairs = _mm256_maddubs_epi16(x.magnitude, _mm256_xor_si256(w, x.sign));
    const __m256i fours = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#if defined(__GNUC__)
    // In place: GCC would keep the sums in other registers after each step and move them back.
    __asm__("vpaddd %1, %0, %0" : "+x"(acc) : "x"(fours));
    return acc;
#else
    return _mm256_add_epi32(acc, fours);
#endif
}
inline F to_float(I x) { return _mm256_cvtepi32_ps(x); }

// Nibbles: eight steps of pairs stay within 16 bits (8 * 2 * 15 * 127 = 30,480).
using N = __m256i;
using NX = __m256i;
inline N nibble_start() { return _mm256_setzero_si256(); }
inline NX nibble_x(const int8_t* q) { return broadcast_bytes(q); }
inline void load_nibbles(const uint8_t* p, W4& low, W4& high) {
    const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    const __m256i mask = _mm256_set1_epi8(15);
    low = _mm256_and_si256(raw, mask);
    high = _mm256_and_si256(_mm256_srli_epi16(raw, 4), mask);
}
inline N nibble_dot(N acc, W4 w, NX x) { return _mm256_add_epi16(acc, _mm256_maddubs_epi16(w, x)); }
inline F nibble_end(N acc, int32_t sum) {
    const __m256i total = _mm256_madd_epi16(acc, _mm256_set1_epi16(1));
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(total, _mm256_set1_epi32(8 * sum)));
}
}  // namespace simd
}  // namespace
