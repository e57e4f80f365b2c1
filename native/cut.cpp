#include "cut.h"

#include <algorithm>
#include <cmath>

#include "half.h"

namespace sparsight {

namespace {

constexpr int TOGETHER = 32;  // rows of the matrix that all rows of the batch use before the next are read

// A place is advanced by what a comparison gives: a jump that is taken at random costs more than the store.
template <bool OWN_CENTRE, bool OWN_THRESHOLD>
int leave(const Cutting& cut, const float* x, int inputs, int32_t* index, float* values) {
  int n = 0;
  for (int i = 0; i < inputs; i++) {
    const float distance = x[i] - (OWN_CENTRE ? bf16_to_float(cut.centre.own[i]) : cut.centre.one);
    index[n] = i, values[n] = distance;
    n += !(std::fabs(distance) <= (OWN_THRESHOLD ? bf16_to_float(cut.threshold.own[i]) : cut.threshold.one));
  }
  return n;
}

int leave(const Cutting& cut, const float* x, int inputs, int32_t* index, float* values) {
  if (cut.centre.own) return (cut.threshold.own ? leave<true, true> : leave<true, false>)(cut, x, inputs, index, values);
  return (cut.threshold.own ? leave<false, true> : leave<false, false>)(cut, x, inputs, index, values);
}

}  // namespace

void cut_share(const Columns& w, int thread, int threads, int* from, int* to) {
  const int blocks = (w.outputs + BLOCK - 1) / BLOCK;
  *from = (int)((int64_t)blocks * thread / threads) * BLOCK;
  *to = std::min((int)((int64_t)blocks * (thread + 1) / threads) * BLOCK, w.outputs);
}

void multiply_cut(const Kernels& k, const Columns& w, const Cutting& cut, int batch, const float* const* x, float* const* y, int thread,
                  int threads, CutScratch& s, int* read) {
  int from, to;
  cut_share(w, thread, threads, &from, &to);
  const int wide = std::max(to - from, 0), padded = (wide + BLOCK - 1) / BLOCK * BLOCK;
  const size_t offset = w.format == INT8 ? (size_t)from / GROUP * CODES_BYTES : (size_t)from * (w.format == F32 ? 4 : 2);
  const char* rows = w.data + offset;
  s.index.resize(w.inputs + 1), s.values.resize(w.inputs + 1);
  s.sums.assign((size_t)batch * padded, 0.f);
  if (batch == 1) {
    const int n = leave(cut, x[0], w.inputs, s.index.data(), s.values.data());
    if (read) read[0] = n;
    if (wide) k.add_rows(rows, w.format, w.stride, s.index.data(), n, s.values.data(), wide, s.sums.data());
  } else {
    // Rows of the matrix that any row of the batch wants, each times zero where one does not: that changes no sum.
    s.any.assign(w.inputs, 0), s.dense.assign((size_t)batch * w.inputs, 0.f);
    for (int b = 0; b < batch; b++) {
      const int n = leave(cut, x[b], w.inputs, s.index.data(), s.values.data());
      if (read) read[b] = n;
      for (int i = 0; i < n; i++) s.any[s.index[i]] = 1, s.dense[(size_t)b * w.inputs + s.index[i]] = s.values[i];
    }
    int n = 0;
    for (int i = 0; i < w.inputs; i++) {
      s.index[n] = i;
      n += s.any[i];
    }
    for (int start = 0; wide && start < n; start += TOGETHER) {
      const int count = std::min(TOGETHER, n - start);
      for (int b = 0; b < batch; b++) {
        for (int i = 0; i < count; i++) s.values[i] = s.dense[(size_t)b * w.inputs + s.index[start + i]];
        k.add_rows(rows, w.format, w.stride, s.index.data() + start, count, s.values.data(), wide, s.sums.data() + (size_t)b * padded);
      }
    }
  }
  for (int b = 0; b < batch && wide; b++) {
    k.restore(s.sums.data() + (size_t)b * padded, w.format, wide, y[b] + from);
    for (int i = from; cut.folded && i < to; i++) y[b][i] += cut.folded[i];
  }
}

}  // namespace sparsight
