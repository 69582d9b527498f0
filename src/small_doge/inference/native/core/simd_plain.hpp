// Lanes in standard C++ for kernels.inl: the definition that the vector files are tested against.
#pragma once
#include <cmath>
#include <cstring>

#include "types.hpp"

namespace {
namespace simd {
using small_doge::bf16;

constexpr int W = 8;
constexpr int kTokens = 4;
constexpr int kTokensBf16 = 4;
constexpr int kTokensInt8 = 2;
constexpr int kTokensInt4 = 2;
constexpr const char* kName = "plain";

inline void prefetch(const uint8_t*) {}

struct F {
    float v[W];
};
template <class Op>
inline F lanes(Op op) {
    F r;
    for (int i = 0; i < W; ++i) r.v[i] = op(i);
    return r;
}
inline float widen(uint16_t bits) {
    const uint32_t b = static_cast<uint32_t>(bits) << 16;
    float f;
    std::memcpy(&f, &b, 4);
    return f;
}
inline F set1(float x) {
    return lanes([&](int) { return x; });
}
inline F zero() { return set1(0.0f); }
inline F load(const float* p) {
    return lanes([&](int i) { return p[i]; });
}
inline F load(const bf16* p) {
    return lanes([&](int i) { return widen(p[i].bits); });
}
inline void store(float* p, F x) { std::memcpy(p, x.v, sizeof x.v); }
inline F add(F a, F b) {
    return lanes([&](int i) { return a.v[i] + b.v[i]; });
}
inline F sub(F a, F b) {
    return lanes([&](int i) { return a.v[i] - b.v[i]; });
}
inline F mul(F a, F b) {
    return lanes([&](int i) { return a.v[i] * b.v[i]; });
}
inline F div(F a, F b) {
    return lanes([&](int i) { return a.v[i] / b.v[i]; });
}
inline F fma(F a, F b, F c) {
    return lanes([&](int i) { return a.v[i] * b.v[i] + c.v[i]; });
}
inline F max(F a, F b) {
    return lanes([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
inline F min(F a, F b) {
    return lanes([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
inline F abs(F a) {
    return lanes([&](int i) { return std::fabs(a.v[i]); });
}
inline F round(F a) {
    return lanes([&](int i) { return std::nearbyintf(a.v[i]); });
}
inline F scale2(F x, F n) {
    return lanes([&](int i) { return std::ldexp(x.v[i], static_cast<int>(n.v[i])); });
}
inline float hsum(F x) {
    float s = 0;
    for (float v : x.v) s += v;
    return s;
}
inline float hmax(F x) {
    float m = x.v[0];
    for (float v : x.v) m = v > m ? v : m;
    return m;
}
inline F load_columns(const uint8_t* p, int odd) {
    uint16_t raw[2 * W];
    std::memcpy(raw, p, sizeof raw);
    return lanes([&](int i) { return widen(raw[2 * i + odd]); });
}
inline F load_even(const uint8_t* p) { return load_columns(p, 0); }
inline F load_odd(const uint8_t* p) { return load_columns(p, 1); }

struct I {
    int32_t v[W];
};
struct X4 {
    int8_t q[4];
};
struct W4 {
    int8_t v[4 * W];
};
constexpr int kX4 = 4;
inline int32_t store_x4(const int8_t* q, int n, int32_t, int8_t* out) {
    std::memcpy(out, q, n);
    return 0;
}
inline I int_start(int32_t) { return {}; }
inline X4 broadcast4(const int8_t* q) { return {{q[0], q[1], q[2], q[3]}}; }
inline W4 load_w4(const uint8_t* p) {
    W4 w;
    std::memcpy(w.v, p, sizeof w.v);
    return w;
}
inline I dot4(I acc, W4 w, X4 x) {
    for (int i = 0; i < W; ++i)
        for (int j = 0; j < 4; ++j) acc.v[i] += int32_t(w.v[4 * i + j]) * int32_t(x.q[j]);
    return acc;
}
inline F to_float(I x) {
    return lanes([&](int i) { return static_cast<float>(x.v[i]); });
}

using N = I;
using NX = X4;
inline N nibble_start() { return {}; }
inline NX nibble_x(const int8_t* q) { return broadcast4(q); }
inline void load_nibbles(const uint8_t* p, W4& low, W4& high) {
    for (int i = 0; i < 4 * W; ++i) {
        low.v[i] = static_cast<int8_t>(p[i] & 15);
        high.v[i] = static_cast<int8_t>(p[i] >> 4);
    }
}
inline N nibble_dot(N acc, W4 w, NX x) { return dot4(acc, w, x); }
inline F nibble_end(N acc, int32_t sum) {
    return lanes([&](int i) { return static_cast<float>(acc.v[i] - 8 * sum); });
}
}  // namespace simd
}  // namespace
