// The inner loops, written once over the lanes of a simd_*.hpp file that is included before this one.
// Everything is in an anonymous namespace: each instruction set has its own copy, and none leaks into another.
#include <cmath>
#include <cstring>

#include "kernels.hpp"

#if defined(__clang__)
#define SMALL_DOGE_UNROLL _Pragma("unroll")
#elif defined(__GNUC__)
#define SMALL_DOGE_UNROLL _Pragma("GCC unroll 16")
#else
#define SMALL_DOGE_UNROLL
#endif

namespace {
using namespace small_doge;
using namespace simd;

constexpr int NV = kPanel / W;  // vectors across a panel

constexpr int at_least_one(int n) { return n < 1 ? 1 : n; }

// exp for x <= 88; below -87 the result is about 1e-38. Degree 7 on |r| <= ln(2) / 2: under 2 ulp.
inline F exp_lanes(F x) {
    x = min(max(x, set1(-87.0f)), set1(88.0f));
    const F n = round(mul(x, set1(1.44269504f)));
    F r = fma(n, set1(-0.693359375f), x);
    r = fma(n, set1(2.12194440e-4f), r);
    F p = set1(1.0f / 5040.0f);
    p = fma(p, r, set1(1.0f / 720.0f));
    p = fma(p, r, set1(1.0f / 120.0f));
    p = fma(p, r, set1(1.0f / 24.0f));
    p = fma(p, r, set1(1.0f / 6.0f));
    p = fma(p, r, set1(0.5f));
    p = fma(p, r, set1(1.0f));
    p = fma(p, r, set1(1.0f));
    return scale2(p, n);
}

// ---------------------------------------------------------------- matrix products: one panel, T tokens

// A product is a chain of dependent sums: with few tokens, U neighbouring columns keep chains of their own.
template <int T>
constexpr int columns_at_once() {
    return at_least_one(8 / (NV * T) > 4 ? 4 : 8 / (NV * T));
}

template <int T>
void panel_f32(const uint8_t* data, const Activations& x, int cols, float* out, int ldo) {
    constexpr int U = columns_at_once<T>();
    const float* w = reinterpret_cast<const float*>(data);
    F acc[U][T][NV];
    for (auto& a : acc)
        for (auto& b : a)
            for (F& c : b) c = zero();
    for (int k = 0; k < cols; k += U) {
        SMALL_DOGE_UNROLL for (int u = 0; u < U; ++u) {
            F wv[NV];
            SMALL_DOGE_UNROLL for (int v = 0; v < NV; ++v) wv[v] = load(w + (k + u) * kPanel + v * W);
            SMALL_DOGE_UNROLL for (int t = 0; t < T; ++t) {
                const F xv = set1(x.values[size_t(t) * x.ld + k + u]);
                SMALL_DOGE_UNROLL for (int v = 0; v < NV; ++v) acc[u][t][v] = fma(wv[v], xv, acc[u][t][v]);
            }
        }
    }
    SMALL_DOGE_UNROLL for (int t = 0; t < T; ++t) {
        SMALL_DOGE_UNROLL for (int v = 0; v < NV; ++v) {
            F s = acc[0][t][v];
            SMALL_DOGE_UNROLL for (int u = 1; u < U; ++u) s = add(s, acc[u][t][v]);
            store(out + size_t(t) * ldo + v * W, s);
        }
    }
}

template <int T>
void panel_bf16(const uint8_t* w, const Activations& x, int cols, float* out, int ldo) {
    constexpr int U = columns_at_once<2 * T>(), S = T > 2 ? 1 : 2;  // with many tokens registers are short, not chains
    F acc[U][S][T][NV];
    for (auto& a : acc)
        for (auto& b : a)
            for (auto& c : b)
                for (F& d : c) d = zero();
    for (int k = 0; k < cols; k += 2 * U) {
        SMALL_DOGE_UNROLL for (int u = 0; u < U; ++u) {
            if constexpr (T == 1) prefetch(w + size_t(cols + k + 2 * u) * kPanel * 2);
            SMALL_DOGE_UNROLL for (int odd = 0; odd < 2; ++odd) {
                F wv[NV];
                SMALL_DOGE_UNROLL for (int v = 0; v < NV; ++v) {
                    const uint8_t* at = w + size_t(k + 2 * u) * kPanel * 2 + v * W * 4;
                    wv[v] = odd ? load_odd(at) : load_even(at);
                }
                SMALL_DOGE_UNROLL for (int t = 0; t < T; ++t) {
                    const F xv = set1(x.values[size_t(t) * x.ld + k + 2 * u + odd]);
                    SMALL_DOGE_UNROLL for (int v = 0; v < NV; ++v)
                        acc[u][odd % S][t][v] = fma(wv[v], xv, acc[u][odd % S][t][v]);
                }
            }
        }
    }
    SMALL_DOGE_UNROLL for (int t = 0; t < T; ++t) {
        SMALL_DOGE_UNROLL for (int v = 0; v < NV; ++v) {
            F sum = zero();
            SMALL_DOGE_UNROLL for (int u = 0; u < U; ++u)
                SMALL_DOGE_UNROLL for (int s = 0; s < S; ++s) sum = add(sum, acc[u][s][t][v]);
            store(out + size_t(t) * ldo + v * W, sum);
        }
    }
}

template <int P, int T>
void panel_int8(const Matrix& m, int panel, const Activations& x, float* out, int ldo) {
    constexpr int U = T > 2 ? 2 : 8;  // steps unrolled: a group is 32 of them
    const uint8_t* w = m.data + m.panel_bytes * panel;
    const bf16* scales = m.scales + size_t(panel) * m.groups * kPanel;
    F total[P][T][NV];
    for (auto& a : total)
        for (auto& b : a)
            for (F& c : b) c = zero();
    for (int g = 0; g < m.groups; ++g) {
        I acc[P][T][NV];
        SMALL_DOGE_UNROLL for (int t = 0; t < T; ++t) {
            const I start = int_start(x.sum[t * x.ld_groups + g]);
            SMALL_DOGE_UNROLL for (int p = 0; p < P; ++p)
                SMALL_DOGE_UNROLL for (int v = 0; v < NV; ++v) acc[p][t][v] = start;
        }
        for (int k8 = g * kGroup8; k8 < (g + 1) * kGroup8; k8 += 4 * U) {
            SMALL_DOGE_UNROLL for (int k = k8; k < k8 + 4 * U; k += 4) {
                W4 wv[P][NV];
                SMALL_DOGE_UNROLL for (int p = 0; p < P; ++p)
                    SMALL_DOGE_UNROLL for (int v = 0; v < NV; ++v)
                        wv[p][v] = load_w4(w + p * m.panel_bytes + size_t(k) * kPanel + v * W * 4);
                if constexpr (T == 1) {
                    SMALL_DOGE_UNROLL for (int p = 0; p < P; ++p)
                        prefetch(w + (P + p) * m.panel_bytes + size_t(k) * kPanel);
                }
                SMALL_DOGE_UNROLL for (int t = 0; t < T; ++t) {
                    const X4 xq = broadcast4(x.q + size_t(t) * x.ld + k, x.magnitude + size_t(t) * x.ld + k);
                    SMALL_DOGE_UNROLL for (int p = 0; p < P; ++p)
                        SMALL_DOGE_UNROLL for (int v = 0; v < NV; ++v) acc[p][t][v] = dot4(acc[p][t][v], wv[p][v], xq);
                }
            }
        }
        SMALL_DOGE_UNROLL for (int p = 0; p < P; ++p) {
            SMALL_DOGE_UNROLL for (int v = 0; v < NV; ++v) {
                const F ws = load(scales + (size_t(p) * m.groups + g) * kPanel + v * W);
                SMALL_DOGE_UNROLL for (int t = 0; t < T; ++t)
                    total[p][t][v] =
                        fma(to_float(acc[p][t][v]), mul(ws, set1(x.scale[t * x.ld_groups + g])), total[p][t][v]);
            }
        }
    }
    SMALL_DOGE_UNROLL for (int p = 0; p < P; ++p)
        SMALL_DOGE_UNROLL for (int t = 0; t < T; ++t)
            SMALL_DOGE_UNROLL for (int v = 0; v < NV; ++v)
                store(out + size_t(t) * ldo + p * kPanel + v * W, total[p][t][v]);
}

template <int P, int T>
void panel_int4(const Matrix& m, int panel, const Activations& x, float* out, int ldo) {
    const uint8_t* w = m.data + m.panel_bytes * panel;
    const bf16* scales = m.scales + size_t(panel) * m.groups * kPanel;
    F total[P][T][NV];
    for (auto& a : total)
        for (auto& b : a)
            for (F& c : b) c = zero();
    for (int g = 0; g < m.groups; ++g) {
        N acc[P][T][NV];
        for (auto& a : acc)
            for (auto& b : a)
                for (N& c : b) c = nibble_start();
        for (int j = 0; j < 4; ++j) {
            const int k = g * kGroup4 + 4 * j;
            W4 low[P][NV], high[P][NV];
            SMALL_DOGE_UNROLL for (int p = 0; p < P; ++p)
                SMALL_DOGE_UNROLL for (int v = 0; v < NV; ++v)
                    load_nibbles(w + p * m.panel_bytes + size_t(g) * kGroup4 * kPanel / 2 + j * 64 + v * W * 4,
                                 low[p][v], high[p][v]);
            if constexpr (T == 1) {
                SMALL_DOGE_UNROLL for (int p = 0; p < P; ++p)
                    prefetch(w + (P + p) * m.panel_bytes + size_t(g) * kGroup4 * kPanel / 2 + j * 64);
            }
            SMALL_DOGE_UNROLL for (int t = 0; t < T; ++t) {
                const size_t at = size_t(t) * x.ld + k;
                const X4 low_x = broadcast4(x.q + at, x.magnitude + at);
                const X4 high_x = broadcast4(x.q + at + 16, x.magnitude + at + 16);
                SMALL_DOGE_UNROLL for (int p = 0; p < P; ++p)
                    SMALL_DOGE_UNROLL for (int v = 0; v < NV; ++v)
                        acc[p][t][v] = nibble_dot(nibble_dot(acc[p][t][v], low[p][v], low_x), high[p][v], high_x);
            }
        }
        SMALL_DOGE_UNROLL for (int p = 0; p < P; ++p) {
            SMALL_DOGE_UNROLL for (int v = 0; v < NV; ++v) {
                const F ws = load(scales + (size_t(p) * m.groups + g) * kPanel + v * W);
                SMALL_DOGE_UNROLL for (int t = 0; t < T; ++t) {
                    const F part = nibble_end(acc[p][t][v], x.sum[t * x.ld_groups + g]);
                    total[p][t][v] = fma(part, mul(ws, set1(x.scale[t * x.ld_groups + g])), total[p][t][v]);
                }
            }
        }
    }
    SMALL_DOGE_UNROLL for (int p = 0; p < P; ++p)
        SMALL_DOGE_UNROLL for (int t = 0; t < T; ++t)
            SMALL_DOGE_UNROLL for (int v = 0; v < NV; ++v)
                store(out + size_t(t) * ldo + p * kPanel + v * W, total[p][t][v]);
}

// Calls the instance for the run-time token count `tokens` <= Max.
template <template <int> class Tile, int Max, class... Args>
void with_tokens(int tokens, Args... args) {
    if constexpr (Max > 1) {
        if (tokens < Max) return with_tokens<Tile, Max - 1>(tokens, args...);
    }
    Tile<Max>::run(args...);
}

template <int T>
struct TileF32 {
    static void run(const Matrix* m, int panel, const Activations* x, float* out, int ldo) {
        panel_f32<T>(m->data + m->panel_bytes * panel, *x, m->cols_p, out, ldo);
    }
};
template <int T>
struct TileBf16 {
    static void run(const Matrix* m, int panel, const Activations* x, float* out, int ldo) {
        panel_bf16<T>(m->data + m->panel_bytes * panel, *x, m->cols_p, out, ldo);
    }
};
template <int T>
struct TileInt8 {
    static void run(const Matrix* m, int panel, const Activations* x, float* out, int ldo) {
        panel_int8<1, T>(*m, panel, *x, out, ldo);
    }
};
template <int T>
struct TileInt4 {
    static void run(const Matrix* m, int panel, const Activations* x, float* out, int ldo) {
        panel_int4<1, T>(*m, panel, *x, out, ldo);
    }
};

Activations skip(const Activations& x, int tokens) {
    Activations r = x;
    if (x.values) r.values += size_t(tokens) * x.ld;
    if (x.q) {
        r.q += size_t(tokens) * x.ld;
        r.magnitude += size_t(tokens) * x.ld;
        r.scale += size_t(tokens) * x.ld_groups;
        r.sum += size_t(tokens) * x.ld_groups;
    }
    return r;
}

void matmul(const Matrix& m, const Activations& x, int tokens, float* out, int ldo, int first, int last) {
    int panel = first;
    if (tokens == 1 && is_integer(m.type)) {  // two panels share each broadcast of x
        for (; panel + 2 <= last; panel += 2) {
            if (m.type == Type::int8)
                panel_int8<2, 1>(m, panel, x, out + size_t(panel) * kPanel, ldo);
            else
                panel_int4<2, 1>(m, panel, x, out + size_t(panel) * kPanel, ldo);
        }
    }
    const int most = is_integer(m.type) ? kTokensInt : m.type == Type::bf16 ? kTokensBf16 : kTokens;
    for (; panel < last; ++panel) {
        for (int t = 0; t < tokens;) {
            const int left = tokens - t;
            // 7 = 4 + 3 rather than 6 + 1: the smallest tiles use the machine worst.
            const int n = left <= most ? left : left < 2 * most ? (left + 1) / 2 : most;
            const Activations xt = skip(x, t);
            float* o = out + size_t(t) * ldo + size_t(panel) * kPanel;
            switch (m.type) {
                case Type::f32: with_tokens<TileF32, kTokens>(n, &m, panel, &xt, o, ldo); break;
                case Type::bf16: with_tokens<TileBf16, kTokensBf16>(n, &m, panel, &xt, o, ldo); break;
                case Type::int8: with_tokens<TileInt8, kTokensInt>(n, &m, panel, &xt, o, ldo); break;
                case Type::int4: with_tokens<TileInt4, kTokensInt>(n, &m, panel, &xt, o, ldo); break;
            }
            t += n;
        }
    }
}

void quantize(const float* x, int n, int group, int8_t* q, uint8_t* magnitude, float* scale, int32_t* sum) {
    for (int g = 0; g * group < n; ++g) {
        const float* xg = x + g * group;
        F m = zero();
        for (int i = 0; i < group; i += W) m = max(m, abs(load(xg + i)));
        const float largest = hmax(m);
        const float inverse = largest > 0 ? 127.0f / largest : 0.0f;
        float rounded[kGroup8];
        for (int i = 0; i < group; i += W) store(rounded + i, round(mul(load(xg + i), set1(inverse))));
        int32_t total = 0;
        for (int i = 0; i < group; ++i) {
            const int v = static_cast<int>(rounded[i]);
            q[g * group + i] = static_cast<int8_t>(v);
            magnitude[g * group + i] = static_cast<uint8_t>(v < 0 ? -v : v);
            total += v;
        }
        scale[g] = largest / 127.0f;
        sum[g] = total;
    }
}

// ---------------------------------------------------------------- attention

template <class T, int R, int S>
inline void dots_tile(const float* q, int dim, const T* keys, float* out, int ldo) {
    F acc[R][S];
    for (auto& a : acc)
        for (F& b : a) b = zero();
    for (int d = 0; d < dim; d += W) {
        F k[S];
        SMALL_DOGE_UNROLL for (int s = 0; s < S; ++s) k[s] = load(keys + size_t(s) * dim + d);
        SMALL_DOGE_UNROLL for (int r = 0; r < R; ++r) {
            const F x = load(q + r * dim + d);
            SMALL_DOGE_UNROLL for (int s = 0; s < S; ++s) acc[r][s] = fma(x, k[s], acc[r][s]);
        }
    }
    SMALL_DOGE_UNROLL for (int r = 0; r < R; ++r) {
        if constexpr (S % 4 == 0) {
            SMALL_DOGE_UNROLL for (int s = 0; s < S; s += 4)
                hsum4(acc[r][s], acc[r][s + 1], acc[r][s + 2], acc[r][s + 3], out + size_t(r) * ldo + s);
        } else {
            SMALL_DOGE_UNROLL for (int s = 0; s < S; ++s) out[size_t(r) * ldo + s] = hsum(acc[r][s]);
        }
    }
}

template <class T, int R, int S>
void dots_rows(const float* q, int dim, const T* keys, int n, float* out, int ldo) {
    int j = 0;
    for (; j + S <= n; j += S) dots_tile<T, R, S>(q, dim, keys + size_t(j) * dim, out + j, ldo);
    for (; j < n; ++j) dots_tile<T, R, 1>(q, dim, keys + size_t(j) * dim, out + j, ldo);
}

template <class T>
void dots(const float* q, int rows, int dim, const T* keys, int n, float* out, int ldo) {
    int r = 0;
    for (; r + 2 <= rows; r += 2) dots_rows<T, 2, 4>(q + r * dim, dim, keys, n, out + size_t(r) * ldo, ldo);
    if (r < rows) dots_rows<T, 1, 8>(q + r * dim, dim, keys, n, out + size_t(r) * ldo, ldo);
}

template <class T, int R, int C>
inline void mix_tile(const float* p, int ldp, const T* values, int n, int dim, float* out) {
    F acc[R][C];
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c) acc[r][c] = load(out + r * dim + c * W);
    for (int j = 0; j < n; ++j) {
        F v[C];
        SMALL_DOGE_UNROLL for (int c = 0; c < C; ++c) v[c] = load(values + size_t(j) * dim + c * W);
        SMALL_DOGE_UNROLL for (int r = 0; r < R; ++r) {
            const F w = set1(p[size_t(r) * ldp + j]);
            SMALL_DOGE_UNROLL for (int c = 0; c < C; ++c) acc[r][c] = fma(w, v[c], acc[r][c]);
        }
    }
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c) store(out + r * dim + c * W, acc[r][c]);
}

template <class T, int R, int C>
void mix_rows(const float* p, int ldp, const T* values, int n, int dim, float* out) {
    constexpr int kSlots = 64;  // values that stay in the first-level cache between two column tiles
    for (int j = 0; j < n; j += kSlots) {
        const int count = n - j < kSlots ? n - j : kSlots;
        const T* v = values + size_t(j) * dim;
        int d = 0;
        for (; d + C * W <= dim; d += C * W) mix_tile<T, R, C>(p + j, ldp, v + d, count, dim, out + d);
        for (; d < dim; d += W) mix_tile<T, R, 1>(p + j, ldp, v + d, count, dim, out + d);
    }
}

template <class T>
void mix(const float* p, int ldp, int rows, const T* values, int n, int dim, float* out) {
    std::memset(out, 0, sizeof(float) * size_t(rows) * dim);
    int r = 0;
    for (; r + 4 <= rows; r += 4) mix_rows<T, 4, 2>(p + size_t(r) * ldp, ldp, values, n, dim, out + r * dim);
    for (; r + 2 <= rows; r += 2) mix_rows<T, 2, 4>(p + size_t(r) * ldp, ldp, values, n, dim, out + r * dim);
    if (r < rows) mix_rows<T, 1, 8>(p + size_t(r) * ldp, ldp, values, n, dim, out + r * dim);
}

// ---------------------------------------------------------------- vectors

inline float scalar(float x) { return x; }
inline float scalar(bf16 x) {
    const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
}

template <class T>
float dot(const T* a, const float* x, int n) {
    F s0 = zero(), s1 = zero();
    int i = 0;
    for (; i + 2 * W <= n; i += 2 * W) {
        s0 = fma(load(a + i), load(x + i), s0);
        s1 = fma(load(a + i + W), load(x + i + W), s1);
    }
    float s = hsum(add(s0, s1));
    for (; i < n; ++i) s += scalar(a[i]) * x[i];
    return s;
}

template <class T>
void axpy(const T* a, float weight, int n, float* out) {
    int i = 0;
    for (; i + W <= n; i += W) store(out + i, fma(load(a + i), set1(weight), load(out + i)));
    for (; i < n; ++i) out[i] += scalar(a[i]) * weight;
}

void rms_norm(const float* x, const float* weight, int n, float eps, float* out) {
    const float factor = 1.0f / std::sqrt(dot(x, x, n) / static_cast<float>(n) + eps);
    int i = 0;
    for (; i + W <= n; i += W) store(out + i, mul(load(weight + i), mul(load(x + i), set1(factor))));
    for (; i < n; ++i) out[i] = weight[i] * (x[i] * factor);
}

void silu_mul(const float* gate, const float* up, int n, float* out) {  // n a multiple of 16
    for (int i = 0; i < n; i += W) {
        const F g = load(gate + i);
        store(out + i, mul(div(g, add(set1(1.0f), exp_lanes(sub(zero(), g)))), load(up + i)));
    }
}

void residual(const float* weight, const float* update, int n, float* x) {
    int i = 0;
    for (; i + W <= n; i += W) store(x + i, fma(load(weight + i), load(x + i), load(update + i)));
    for (; i < n; ++i) x[i] = weight[i] * x[i] + update[i];
}

void rope(float* x, const float* cos, const float* sin, int half) {
    for (int i = 0; i < half; ++i) {
        const float a = x[i], b = x[i + half];
        x[i] = a * cos[i] - b * sin[i];
        x[i + half] = b * cos[i] + a * sin[i];
    }
}

void to_bf16(const float* x, int n, bf16* out) {
    for (int i = 0; i < n; ++i) {
        uint32_t bits;
        std::memcpy(&bits, x + i, 4);
        out[i].bits = static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
    }
}

float max_of(const float* x, int n) {
    int i = 0;
    float best = x[0];
    if (n >= 2 * W) {
        F a = load(x), b = load(x + W);
        for (i = 2 * W; i + 2 * W <= n; i += 2 * W) {
            a = max(a, load(x + i));
            b = max(b, load(x + i + W));
        }
        best = hmax(max(a, b));
    }
    for (; i < n; ++i) best = x[i] > best ? x[i] : best;
    return best;
}

float exp_weights(const float* x, int n, float max_x, float inverse_temperature, float* out) {
    const F m = set1(max_x), inv = set1(inverse_temperature);
    F s = zero();
    int i = 0;
    for (; i + W <= n; i += W) {
        const F e = exp_lanes(mul(sub(load(x + i), m), inv));
        store(out + i, e);
        s = add(s, e);
    }
    float total = hsum(s);
    for (; i < n; ++i) total += out[i] = std::exp((x[i] - max_x) * inverse_temperature);
    return total;
}

void softmax(float* x, int n) {
    const float inverse = 1.0f / exp_weights(x, n, max_of(x, n), 1.0f, x);
    for (int i = 0; i < n; ++i) x[i] *= inverse;
}

LogitStats stats(const float* x, int n) {
    constexpr int kBlock = 512;
    int best_block = 0;
    float best = -INFINITY;
    for (int i = 0; i < n; i += kBlock) {
        const float m = max_of(x + i, n - i < kBlock ? n - i : kBlock);
        if (m > best) {
            best = m;
            best_block = i;
        }
    }
    int at = best_block;
    while (at + 1 < n && x[at] != best) ++at;
    F s = zero();
    int i = 0;
    for (; i + W <= n; i += W) s = add(s, exp_lanes(sub(load(x + i), set1(best))));
    float total = hsum(s);
    for (; i < n; ++i) total += std::exp(x[i] - best);
    return {best, at, total};
}

int lowest(const uint32_t* key, const int32_t* position, int n) {
    uint32_t least = UINT32_MAX;
    for (int i = 0; i < n; ++i) least = key[i] < least ? key[i] : least;
    int32_t oldest = INT32_MAX;
    for (int i = 0; i < n; ++i) {
        const int32_t p = key[i] == least ? position[i] : INT32_MAX;
        oldest = p < oldest ? p : oldest;
    }
    int at = 0;
    while (position[at] != oldest || key[at] != least) ++at;
    return at;
}

uint64_t read(const uint8_t* data, size_t n) {
    const uint64_t* p = reinterpret_cast<const uint64_t*>(data);
    uint64_t sum[32] = {};
    const size_t words = n / 8;
    for (size_t i = 0; i + 32 <= words; i += 32) {
        for (int j = 0; j < 4; ++j) prefetch(data + i * 8 + 8192 + j * 64);
        for (int j = 0; j < 32; ++j) sum[j] += p[i + j];
    }
    uint64_t total = 0;
    for (uint64_t s : sum) total += s;
    return total;
}

const Kernels table = {kName,          W,           matmul,        quantize,      dots<float>, dots<bf16>,  mix<float>,
                       mix<bf16>,      dot<float>,  dot<bf16>,     axpy<float>,   axpy<bf16>,  rms_norm,    silu_mul,
                       residual,       rope,        to_bf16,       softmax,       stats,       exp_weights, lowest,
                       read};

}  // namespace
