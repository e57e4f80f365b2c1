// Which cached tokens a KV head reads: importance from keys or pages, then sinks, window and the most important.
#pragma once
#include "model.h"

namespace sparsight {

struct ChooseScratch {
  std::vector<float> scores, importance, bounds, row, projected;
  std::vector<int32_t> blocks;  // of 16 tokens, that were scored one after another
  std::vector<uint32_t> keys, scratch;
  std::vector<int32_t> taken;
  std::vector<int16_t> codes;

  // Importance of a token where only blocks were scored.
  float importance_of_block(int token) const {
    for (size_t i = 0; i < blocks.size(); i++)
      if (blocks[i] == token / PANEL) return importance[i * PANEL + token % PANEL];
    return 0;
  }
};

struct ChooseArguments {
  const Model& model;
  const Selection& selection;
  const Pieces& pieces;
  Store& store;
  int layer, head, tokens, budget;
  const Rule& rule;
  const float* queries;  // (group, head_dim) true or foreseen, or (1, rank) emitted; in the scale of logits times log2(e)
};

// Indices, ascending, of the `take` largest of n keys (of equal ones the first), plus `base`. `out` and `scratch` have room for
// LEAST_SLACK more than they hold.
int top(const Kernels& kernels, const uint32_t* keys, int n, int take, int base, int32_t* out, uint32_t* scratch);
// Brings the index of this KV head up to `tokens`; whoever calls it for the last head sets `store.indexed`.
void extend_index(const ChooseArguments& a, ChooseScratch& s);
void choose(const ChooseArguments& a, ChooseScratch& s, Read& read);

}  // namespace sparsight
