// The packed forms of weights and activations that every kernel shares.
#pragma once
#include <cstddef>
#include <cstdint>

namespace small_doge {

struct bf16 {
    uint16_t bits;
};

enum class Type : int { f32 = 0, bf16 = 1, int8 = 2, int4 = 3 };

// Output rows that lie interleaved: one panel is computed at a time, a row a vector lane,
// so that no kernel needs a sum across lanes and every instruction set reads the same bytes.
constexpr int kPanel = 16;
constexpr int kGroup8 = 128;  // weights of one row that share a scale, int8
constexpr int kGroup4 = 32;   // the same, int4: the bound that keeps 8 byte products inside 16 bits
constexpr int kActPad = 128;  // activations are padded with zeros to a multiple of every group
constexpr int kBytesX = 2;    // that one quantized activation may take: AVX2 keeps sign and magnitude apart

constexpr int round_up(int n, int to) { return (n + to - 1) / to * to; }

constexpr int group_of(Type t) { return t == Type::int8 ? kGroup8 : t == Type::int4 ? kGroup4 : 16; }

constexpr bool is_integer(Type t) { return t == Type::int8 || t == Type::int4; }

// A weight matrix in panels (k = input column, all columns padded to a multiple of the group):
//   f32   [panel][k][16]            bf16  [panel][k / 2][16][2]
//   int8  [panel][k / 4][16][4]     int4  [panel][group][4][16][4], the low nibbles being quads 0..3 of the
//                                         group, the high ones quads 4..7, each stored as value + 8
// and for the integer types scales [panel][group][16] in bf16 behind the weights.
struct Matrix {
    Type type = Type::f32;
    int rows = 0, cols = 0;
    int panels = 0, cols_p = 0, groups = 0;
    const uint8_t* data = nullptr;
    const bf16* scales = nullptr;
    size_t panel_bytes = 0;
};

// Rows one after another, f32 or bf16: norms, expert embeddings, an untied token embedding.
struct Table {
    Type type = Type::f32;
    int rows = 0, cols = 0;
    const uint8_t* data = nullptr;
    const float* floats() const { return reinterpret_cast<const float*>(data); }
};

// The input of a matrix product, `ld` values a token. The integer view is filled for integer weights only, in the form
// that the instruction set's product takes.
struct Activations {
    const float* values = nullptr;
    const int8_t* q = nullptr;     // kBytesX * ld bytes a token
    const float* scale = nullptr;  // one a group, `ld_groups` a token
    const int32_t* sum = nullptr;  // int4: of q over the group; int8: what the product over the group begins with
    int ld = 0, ld_groups = 0;

    // Those of the tokens from this one on.
    Activations from(int token) const {
        Activations r = *this;
        r.values += static_cast<size_t>(token) * ld;
        if (q) {
            r.q += static_cast<size_t>(token) * ld * kBytesX;
            r.scale += static_cast<size_t>(token) * ld_groups;
            r.sum += static_cast<size_t>(token) * ld_groups;
        }
        return r;
    }
};

struct LogitStats {
    float max;
    int argmax;
    float sum;  // sum of exp(logit - max)
};

}  // namespace small_doge
