// From the rows of a checkpoint to panels, and back for the rows of an embedding.
#pragma once
#include <vector>

#include "threads.hpp"
#include "types.hpp"

namespace small_doge {

// Element types of a checkpoint.
enum class Source : int { f32 = 0, bf16 = 1, f16 = 2 };

// Consecutive rows of one checkpoint tensor; several stacked make one matrix (q, k and v, for instance).
struct Part {
    const uint8_t* data;
    Source type;
    int rows;
};

Matrix describe(Type type, int rows, int cols, const uint8_t* data);
size_t packed_bytes(Type type, int rows, int cols);
size_t table_bytes(Type type, int rows, int cols);

// Puts a row at r of its panel; for f32 and bf16.
void pack_row(Type type, const float* row, int cols, int r, uint8_t* panel);
void pack_matrix(const std::vector<Part>& parts, const Matrix& shape, uint8_t* out, Team& team);
void pack_table(const Part& part, const Table& shape, uint8_t* out, Team& team);

// out[0 .. cols) = row `row`, as the kernels see it.
void unpack_row(const Matrix& m, int row, float* out);
void unpack_row(const Table& t, int row, float* out);

}  // namespace small_doge
