// Matrices of which only the columns are read whose inputs are far from their centres.
#pragma once
#include <stdint.h>

#include <array>
#include <vector>

#include "kernels.h"

namespace sparsight {

enum Part : int { QUERY = 0, KEY_PART = 1, VALUE_PART = 2, HEAD_OUTPUT = 3, GATE_PART = 4, UP_PART = 5, DOWN = 6, PARTS = 7 };

constexpr int BLOCK = 64;         // outputs that are shared out among threads together
constexpr int CODES_BYTES = GROUP + 4;  // a group of INT8: 32 codes, then their scale in float32

// The transposed matrix: a row for each input, of all outputs. F32 and BF16 as they are; INT8 in groups of 32 outputs.
struct Columns {
  const char* data = nullptr;
  int format = F32, inputs = 0, outputs = 0;
  size_t stride = 0;
};

inline size_t columns_stride(int format, int outputs) {
  if (format == INT8) return (size_t)(outputs + GROUP - 1) / GROUP * CODES_BYTES;
  return (size_t)outputs * (format == F32 ? 4 : 2);
}

// A number for each input in bfloat16, or one for all: what is not there is not read.
struct PerInput {
  const uint16_t* own = nullptr;  // (inputs)
  float one = 0;
};

// y = folded + sum over the inputs with |x - centre| > threshold of (x - centre) times their rows.
struct Cutting {
  bool cuts = false;
  PerInput centre, threshold;
  const float* folded = nullptr;  // (outputs): bias, and what the centres give; null for zeros
};

struct Activations {
  std::vector<std::array<Cutting, PARTS>> layers;
};

struct CutScratch {
  std::vector<int32_t> index;
  std::vector<float> values, dense, sums;
  std::vector<char> any;
};

// The outputs of `thread` of `threads`, for all rows; `read` (batch), if it is not null, gets how many inputs each was read for. A row gives
// the same bits alone and among others, and whatever the threads: outputs are shared out, and each is summed in the order of the inputs.
void multiply_cut(const Kernels& k, const Columns& w, const Cutting& cut, int batch, const float* const* x, float* const* y, int thread,
                  int threads, CutScratch& scratch, int* read);

// What outputs `thread` has.
void cut_share(const Columns& w, int thread, int threads, int* from, int* to);

}  // namespace sparsight
