// Matrix products: a panel of 16 rows times T tokens.

namespace {

// Panels taken together, so that T tokens have the eight chains of dependent sums that keep two FMA units busy. Each
// sum runs over the columns in order: a token's result does not depend on how many others are computed with it.
template <Type type, int T>
constexpr int panels_at_once() {
    constexpr int panels = at_least_one(8 / (NV * T));
    return is_integer(type) && panels > 2 ? 2 : panels;
}

// Columns that a tile multiplies in one go.
struct Columns {
    int first, last;
};

// Bytes of one column of a panel.
constexpr int column_bytes(Type type) {
    return type == Type::f32 ? kPanel * 4 : type == Type::bf16 ? kPanel * 2 : type == Type::int8 ? kPanel : kPanel / 2;
}

// Where the weights of a panel from a column on lie.
template <Type type>
inline const uint8_t* weights_at(const Matrix& m, int panel, int column) {
    return m.data + m.panel_bytes * panel + size_t(column) * column_bytes(type);
}

// How a tile asks memory, with every line of its own panel, for what is read behind it. Alone it asks for as much as it
// reads. The tiles of several tokens share it out, `step` bytes a line, for one of them would ask faster than memory
// answers, and wait. Those of all further tokens ask for nothing.
struct AskAlone {
    static constexpr bool kOften = true;
    ptrdiff_t ahead;
    void line(const uint8_t* w, size_t offset) const { prefetch(w + ahead + offset); }
    void advance() {}
};
struct AskShare {
    static constexpr bool kOften = false;
    const uint8_t* at;
    int step;
    void line(const uint8_t*, size_t offset) const { prefetch(at + offset); }
    void advance() { at += step; }
};
struct AskNothing {
    static constexpr bool kOften = false;
    void line(const uint8_t*, size_t) const {}
    void advance() {}
};

// Of the tile's inputs, a pointer a token: the loop over columns then adds to one index.
template <int T>
struct Inputs {
    const float* token[T];
    explicit Inputs(const Activations& x) {
        for (int t = 0; t < T; ++t) token[t] = x.values + size_t(t) * x.ld;
    }
};

template <int P, int T>
inline void load_tile(F (&tile)[P][T][NV], bool empty, const float* out, int ldo) {
    SMALL_DOGE_UNROLL
    for (int p = 0; p < P; ++p) SMALL_DOGE_UNROLL
    for (int t = 0; t < T; ++t) SMALL_DOGE_UNROLL
    for (int v = 0; v < NV; ++v) tile[p][t][v] = empty ? zero() : load(out + size_t(t) * ldo + p * kPanel + v * W);
}

template <int P, int T>
inline void store_tile(const F (&tile)[P][T][NV], float* out, int ldo) {
    SMALL_DOGE_UNROLL
    for (int p = 0; p < P; ++p) SMALL_DOGE_UNROLL
    for (int t = 0; t < T; ++t) SMALL_DOGE_UNROLL
    for (int v = 0; v < NV; ++v) store(out + size_t(t) * ldo + p * kPanel + v * W, tile[p][t][v]);
}

template <int P, int T, class Ask>
void panel_f32(const Matrix& m, int panel, const Activations& x, Columns c, Ask ask, float* out, int ldo) {
    constexpr int U = 2;  // columns unrolled
    const uint8_t* w = weights_at<Type::f32>(m, panel, c.first);
    F acc[P][T][NV];
    load_tile(acc, c.first == 0, out, ldo);
    const Inputs<T> in(x);
    for (ptrdiff_t k = c.first; k < c.last; k += U) {
        SMALL_DOGE_UNROLL
        for (int u = 0; u < U; ++u, w += kPanel * 4) {
            SMALL_DOGE_UNROLL
            for (int p = 0; p < P; ++p) {
                ask.line(w, p * m.panel_bytes);
                F wv[NV];
                SMALL_DOGE_UNROLL
                for (int v = 0; v < NV; ++v)
                    wv[v] = load(reinterpret_cast<const float*>(w + p * m.panel_bytes) + v * W);
                SMALL_DOGE_UNROLL
                for (int t = 0; t < T; ++t) {
                    const F xv = set1(in.token[t][k + u]);
                    SMALL_DOGE_UNROLL
                    for (int v = 0; v < NV; ++v) acc[p][t][v] = fma(wv[v], xv, acc[p][t][v]);
                }
            }
            ask.advance();
        }
    }
    store_tile(acc, out, ldo);
}

template <int P, int T, class Ask>
void panel_bf16(const Matrix& m, int panel, const Activations& x, Columns c, Ask ask, float* out, int ldo) {
    constexpr int U = T == 1 ? 1 : 2;  // pairs of columns unrolled; with four panels registers do not suffice
    const uint8_t* w = weights_at<Type::bf16>(m, panel, c.first);
    F acc[P][T][NV];
    load_tile(acc, c.first == 0, out, ldo);
    const Inputs<T> in(x);
    for (ptrdiff_t k = c.first; k < c.last; k += 2 * U) {
        SMALL_DOGE_UNROLL
        for (int u = 0; u < U; ++u, w += kPanel * 4) {
            SMALL_DOGE_UNROLL
            for (int p = 0; p < P; ++p) ask.line(w, p * m.panel_bytes);
            ask.advance();
            SMALL_DOGE_UNROLL
            for (int odd = 0; odd < 2; ++odd) {
                F xv[T];
                SMALL_DOGE_UNROLL
                for (int t = 0; t < T; ++t) xv[t] = set1(in.token[t][k + 2 * u + odd]);
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
    }
    store_tile(acc, out, ldo);
}

// Where one group's scales and sums are: those of the first panel and token, and how far it is to the next.
struct Group {
    const bf16* w_scale;
    const float* x_scale;
    const int32_t* x_sum;
    size_t panel, token;

    Group(const Matrix& m, int first_panel, const Activations& x, int g)
        : w_scale(m.scales + (size_t(first_panel) * m.groups + g) * kPanel),
          x_scale(x.scale + g),
          x_sum(x.sum + g),
          panel(size_t(m.groups) * kPanel),
          token(x.ld_groups) {}
    void advance() {
        w_scale += kPanel;
        ++x_scale;
        ++x_sum;
    }
};

// The group's integer sums, scaled, into `out`: the sum over groups waits there, for registers are short.
template <int P, int T, class Sum>
inline void add_group(const Group& g, bool empty, Sum sum, float* out, int ldo) {
    // All read before the first store, which might be to any of them for all a compiler knows.
    F w_scale[P][NV], x_scale[T];
    SMALL_DOGE_UNROLL
    for (int p = 0; p < P; ++p) SMALL_DOGE_UNROLL
    for (int v = 0; v < NV; ++v) w_scale[p][v] = load(g.w_scale + p * g.panel + v * W);
    SMALL_DOGE_UNROLL
    for (int t = 0; t < T; ++t) x_scale[t] = set1(g.x_scale[t * g.token]);
    SMALL_DOGE_UNROLL
    for (int t = 0; t < T; ++t) SMALL_DOGE_UNROLL
    for (int p = 0; p < P; ++p) SMALL_DOGE_UNROLL
    for (int v = 0; v < NV; ++v) {
        float* o = out + size_t(t) * ldo + p * kPanel + v * W;
        store(o, fma(sum(p, t, v), mul(w_scale[p][v], x_scale[t]), empty ? zero() : load(o)));
    }
}

template <int P, int T, class Ask>
void panel_int8(const Matrix& m, int panel, const Activations& x, Columns c, Ask ask, float* out, int ldo) {
    constexpr int U = 2;  // steps unrolled
    const uint8_t* w = weights_at<Type::int8>(m, panel, c.first);
    Group group(m, panel, x, c.first / kGroup8);
    for (int k = c.first; k < c.last; k += kGroup8, group.advance()) {
        I acc[P][T][NV];
        SMALL_DOGE_UNROLL
        for (int t = 0; t < T; ++t) {
            const I start = int_start(group.x_sum[t * group.token]);
            SMALL_DOGE_UNROLL
            for (int p = 0; p < P; ++p) SMALL_DOGE_UNROLL
            for (int v = 0; v < NV; ++v) acc[p][t][v] = start;
        }
        const int8_t* q = x.q + k / 4 * kX4;
        for (int step = 0; step < kGroup8 / 4; step += U) {
            SMALL_DOGE_UNROLL
            for (int u = 0; u < U; ++u) {
                W4 wv[P][NV];
                SMALL_DOGE_UNROLL
                for (int p = 0; p < P; ++p) SMALL_DOGE_UNROLL
                for (int v = 0; v < NV; ++v) wv[p][v] = load_w4(w + p * m.panel_bytes + (u * NV + v) * (W * 4));
                SMALL_DOGE_UNROLL
                for (int p = 0; p < P && (Ask::kOften || u == 0); ++p) ask.line(w + u * kPanel * 4, p * m.panel_bytes);
                ask.advance();
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
        add_group<P, T>(group, k == 0, [&](int p, int t, int v) { return to_float(acc[p][t][v]); }, out, ldo);
    }
}

template <int P, int T, class Ask>
void panel_int4(const Matrix& m, int panel, const Activations& x, Columns c, Ask ask, float* out, int ldo) {
    const uint8_t* w = weights_at<Type::int4>(m, panel, c.first);
    Group group(m, panel, x, c.first / kGroup4);
    for (int k = c.first; k < c.last; k += kGroup4, group.advance()) {
        N acc[P][T][NV];
        for (auto& a : acc)
            for (auto& b : a)
                for (N& c : b) c = nibble_start();
        const int8_t* q = x.q + k;
        SMALL_DOGE_ROLLED
        for (int j = 0; j < 4; ++j, w += kPanel * 4, q += 4) {
            W4 low[P][NV], high[P][NV];
            SMALL_DOGE_UNROLL
            for (int p = 0; p < P; ++p) SMALL_DOGE_UNROLL
            for (int v = 0; v < NV; ++v) load_nibbles(w + p * m.panel_bytes + v * W * 4, low[p][v], high[p][v]);
            SMALL_DOGE_UNROLL
            for (int p = 0; p < P && T == 1; ++p) ask.line(w, p * m.panel_bytes);
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
        for (int t = 0; t < T; ++t) sum[t] = group.x_sum[t * group.token];
        add_group<P, T>(
            group, k == 0, [&](int p, int t, int v) { return nibble_end(acc[p][t][v], sum[t]); }, out, ldo);
    }
}

// What is read behind a tile or null, and which of how many shares of it the tile asks for: none from the last on.
struct Next {
    const uint8_t* at;
    int share, shares;
};

template <Type type, int P, int T, class Ask>
void panels(const Matrix& m, int panel, const Activations& x, Columns c, Ask ask, float* out, int ldo) {
    float* o = out + size_t(panel) * kPanel;
    if constexpr (type == Type::f32) panel_f32<P, T>(m, panel, x, c, ask, o, ldo);
    if constexpr (type == Type::bf16) panel_bf16<P, T>(m, panel, x, c, ask, o, ldo);
    if constexpr (type == Type::int8) panel_int8<P, T>(m, panel, x, c, ask, o, ldo);
    if constexpr (type == Type::int4) panel_int4<P, T>(m, panel, x, c, ask, o, ldo);
}

template <Type type, int P, int T>
void panels(const Matrix& m, int panel, const Activations& x, Columns c, Next next, float* out, int ldo) {
    if (!next.at || next.share >= next.shares) {
        panels<type, P, T>(m, panel, x, c, AskNothing{}, out, ldo);
    } else if (next.shares == 1) {
        panels<type, P, T>(m, panel, x, c, AskAlone{next.at - weights_at<type>(m, panel, c.first)}, out, ldo);
    } else {
        const int bytes = (c.last - c.first) * column_bytes(type) / next.shares;
        panels<type, P, T>(m, panel, x, c, AskShare{next.at + bytes * next.share, 64 / next.shares}, out, ldo);
    }
}

// The panels [first, last) for `tokens` <= T of them, each asking for the one behind it and the last for next.at.
template <Type type, int T, int P = panels_at_once<type, T>()>
void tile(const Matrix& m, const Activations& x, int tokens, Columns c, Next next, float* out, int ldo, int first,
          int last) {
    if constexpr (T > 1) {
        if (tokens < T) return tile<type, T - 1>(m, x, tokens, c, next, out, ldo, first, last);
    }
    const auto behind = [&](int panel) {
        return Next{panel < last ? weights_at<type>(m, panel, c.first) : next.at, next.share, next.shares};
    };
    for (; first + P <= last; first += P) panels<type, P, T>(m, first, x, c, behind(first + P), out, ldo);
    if constexpr (P > 2)
        for (; first + 2 <= last; first += 2) panels<type, 2, T>(m, first, x, c, behind(first + 2), out, ldo);
    for (; first < last; ++first) panels<type, 1, T>(m, first, x, c, behind(first + 1), out, ldo);
}

template <Type type, int Most, int P = panels_at_once<type, Most>()>
void product(const Matrix& m, const Activations& x, int tokens, float* out, int ldo, int first, int last,
             const uint8_t* then) {
    if (tokens <= Most) return tile<type, Most>(m, x, tokens, {0, m.cols_p}, {then, 0, 1}, out, ldo, first, last);
    // The columns go by blocks that the first-level cache holds until the last token has been multiplied by them.
    constexpr int kBlock = 16384, columns = kBlock / (P * column_bytes(type));
    const int shares = tokens <= 3 * Most ? 2 : tokens <= 7 * Most ? 4 : 8;
    for (int panel = first; panel < last;) {
        const int end = panel + P < last ? panel + P : last;
        for (Columns c{0, 0}; c.last < m.cols_p;) {
            c = {c.last, c.last + columns < m.cols_p ? c.last + columns : m.cols_p};
            const uint8_t* behind = c.last < m.cols_p ? weights_at<type>(m, panel, c.last)
                                    : end < last      ? weights_at<type>(m, end, 0)
                                                      : then;
            for (int t = 0, share = 0; t < tokens; ++share) {
                const int left = tokens - t;
                // 7 = 4 + 3 rather than 6 + 1: the smallest tiles use the machine worst.
                const int n = left <= Most ? left : left < 2 * Most ? (left + 1) / 2 : Most;
                float* o = out + size_t(t) * ldo;
                tile<type, Most, P>(m, x.from(t), n, c, {behind, share, shares}, o, ldo, panel, end);
                t += n;
            }
        }
        panel = end;
    }
}

// From how many tokens on int8 takes them one by one, by four panels: on AVX2 the weights are an operand in memory, and
// this shape then has the fewest other loads for its eight sums. Fewer tokens wait for weights from further away, which
// one token's tile of four panels would ask for in bursts.
constexpr int kOneByOne = NV == 2 ? 16 : INT32_MAX;

void matmul(const Matrix& m, const Activations& x, int tokens, float* out, int ldo, int first, int last,
            const uint8_t* then) {
    switch (m.type) {
        case Type::f32:
            return product<Type::f32, kTokens>(m, x, tokens, out, ldo, first, last, then);
        case Type::bf16:
            return product<Type::bf16, kTokensBf16>(m, x, tokens, out, ldo, first, last, then);
        case Type::int8:
            if (tokens >= kOneByOne) return product<Type::int8, 1, 4>(m, x, tokens, out, ldo, first, last, then);
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
