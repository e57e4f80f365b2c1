// What a kernel sees, and the table of kernels that each level of instruction sets fills.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace sparsight {

enum Format : int { F32 = 0, BF16 = 1, INT8 = 2, INT4 = 3 };
enum Activation : int { SILU = 0, GELU_TANH = 1 };

constexpr int PANEL = 16;   // rows of a matrix that are kept and computed together
constexpr int GROUP = 32;   // columns that share a scale; columns are padded to a multiple
constexpr int CHUNK = 256;  // tokens of one piece of attention
constexpr int ROW_PAD = 32;  // floats that arranged vectors are padded to
constexpr int LEAST_SLACK = 64;  // floats of room that a kernel may write beyond the end of a score buffer

// Panels of 16 rows one after another. F32: column after column, 16 rows each. BF16: two columns of a row side by side. INT8, INT4: groups of
// 32 columns; four columns of a row side by side (INT4: column 4c+j in the low, 16+4c+j in the high half of a byte), then 16 fp16 scales, and
// for INT4 16 fp16 minima.
struct Matrix {
  int format = 0, rows = 0, cols = 0, panels = 0;
  const uint8_t* data = nullptr;
  size_t panel_bytes = 0;
};

inline size_t panel_bytes_of(int format, int cols) {
  switch (format) {
    case F32: return (size_t)cols * PANEL * 4;
    case BF16: return (size_t)cols * PANEL * 2;
    case INT8: return (size_t)cols / GROUP * (PANEL * GROUP + 2 * PANEL);
    default: return (size_t)cols / GROUP * (PANEL * GROUP / 2 + 4 * PANEL);
  }
}

// One row of activations: as floats and, for quantised weights, as int8 with a scale a group.
struct Input {
  const float* values;
  const int8_t* codes;
  const float* scales;  // a group
  const float* sums;    // a group: scale times the sum of its codes
  const int32_t* code_sums;
};

// Attention of the query heads of one KV head over one chunk of tokens.
struct Attend {
  const void* keys;
  const void* values;
  int format;  // F32 or BF16
  int stride;  // elements from a token to the next
  int head_dim;
  int heads;
  const float* queries;    // (heads, head_dim), times scaling and log2(e)
  const int32_t* indices;  // of the tokens, or null for `start` and those behind it
  int start, count;        // at most CHUNK
  int beyond;              // tokens that follow, of the next chunk
  float* largest;          // (heads)
  float* total;            // (heads)
  float* out;              // (heads, head_dim): sum of values, weighted by 2^(score - largest)
};

struct Kernels {
  const char* name;
  // y[b][row] = row of the matrix . x[b], for the rows of panels p0 to p1; y has room for whole panels.
  void (*matvec)(const Matrix& matrix, int p0, int p1, int batch, const Input* x, float* const* y);
  void (*quantise)(const float* x, int cols, int8_t* codes, float* scales, float* sums, int32_t* code_sums);
  void (*rms_norm)(const float* x, const float* weight, float* y, int n, float eps);
  void (*layer_norm)(const float* x, const float* weight, const float* bias, float* y, int n, float eps);
  void (*gate)(float* gate, const float* up, int n, int activation);  // gate = activation(gate) * up; up may be null
  void (*attend)(const Attend& a);
  // out[h][t] = scales[h] * (query h . key of token t), int8 keys in blocks of 16 tokens, two channels of a token side by side; of `blocks`, if
  // they are given, one after another.
  void (*score_keys)(const int8_t* keys, const int32_t* blocks, int pairs, int tokens, int heads, const int16_t* const* queries, const float* scales, float* const* out);
  // out[p] = sum over channels of max(q * low, q * high).
  void (*score_pages)(const void* bounds, int format, int head_dim, int pages, const float* query, float* out);
  // out = sum over heads of softmax2(scores of the head); the scores are overwritten.
  void (*sum_softmax2)(float* const* scores, int heads, int n, float* out);
  int (*between)(const uint32_t* keys, int n, uint32_t low, uint32_t high, uint32_t* out, int* larger);
  int (*count_above)(const uint32_t* keys, int n, uint32_t cut);
  int (*collect)(const uint32_t* keys, int n, uint32_t cut, int equal, int base, int32_t* out);
  // Vectors of `cols` floats in the order that rows of a format are multiplied in, and back; room for whole multiples of ROW_PAD.
  void (*arrange)(const float* x, int format, int cols, float* out);
  void (*restore)(const float* x, int format, int cols, float* out);
  // out[i] = row idx[i] . x, an arranged vector; F32 or BF16, rows `stride` bytes apart. A row's sums run in the same order whatever stands beside it.
  void (*dot_rows)(const void* rows, int format, size_t stride, const int32_t* idx, int n, const float* x, int cols, float* out);
  // acc += sum over i of h[i] * row idx[i], in the order of i; acc is arranged. INT8 too: groups of 32 codes with a float32 scale behind each.
  void (*add_rows)(const void* rows, int format, size_t stride, const int32_t* idx, int n, const float* h, int cols, float* acc);
  uint64_t (*read)(const void* memory, size_t bytes);  // touches every cache line
};

extern const Kernels kernels_portable;
#ifdef SPARSIGHT_X86
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif

}  // namespace sparsight
