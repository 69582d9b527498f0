// Attention of a few query rows over the slots of one cache.

namespace {

template <class T, int R, int S>
inline void dots_tile(const float* q, int dim, const T* keys, float* out, int ldo) {
    F acc[R][S];
    for (auto& a : acc)
        for (F& b : a) b = zero();
    for (int d = 0; d < dim; d += W) {
        F k[S];
        SMALL_DOGE_UNROLL
        for (int s = 0; s < S; ++s) k[s] = load(keys + size_t(s) * dim + d);
        SMALL_DOGE_UNROLL
        for (int r = 0; r < R; ++r) {
            const F x = load(q + r * dim + d);
            SMALL_DOGE_UNROLL
            for (int s = 0; s < S; ++s) acc[r][s] = fma(x, k[s], acc[r][s]);
        }
    }
    SMALL_DOGE_UNROLL
    for (int r = 0; r < R; ++r) {
        if constexpr (S % 4 == 0) {
            SMALL_DOGE_UNROLL
            for (int s = 0; s < S; s += 4)
                hsum4(acc[r][s], acc[r][s + 1], acc[r][s + 2], acc[r][s + 3], out + size_t(r) * ldo + s);
        } else {
            SMALL_DOGE_UNROLL
            for (int s = 0; s < S; ++s) out[size_t(r) * ldo + s] = hsum(acc[r][s]);
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
        SMALL_DOGE_UNROLL
        for (int c = 0; c < C; ++c) v[c] = load(values + size_t(j) * dim + c * W);
        SMALL_DOGE_UNROLL
        for (int r = 0; r < R; ++r) {
            const F w = set1(p[size_t(r) * ldp + j]);
            SMALL_DOGE_UNROLL
            for (int c = 0; c < C; ++c) acc[r][c] = fma(w, v[c], acc[r][c]);
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

}  // namespace
