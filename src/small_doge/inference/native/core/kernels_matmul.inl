// Matrix products: a panel of 16 rows times T tokens.

namespace {

// Panels taken together, so that T tokens have the eight chains of dependent sums that keep two FMA units busy. Each
// sum runs over the columns in order: a token's result does not depend on how many others are computed with it.
template <Type type, int T>
constexpr int panels_at_once() {
    constexpr int panels = at_least_one(8 / (NV * T));
    return is_integer(type) && panels > 2 ? 2 : panels;
}

template <int P, int T>
inline void clear(F (&tile)[P][T][NV]) {
    for (auto& rows : tile)
        for (auto& token : rows)
            for (F& x : token) x = zero();
}

template <int P, int T>
inline void store_tile(const F (&tile)[P][T][NV], float* out, int ldo) {
    SMALL_DOGE_UNROLL
    for (int p = 0; p < P; ++p) SMALL_DOGE_UNROLL
    for (int t = 0; t < T; ++t) SMALL_DOGE_UNROLL
    for (int v = 0; v < NV; ++v) store(out + size_t(t) * ldo + p * kPanel + v * W, tile[p][t][v]);
}

template <int P, int T>
void panel_f32(const Matrix& m, int panel, const Activations& x, ptrdiff_t ahead, float* out, int ldo) {
    const size_t next = m.panel_bytes / sizeof(float);
    const float* w = reinterpret_cast<const float*>(m.data) + panel * next;
    F acc[P][T][NV];
    clear(acc);
    for (int k = 0; k < m.cols_p; ++k, w += kPanel) {
        SMALL_DOGE_UNROLL
        for (int p = 0; p < P; ++p) {
            prefetch(reinterpret_cast<const uint8_t*>(w + p * next) + ahead);
            F wv[NV];
            SMALL_DOGE_UNROLL
            for (int v = 0; v < NV; ++v) wv[v] = load(w + p * next + v * W);
            SMALL_DOGE_UNROLL
            for (int t = 0; t < T; ++t) {
                const F xv = set1(x.values[size_t(t) * x.ld + k]);
                SMALL_DOGE_UNROLL
                for (int v = 0; v < NV; ++v) acc[p][t][v] = fma(wv[v], xv, acc[p][t][v]);
            }
        }
    }
    store_tile(acc, out, ldo);
}

template <int P, int T>
void panel_bf16(const Matrix& m, int panel, const Activations& x, ptrdiff_t ahead, float* out, int ldo) {
    const uint8_t* w = m.data + m.panel_bytes * panel;
    F acc[P][T][NV];
    clear(acc);
    for (int k = 0; k < m.cols_p; k += 2, w += kPanel * 4) {
        SMALL_DOGE_UNROLL
        for (int p = 0; p < P; ++p) prefetch(w + p * m.panel_bytes + ahead);
        SMALL_DOGE_UNROLL
        for (int odd = 0; odd < 2; ++odd) {
            F xv[T];
            SMALL_DOGE_UNROLL
            for (int t = 0; t < T; ++t) xv[t] = set1(x.values[size_t(t) * x.ld + k + odd]);
            SMALL_DOGE_UNROLL
            for (int p = 0; p < P; ++p) {
                SMALL_DOGE_UNROLL
                for (int v = 0; v < NV; ++v) {
                    const uint8_t* at = w + p * m.panel_bytes + v * W * 4;
                    const F wv = odd ? load_odd(at) : load_even(at);
                    SMALL_DOGE_UNROLL
                    for (int t = 0; t < T; ++t) acc[p][t][v] = fma(wv, xv[t], acc[p][t][v]);
                }
            }
        }
    }
    store_tile(acc, out, ldo);
}

// Group g's integer sums, scaled, into `out`: the sum over groups waits there, for registers are short.
template <int P, int T, class Sum>
inline void add_group(const Matrix& m, int panel, int g, const Activations& x, Sum sum, float* out, int ldo) {
    // All read before the first store, which might be to any of them for all a compiler knows.
    F w_scale[P][NV], x_scale[T];
    SMALL_DOGE_UNROLL
    for (int p = 0; p < P; ++p) SMALL_DOGE_UNROLL
    for (int v = 0; v < NV; ++v) w_scale[p][v] = load(m.scales + ((size_t(panel + p) * m.groups + g) * kPanel + v * W));
    SMALL_DOGE_UNROLL
    for (int t = 0; t < T; ++t) x_scale[t] = set1(x.scale[size_t(t) * x.ld_groups + g]);
    SMALL_DOGE_UNROLL
    for (int t = 0; t < T; ++t) SMALL_DOGE_UNROLL
    for (int p = 0; p < P; ++p) SMALL_DOGE_UNROLL
    for (int v = 0; v < NV; ++v) {
        float* o = out + size_t(t) * ldo + p * kPanel + v * W;
        store(o, fma(sum(p, t, v), mul(w_scale[p][v], x_scale[t]), g ? load(o) : zero()));
    }
}

template <int P, int T>
void panel_int8(const Matrix& m, int panel, const Activations& x, ptrdiff_t ahead, float* out, int ldo) {
    constexpr int U = 2;  // steps unrolled
    const uint8_t* w = m.data + m.panel_bytes * panel;
    for (int g = 0; g < m.groups; ++g) {
        I acc[P][T][NV];
        SMALL_DOGE_UNROLL
        for (int t = 0; t < T; ++t) {
            const I start = int_start(x.sum[t * x.ld_groups + g]);
            SMALL_DOGE_UNROLL
            for (int p = 0; p < P; ++p) SMALL_DOGE_UNROLL
            for (int v = 0; v < NV; ++v) acc[p][t][v] = start;
        }
        const int8_t* q = x.q + size_t(g) * (kGroup8 / 4 * kX4);
        for (int step = 0; step < kGroup8 / 4; step += U) {
            SMALL_DOGE_UNROLL
            for (int u = 0; u < U; ++u) {
                W4 wv[P][NV];
                SMALL_DOGE_UNROLL
                for (int p = 0; p < P; ++p) SMALL_DOGE_UNROLL
                for (int v = 0; v < NV; ++v) wv[p][v] = load_w4(w + p * m.panel_bytes + (u * NV + v) * (W * 4));
                SMALL_DOGE_UNROLL
                for (int p = 0; p < P && T == 1; ++p) prefetch(w + ahead + p * m.panel_bytes + u * kPanel * 4);
                SMALL_DOGE_UNROLL
                for (int t = 0; t < T; ++t) {
                    const X4 xq = broadcast4(q + size_t(t) * x.ld * kBytesX + u * kX4);
                    SMALL_DOGE_UNROLL
                    for (int p = 0; p < P; ++p) SMALL_DOGE_UNROLL
                    for (int v = 0; v < NV; ++v) acc[p][t][v] = dot4(acc[p][t][v], wv[p][v], xq);
                }
            }
            w += U * kPanel * 4;
            q += U * kX4;
        }
        add_group<P, T>(m, panel, g, x, [&](int p, int t, int v) { return to_float(acc[p][t][v]); }, out, ldo);
    }
}

template <int P, int T>
void panel_int4(const Matrix& m, int panel, const Activations& x, ptrdiff_t ahead, float* out, int ldo) {
    const uint8_t* w = m.data + m.panel_bytes * panel;
    for (int g = 0; g < m.groups; ++g) {
        N acc[P][T][NV];
        for (auto& a : acc)
            for (auto& b : a)
                for (N& c : b) c = nibble_start();
        const int8_t* q = x.q + size_t(g) * kGroup4;
        SMALL_DOGE_ROLLED
        for (int j = 0; j < 4; ++j, w += kPanel * 4, q += 4) {
            W4 low[P][NV], high[P][NV];
            SMALL_DOGE_UNROLL
            for (int p = 0; p < P; ++p) SMALL_DOGE_UNROLL
            for (int v = 0; v < NV; ++v) load_nibbles(w + p * m.panel_bytes + v * W * 4, low[p][v], high[p][v]);
            SMALL_DOGE_UNROLL
            for (int p = 0; p < P && T == 1; ++p) prefetch(w + ahead + p * m.panel_bytes);
            SMALL_DOGE_UNROLL
            for (int t = 0; t < T; ++t) {
                const int8_t* xq = q + size_t(t) * x.ld * kBytesX;
                const NX low_x = nibble_x(xq);
                const NX high_x = nibble_x(xq + kGroup4 / 2);
                SMALL_DOGE_UNROLL
                for (int p = 0; p < P; ++p) SMALL_DOGE_UNROLL
                for (int v = 0; v < NV; ++v)
                    acc[p][t][v] = nibble_dot(nibble_dot(acc[p][t][v], low[p][v], low_x), high[p][v], high_x);
            }
        }
        int32_t sum[T];
        for (int t = 0; t < T; ++t) sum[t] = x.sum[size_t(t) * x.ld_groups + g];
        add_group<P, T>(
            m, panel, g, x, [&](int p, int t, int v) { return nibble_end(acc[p][t][v], sum[t]); }, out, ldo);
    }
}

template <Type type, int P, int T>
void panels(const Matrix& m, int panel, const Activations& x, const uint8_t* then, float* out, int ldo) {
    const ptrdiff_t ahead = then ? then - (m.data + m.panel_bytes * panel) : 0;
    float* o = out + size_t(panel) * kPanel;
    if constexpr (type == Type::f32) panel_f32<P, T>(m, panel, x, ahead, o, ldo);
    if constexpr (type == Type::bf16) panel_bf16<P, T>(m, panel, x, ahead, o, ldo);
    if constexpr (type == Type::int8) panel_int8<P, T>(m, panel, x, ahead, o, ldo);
    if constexpr (type == Type::int4) panel_int4<P, T>(m, panel, x, ahead, o, ldo);
}

// The panels [first, last) for `tokens` <= T of them. first_read: they come from beyond the first-level cache, so that
// each asks for the one behind it and the last for `then`, which this thread reads next.
template <Type type, int T>
void tile(const Matrix& m, const Activations& x, int tokens, bool first_read, float* out, int ldo, int first, int last,
          const uint8_t* then) {
    if constexpr (T > 1) {
        if (tokens < T) return tile<type, T - 1>(m, x, tokens, first_read, out, ldo, first, last, then);
    }
    constexpr int P = panels_at_once<type, T>();
    const auto behind = [&](int panel) {
        return !first_read ? nullptr : panel < last ? m.data + m.panel_bytes * panel : then;
    };
    for (; first + P <= last; first += P) panels<type, P, T>(m, first, x, behind(first + P), out, ldo);
    if constexpr (P > 2)
        for (; first + 2 <= last; first += 2) panels<type, 2, T>(m, first, x, behind(first + 2), out, ldo);
    for (; first < last; ++first) panels<type, 1, T>(m, first, x, behind(first + 1), out, ldo);
}

template <Type type, int Most>
void product(const Matrix& m, const Activations& x, int tokens, float* out, int ldo, int first, int last,
             const uint8_t* then) {
    const bool few = tokens <= 2 * Most;
    if (tokens <= Most) return tile<type, Most>(m, x, tokens, true, out, ldo, first, last, then);
    for (int panel = first; panel < last;) {
        const int end = panel + panels_at_once<type, Most>() < last ? panel + panels_at_once<type, Most>() : last;
        for (int t = 0; t < tokens;) {
            const int left = tokens - t;
            // 7 = 4 + 3 rather than 6 + 1: the smallest tiles use the machine worst.
            const int n = left <= Most ? left : left < 2 * Most ? (left + 1) / 2 : Most;
            tile<type, Most>(m, x.from(t), n, few || t == 0, out + size_t(t) * ldo, ldo, panel, end,
                             m.data + m.panel_bytes * end);
            t += n;
        }
        panel = end;
    }
}

void matmul(const Matrix& m, const Activations& x, int tokens, float* out, int ldo, int first, int last,
            const uint8_t* then) {
    switch (m.type) {
        case Type::f32:
            return product<Type::f32, kTokens>(m, x, tokens, out, ldo, first, last, then);
        case Type::bf16:
            return product<Type::bf16, kTokensBf16>(m, x, tokens, out, ldo, first, last, then);
        case Type::int8:
            return product<Type::int8, kTokensInt8>(m, x, tokens, out, ldo, first, last, then);
        case Type::int4:
            return product<Type::int4, kTokensInt4>(m, x, tokens, out, ldo, first, last, then);
    }
}

void quantize(const float* x, int n, Type type, int8_t* q, float* scale, int32_t* sum) {
    const int group = group_of(type);
    for (int g = 0; g * group < n; ++g) {
        const float* xg = x + g * group;
        F m = zero();
        for (int i = 0; i < group; i += W) m = max(m, abs(load(xg + i)));
        const float largest = hmax(m);
        const float inverse = largest > 0 ? 127.0f / largest : 0.0f;
        float rounded[kGroup8];
        for (int i = 0; i < group; i += W) store(rounded + i, round(mul(load(xg + i), set1(inverse))));
        int8_t bytes[kGroup8];
        int32_t total = 0;
        for (int i = 0; i < group; ++i) {
            const int v = static_cast<int>(rounded[i]);
            bytes[i] = static_cast<int8_t>(v);
            total += v;
        }
        scale[g] = largest / 127.0f;
        sum[g] = total;
        if (type == Type::int8)
            sum[g] = store_x4(bytes, group, total, q + g * group / 4 * kX4);
        else
            std::memcpy(q + g * group, bytes, group);
    }
}

}  // namespace
