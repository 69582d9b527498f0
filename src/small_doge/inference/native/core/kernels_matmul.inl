// Matrix products: a panel of 16 rows times T tokens.

namespace {

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
        SMALL_DOGE_UNROLL
        for (int u = 0; u < U; ++u) {
            F wv[NV];
            SMALL_DOGE_UNROLL
            for (int v = 0; v < NV; ++v) wv[v] = load(w + (k + u) * kPanel + v * W);
            SMALL_DOGE_UNROLL
            for (int t = 0; t < T; ++t) {
                const F xv = set1(x.values[size_t(t) * x.ld + k + u]);
                SMALL_DOGE_UNROLL
                for (int v = 0; v < NV; ++v) acc[u][t][v] = fma(wv[v], xv, acc[u][t][v]);
            }
        }
    }
    SMALL_DOGE_UNROLL
    for (int t = 0; t < T; ++t) {
        SMALL_DOGE_UNROLL
        for (int v = 0; v < NV; ++v) {
            F s = acc[0][t][v];
            SMALL_DOGE_UNROLL
            for (int u = 1; u < U; ++u) s = add(s, acc[u][t][v]);
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
        SMALL_DOGE_UNROLL
        for (int u = 0; u < U; ++u) {
            if constexpr (T == 1) prefetch(w + size_t(cols + k + 2 * u) * kPanel * 2);
            SMALL_DOGE_UNROLL
            for (int odd = 0; odd < 2; ++odd) {
                F wv[NV];
                SMALL_DOGE_UNROLL
                for (int v = 0; v < NV; ++v) {
                    const uint8_t* at = w + size_t(k + 2 * u) * kPanel * 2 + v * W * 4;
                    wv[v] = odd ? load_odd(at) : load_even(at);
                }
                SMALL_DOGE_UNROLL
                for (int t = 0; t < T; ++t) {
                    const F xv = set1(x.values[size_t(t) * x.ld + k + 2 * u + odd]);
                    SMALL_DOGE_UNROLL
                    for (int v = 0; v < NV; ++v) acc[u][odd % S][t][v] = fma(wv[v], xv, acc[u][odd % S][t][v]);
                }
            }
        }
    }
    SMALL_DOGE_UNROLL
    for (int t = 0; t < T; ++t) {
        SMALL_DOGE_UNROLL
        for (int v = 0; v < NV; ++v) {
            F sum = zero();
            SMALL_DOGE_UNROLL
            for (int u = 0; u < U; ++u) SMALL_DOGE_UNROLL
            for (int s = 0; s < S; ++s) sum = add(sum, acc[u][s][t][v]);
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
        SMALL_DOGE_UNROLL
        for (int t = 0; t < T; ++t) {
            const I start = int_start(x.sum[t * x.ld_groups + g]);
            SMALL_DOGE_UNROLL
            for (int p = 0; p < P; ++p) SMALL_DOGE_UNROLL
            for (int v = 0; v < NV; ++v) acc[p][t][v] = start;
        }
        for (int k8 = g * kGroup8; k8 < (g + 1) * kGroup8; k8 += 4 * U) {
            SMALL_DOGE_UNROLL
            for (int k = k8; k < k8 + 4 * U; k += 4) {
                W4 wv[P][NV];
                SMALL_DOGE_UNROLL
                for (int p = 0; p < P; ++p) SMALL_DOGE_UNROLL
                for (int v = 0; v < NV; ++v) wv[p][v] = load_w4(w + p * m.panel_bytes + size_t(k) * kPanel + v * W * 4);
                if constexpr (T == 1) {
                    SMALL_DOGE_UNROLL
                    for (int p = 0; p < P; ++p) prefetch(w + (P + p) * m.panel_bytes + size_t(k) * kPanel);
                }
                SMALL_DOGE_UNROLL
                for (int t = 0; t < T; ++t) {
                    const X4 xq = broadcast4(x.q + size_t(t) * x.ld + k);
                    SMALL_DOGE_UNROLL
                    for (int p = 0; p < P; ++p) SMALL_DOGE_UNROLL
                    for (int v = 0; v < NV; ++v) acc[p][t][v] = dot4(acc[p][t][v], wv[p][v], xq);
                }
            }
        }
        SMALL_DOGE_UNROLL
        for (int p = 0; p < P; ++p) {
            SMALL_DOGE_UNROLL
            for (int v = 0; v < NV; ++v) {
                const F ws = load(scales + (size_t(p) * m.groups + g) * kPanel + v * W);
                SMALL_DOGE_UNROLL
                for (int t = 0; t < T; ++t)
                    total[p][t][v] =
                        fma(to_float(acc[p][t][v]), mul(ws, set1(x.scale[t * x.ld_groups + g])), total[p][t][v]);
            }
        }
    }
    SMALL_DOGE_UNROLL
    for (int p = 0; p < P; ++p) SMALL_DOGE_UNROLL
    for (int t = 0; t < T; ++t) SMALL_DOGE_UNROLL
    for (int v = 0; v < NV; ++v) store(out + size_t(t) * ldo + p * kPanel + v * W, total[p][t][v]);
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
            SMALL_DOGE_UNROLL
            for (int p = 0; p < P; ++p) SMALL_DOGE_UNROLL
            for (int v = 0; v < NV; ++v)
                load_nibbles(w + p * m.panel_bytes + size_t(g) * kGroup4 * kPanel / 2 + j * 64 + v * W * 4, low[p][v],
                             high[p][v]);
            if constexpr (T == 1) {
                SMALL_DOGE_UNROLL
                for (int p = 0; p < P; ++p)
                    prefetch(w + (P + p) * m.panel_bytes + size_t(g) * kGroup4 * kPanel / 2 + j * 64);
            }
            SMALL_DOGE_UNROLL
            for (int t = 0; t < T; ++t) {
                const size_t at = size_t(t) * x.ld + k;
                const X4 low_x = broadcast4(x.q + at);
                const X4 high_x = broadcast4(x.q + at + 16);
                SMALL_DOGE_UNROLL
                for (int p = 0; p < P; ++p) SMALL_DOGE_UNROLL
                for (int v = 0; v < NV; ++v)
                    acc[p][t][v] = nibble_dot(nibble_dot(acc[p][t][v], low[p][v], low_x), high[p][v], high_x);
            }
        }
        SMALL_DOGE_UNROLL
        for (int p = 0; p < P; ++p) {
            SMALL_DOGE_UNROLL
            for (int v = 0; v < NV; ++v) {
                const F ws = load(scales + (size_t(p) * m.groups + g) * kPanel + v * W);
                SMALL_DOGE_UNROLL
                for (int t = 0; t < T; ++t) {
                    const F part = nibble_end(acc[p][t][v], x.sum[t * x.ld_groups + g]);
                    total[p][t][v] = fma(part, mul(ws, set1(x.scale[t * x.ld_groups + g])), total[p][t][v]);
                }
            }
        }
    }
    SMALL_DOGE_UNROLL
    for (int p = 0; p < P; ++p) SMALL_DOGE_UNROLL
    for (int t = 0; t < T; ++t) SMALL_DOGE_UNROLL
    for (int v = 0; v < NV; ++v) store(out + size_t(t) * ldo + p * kPanel + v * W, total[p][t][v]);
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
                case Type::f32:
                    with_tokens<TileF32, kTokens>(n, &m, panel, &xt, o, ldo);
                    break;
                case Type::bf16:
                    with_tokens<TileBf16, kTokensBf16>(n, &m, panel, &xt, o, ldo);
                    break;
                case Type::int8:
                    with_tokens<TileInt8, kTokensInt>(n, &m, panel, &xt, o, ldo);
                    break;
                case Type::int4:
                    with_tokens<TileInt4, kTokensInt>(n, &m, panel, &xt, o, ldo);
                    break;
            }
            t += n;
        }
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
        int32_t total = 0;
        for (int i = 0; i < group; ++i) {
            const int v = static_cast<int>(rounded[i]);
            q[g * group + i] = static_cast<int8_t>(v);
            total += v;
        }
        scale[g] = largest / 127.0f;
        sum[g] = total;
    }
}

}  // namespace
