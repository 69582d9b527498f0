// The values of a cache's slots, weighted for a few query rows.

namespace {

// Slots whose values stay in the first-level cache between two column tiles. One or two rows find them in memory, which
// is read fastest in its order: few slots at a time, and those behind them asked for.
template <int R>
constexpr int slots_at_once() {
    return R > 2 ? 64 : 16;
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
        if (R <= 2) prefetch(reinterpret_cast<const uint8_t*>(values + size_t(j + slots_at_once<R>()) * dim));
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
    constexpr int kSlots = slots_at_once<R>();
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
    for (; r + 6 <= rows; r += 6) mix_rows<T, 6, 2>(p + size_t(r) * ldp, ldp, values, n, dim, out + r * dim);
    for (; r + 4 <= rows; r += 4) mix_rows<T, 4, 2>(p + size_t(r) * ldp, ldp, values, n, dim, out + r * dim);
    for (; r + 2 <= rows; r += 2) mix_rows<T, 2, 4>(p + size_t(r) * ldp, ldp, values, n, dim, out + r * dim);
    if (r < rows) mix_rows<T, 1, 8>(p + size_t(r) * ldp, ldp, values, n, dim, out + r * dim);
}

}  // namespace
