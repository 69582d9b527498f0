// AArch64 NEON lanes for kernels.inl; the dot-product instructions are used where the compiler targets them.
#pragma once
#include <arm_neon.h>

#include <cstring>

#include "types.hpp"

namespace {
namespace simd {
using small_doge::bf16;

constexpr int W = 4;
constexpr int kTokens = 4;
constexpr int kTokensBf16 = 4;
constexpr int kTokensInt8 = 4;
constexpr int kTokensInt4 = 4;
constexpr const char* kName = "neon";

inline void prefetch(const uint8_t* p) { __builtin_prefetch(p); }

using F = float32x4_t;
inline F zero() { return vdupq_n_f32(0.0f); }
inline F set1(float x) { return vdupq_n_f32(x); }
inline F load(const float* p) { return vld1q_f32(p); }
inline F load(const bf16* p) {
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(reinterpret_cast<const uint16_t*>(p)), 16));
}
inline void store(float* p, F x) { vst1q_f32(p, x); }
inline F add(F a, F b) { return vaddq_f32(a, b); }
inline F sub(F a, F b) { return vsubq_f32(a, b); }
inline F mul(F a, F b) { return vmulq_f32(a, b); }
inline F div(F a, F b) { return vdivq_f32(a, b); }
inline F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
inline F max(F a, F b) { return vmaxq_f32(a, b); }
inline F min(F a, F b) { return vminq_f32(a, b); }
inline F abs(F a) { return vabsq_f32(a); }
inline F round(F a) { return vrndnq_f32(a); }
inline F scale2(F x, F n) {
    const int32x4_t e = vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23);
    return vmulq_f32(x, vreinterpretq_f32_s32(e));
}
inline float hsum(F x) { return vaddvq_f32(x); }
inline float hmax(F x) { return vmaxvq_f32(x); }
inline F load_even(const uint8_t* p) {
    return vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_u8(vld1q_u8(p)), 16));
}
inline F load_odd(const uint8_t* p) {
    return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_u8(vld1q_u8(p)), vdupq_n_u32(0xffff0000u)));
}

using I = int32x4_t;
struct X4 {
    int8x16_t q;
};
constexpr int kX4 = 4;
inline int32_t store_x4(const int8_t* q, int n, int32_t, int8_t* out) {
    std::memcpy(out, q, n);
    return 0;
}
inline I int_start(int32_t sum) { return vdupq_n_s32(sum); }
inline X4 broadcast4(const int8_t* q) {
    int32_t a;
    std::memcpy(&a, q, 4);
    return {vreinterpretq_s8_s32(vdupq_n_s32(a))};
}
using W4 = int8x16_t;
inline W4 load_w4(const uint8_t* p) { return vreinterpretq_s8_u8(vld1q_u8(p)); }
inline I dot4(I acc, W4 w, X4 x) {
#if defined(__ARM_FEATURE_DOTPROD)
    return vdotq_s32(acc, w, x.q);
#else
    const int16x8_t low = vmull_s8(vget_low_s8(w), vget_low_s8(x.q));
    const int16x8_t high = vmull_high_s8(w, x.q);
    return vaddq_s32(acc, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)));
#endif
}
inline F to_float(I x) { return vcvtq_f32_s32(x); }

using N = I;
using NX = X4;
inline N nibble_start() { return vdupq_n_s32(0); }
inline NX nibble_x(const int8_t* q) { return broadcast4(q); }
inline void load_nibbles(const uint8_t* p, W4& low, W4& high) {
    const uint8x16_t raw = vld1q_u8(p);
    low = vreinterpretq_s8_u8(vandq_u8(raw, vdupq_n_u8(15)));
    high = vreinterpretq_s8_u8(vshrq_n_u8(raw, 4));
}
inline N nibble_dot(N acc, W4 w, NX x) { return dot4(acc, w, x); }
inline F nibble_end(N acc, int32_t sum) { return vcvtq_f32_s32(vsubq_s32(acc, vdupq_n_s32(8 * sum))); }
}  // namespace simd
}  // namespace
