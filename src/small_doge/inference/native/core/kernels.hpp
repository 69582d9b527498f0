// The table of inner loops. One translation unit for each instruction set fills it from kernels.inl.
#pragma once
#include "types.hpp"

namespace small_doge {

struct Kernels {
    const char* name;
    int lanes;

    // out[token][row] for the panels [first, last) of w; out holds 16 rows a panel, `ldo` values a token. `then`: what
    // the thread reads from memory next, or null; it is asked for as the last panels are multiplied.
    void (*matmul)(const Matrix& w, const Activations& x, int tokens, float* out, int ldo, int first, int last,
                   const uint8_t* then);

    // Symmetric 8-bit quantization of one token's n values, in the groups of that weight type (n a multiple of one).
    void (*quantize)(const float* x, int n, Type type, int8_t* q, float* scale, int32_t* sum);

    // out[r] = sum_j p[r][j] value[j]; values are rows of dim, a multiple of 16.
    void (*mix_f32)(const float* p, int ldp, int rows, const float* values, int n, int dim, float* out);
    void (*mix_bf16)(const float* p, int ldp, int rows, const bf16* values, int n, int dim, float* out);

    float (*dot_f32)(const float* a, const float* x, int n);
    float (*dot_bf16)(const bf16* a, const float* x, int n);
    void (*axpy_f32)(const float* a, float weight, int n, float* out);
    void (*axpy_bf16)(const bf16* a, float weight, int n, float* out);

    void (*rms_norm)(const float* x, const float* weight, int n, float eps, float* out);
    void (*silu_mul)(const float* gate, const float* up, int n, float* out);
    void (*residual)(const float* weight, const float* update, int n, float* x);
    void (*rope)(float* x, const float* cos, const float* sin, int half);
    void (*to_bf16)(const float* x, int n, bf16* out);
    void (*softmax)(float* x, int n);
    LogitStats (*stats)(const float* x, int n);
    // out = exp((x - max) * inverse_temperature); returns the sum.
    float (*exp_weights)(const float* x, int n, float max, float inverse_temperature, float* out);
    // The slot of the lowest (key, position): the one that leaves a full cache.
    int (*lowest)(const uint32_t* key, const int32_t* position, int n);
    // Sum over n bytes, read as fast as this instruction set can: the bandwidth probe.
    uint64_t (*read)(const uint8_t* data, size_t n);
};

const Kernels* kernels_plain();
const Kernels* kernels_avx2();
const Kernels* kernels_avx512();
const Kernels* kernels_neon();

// Kernels by name ("avx512", "avx2", "neon", "plain"), or the best that this CPU runs for an empty name.
// Null when the name is unknown, not built in, or not supported by this CPU.
const Kernels* find_kernels(const char* name);

}  // namespace small_doge
