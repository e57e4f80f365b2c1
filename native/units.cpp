#include "units.h"

#include <algorithm>
#include <numeric>

namespace sparsight {

void best_heads(const float* scores, int query_heads, int pool, int kept, char* out) {
  std::fill_n(out, query_heads, 0);
  std::vector<int> order(pool);
  for (int start = 0; start < query_heads; start += pool) {
    std::iota(order.begin(), order.end(), start);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return scores[a] > scores[b]; });
    for (int i = 0; i < std::min(kept, pool); i++) out[order[i]] = 1;
  }
}

}  // namespace sparsight
