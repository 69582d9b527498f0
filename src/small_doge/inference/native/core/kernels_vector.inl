// Loops over single vectors: norms, activations, exponentials, reductions.

namespace {

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

}  // namespace
