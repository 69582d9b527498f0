#include "pack.hpp"

#include <cmath>
#include <cstring>

namespace small_doge {
namespace {

float from_bits(uint32_t bits) {
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
}

uint32_t to_bits(float f) {
    uint32_t bits;
    std::memcpy(&bits, &f, 4);
    return bits;
}

float from_bf16(uint16_t b) { return from_bits(static_cast<uint32_t>(b) << 16); }

uint16_t nearest_bf16(float f) {
    const uint32_t bits = to_bits(f);
    return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// The scale must not shrink, or the largest weight would leave the range.
uint16_t bf16_not_below(float f) { return static_cast<uint16_t>((to_bits(f) + 0xffff) >> 16); }

float from_f16(uint16_t h) {
    const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16, exponent = (h >> 10) & 31, mantissa = h & 1023;
    if (exponent == 31) return from_bits(sign | 0x7f800000u | (mantissa << 13));
    if (exponent) return from_bits(sign | ((exponent + 112) << 23) | (mantissa << 13));
    const float tiny = static_cast<float>(mantissa) * 5.9604644775390625e-8f;  // subnormal: 2^-24 a step
    return sign ? -tiny : tiny;
}

void read_row(const Part& part, int row, int cols, float* out) {
    const size_t at = static_cast<size_t>(row) * cols;
    if (part.type == Source::f32) {
        std::memcpy(out, part.data + at * 4, static_cast<size_t>(cols) * 4);
        return;
    }
    const uint8_t* p = part.data + at * 2;
    for (int i = 0; i < cols; ++i) {
        uint16_t h;
        std::memcpy(&h, p + 2 * i, 2);
        out[i] = part.type == Source::bf16 ? from_bf16(h) : from_f16(h);
    }
}

// Rounds to the nearest whole number, |x| < 2^22; unlike std::round it becomes vector code everywhere.
inline float nearest(float x) { return (x + 12582912.0f) - 12582912.0f; }

float largest_magnitude(const float* x, int n) {
    float m = 0;
    for (int i = 0; i < n; ++i) m = std::fabs(x[i]) > m ? std::fabs(x[i]) : m;
    return m;
}

void pack_int8_group(const float* x, int8_t* q, uint16_t* scale) {
    const float largest = largest_magnitude(x, kGroup8);
    *scale = bf16_not_below(largest / 127.0f);
    const float s = from_bf16(*scale), inverse = s > 0 ? 1.0f / s : 0.0f;
    for (int i = 0; i < kGroup8; ++i) {
        const float v = nearest(x[i] * inverse);
        q[i] = static_cast<int8_t>(v > 127.0f ? 127.0f : v < -127.0f ? -127.0f : v);
    }
}

inline float level4(float x) {
    const float v = nearest(x);
    return v > 7.0f ? 7.0f : v < -8.0f ? -8.0f : v;
}

// Levels -8..7 times a signed scale: of several clippings, the one of the least squared error, refitted once.
void pack_int4_group(const float* x, uint8_t* q, uint16_t* scale) {
    int peak = 0;
    for (int i = 1; i < kGroup4; ++i) peak = std::fabs(x[i]) > std::fabs(x[peak]) ? i : peak;
    uint16_t best = 0;
    float best_error = INFINITY;
    const auto consider = [&](float candidate) {
        const uint16_t bits = nearest_bf16(candidate);
        const float s = from_bf16(bits), inverse = s != 0 ? 1.0f / s : 0.0f;
        float error = 0, xq = 0, qq = 0;
        for (int i = 0; i < kGroup4; ++i) {
            const float level = level4(x[i] * inverse), d = x[i] - level * s;
            error += d * d;
            xq += x[i] * level;
            qq += level * level;
        }
        if (error < best_error) {
            best_error = error;
            best = bits;
        }
        return qq > 0 ? xq / qq : 0.0f;
    };
    if (x[peak] != 0) {
        for (const float steps : {6.8f, 7.4f, 8.0f, 8.7f, 9.5f}) consider(consider(-x[peak] / steps));
    }
    *scale = best;
    const float s = from_bf16(best), inverse = s != 0 ? 1.0f / s : 0.0f;
    for (int i = 0; i < kGroup4; ++i) q[i] = static_cast<uint8_t>(level4(x[i] * inverse) + 8.0f);
}

void pack_panel(const Matrix& m, const float* rows, uint8_t* out, uint16_t* scales) {
    for (int r = 0; r < kPanel; ++r) {
        const float* row = rows + static_cast<size_t>(r) * m.cols_p;
        if (!is_integer(m.type)) {
            pack_row(m.type, row, m.cols_p, r, out);
        } else if (m.type == Type::int8) {
            for (int g = 0; g < m.groups; ++g) {
                int8_t q[kGroup8];
                pack_int8_group(row + g * kGroup8, q, scales + g * kPanel + r);
                for (int k = 0; k < kGroup8; k += 4)
                    std::memcpy(out + static_cast<size_t>(g * kGroup8 + k) * kPanel + r * 4, q + k, 4);
            }
        } else {
            for (int g = 0; g < m.groups; ++g) {
                uint8_t q[kGroup4];
                pack_int4_group(row + g * kGroup4, q, scales + g * kPanel + r);
                uint8_t* o = out + static_cast<size_t>(g) * kGroup4 * kPanel / 2;
                for (int k = 0; k < kGroup4 / 2; ++k)
                    o[k / 4 * 64 + r * 4 + k % 4] = static_cast<uint8_t>(q[k] | (q[k + kGroup4 / 2] << 4));
            }
        }
    }
}

}  // namespace

void pack_row(Type type, const float* row, int cols, int r, uint8_t* panel) {
    if (type == Type::f32) {
        float* out = reinterpret_cast<float*>(panel) + r;
        for (int k = 0; k < cols; ++k) out[k * kPanel] = row[k];
    } else {
        uint32_t* out = reinterpret_cast<uint32_t*>(panel) + r;
        for (int k = 0; k < cols; k += 2)
            out[k / 2 * kPanel] = nearest_bf16(row[k]) | static_cast<uint32_t>(nearest_bf16(row[k + 1])) << 16;
    }
}

Matrix describe(Type type, int rows, int cols, const uint8_t* data) {
    Matrix m;
    m.type = type;
    m.rows = rows;
    m.cols = cols;
    m.panels = round_up(rows, kPanel) / kPanel;
    m.cols_p = round_up(cols, group_of(type));
    m.groups = m.cols_p / group_of(type);
    const size_t weights = static_cast<size_t>(kPanel) * m.cols_p;
    m.panel_bytes = type == Type::f32    ? weights * 4
                    : type == Type::bf16 ? weights * 2
                    : type == Type::int8 ? weights
                                         : weights / 2;
    m.data = data;
    if (data && is_integer(type)) m.scales = reinterpret_cast<const bf16*>(data + m.panel_bytes * m.panels);
    return m;
}

size_t packed_bytes(Type type, int rows, int cols) {
    const Matrix m = describe(type, rows, cols, nullptr);
    return (m.panel_bytes + (is_integer(type) ? static_cast<size_t>(m.groups) * kPanel * 2 : 0)) * m.panels;
}

size_t table_bytes(Type type, int rows, int cols) {
    return static_cast<size_t>(rows) * cols * (type == Type::f32 ? 4 : 2);
}

void pack_matrix(const std::vector<Part>& parts, const Matrix& shape, uint8_t* out, Team& team) {
    const Matrix m = describe(shape.type, shape.rows, shape.cols, out);
    uint16_t* scales = reinterpret_cast<uint16_t*>(const_cast<bf16*>(m.scales));
    team.run([&](int thread) {
        std::vector<float> rows(static_cast<size_t>(kPanel) * m.cols_p);
        const int first = static_cast<int>(static_cast<long>(m.panels) * thread / team.size());
        const int last = static_cast<int>(static_cast<long>(m.panels) * (thread + 1) / team.size());
        for (int panel = first; panel < last; ++panel) {
            std::memset(rows.data(), 0, rows.size() * sizeof(float));
            for (int r = 0; r < kPanel && panel * kPanel + r < m.rows; ++r) {
                int row = panel * kPanel + r;
                auto part = parts.begin();
                for (; row >= part->rows; ++part) row -= part->rows;
                read_row(*part, row, m.cols, rows.data() + static_cast<size_t>(r) * m.cols_p);
            }
            pack_panel(m, rows.data(), out + m.panel_bytes * panel,
                       scales ? scales + static_cast<size_t>(panel) * m.groups * kPanel : nullptr);
        }
    });
}

void pack_table(const Part& part, const Table& t, uint8_t* out, Team& team) {
    team.run([&](int thread) {
        std::vector<float> row(t.cols);
        const int first = static_cast<int>(static_cast<long>(t.rows) * thread / team.size());
        const int last = static_cast<int>(static_cast<long>(t.rows) * (thread + 1) / team.size());
        for (int r = first; r < last; ++r) {
            read_row(part, r, t.cols, row.data());
            uint8_t* o = out + table_bytes(t.type, r, t.cols);
            if (t.type == Type::f32) {
                std::memcpy(o, row.data(), row.size() * sizeof(float));
                continue;
            }
            for (int i = 0; i < t.cols; ++i) {
                const uint16_t b = nearest_bf16(row[i]);
                std::memcpy(o + 2 * i, &b, 2);
            }
        }
    });
}

void unpack_row(const Matrix& m, int row, float* out) {
    const int r = row % kPanel;
    const uint8_t* p = m.data + m.panel_bytes * (row / kPanel);
    const bf16* scales = m.scales ? m.scales + static_cast<size_t>(row / kPanel) * m.groups * kPanel + r : nullptr;
    for (int k = 0; k < m.cols; ++k) {
        if (m.type == Type::f32) {
            std::memcpy(out + k, p + (static_cast<size_t>(k) * kPanel + r) * 4, 4);
        } else if (m.type == Type::bf16) {
            uint16_t b;
            std::memcpy(&b, p + (static_cast<size_t>(k / 2) * kPanel + r) * 4 + (k % 2) * 2, 2);
            out[k] = from_bf16(b);
        } else if (m.type == Type::int8) {
            const int8_t q = static_cast<int8_t>(p[static_cast<size_t>(k / 4) * 64 + r * 4 + k % 4]);
            out[k] = static_cast<float>(q) * from_bf16(scales[k / kGroup8 * kPanel].bits);
        } else {
            const int g = k / kGroup4, i = k % kGroup4, low = i % (kGroup4 / 2);
            const uint8_t both = p[static_cast<size_t>(g) * kGroup4 * kPanel / 2 + low / 4 * 64 + r * 4 + low % 4];
            const int q = (i < kGroup4 / 2 ? both & 15 : both >> 4) - 8;
            out[k] = static_cast<float>(q) * from_bf16(scales[g * kPanel].bits);
        }
    }
}

void unpack_row(const Table& t, int row, float* out) {
    const Part part{t.data, t.type == Type::f32 ? Source::f32 : Source::bf16, t.rows};
    read_row(part, row, t.cols, out);
}

}  // namespace small_doge
