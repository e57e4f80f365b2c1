// KVCrush's representatives of one layer (arXiv:2503.00022); the reference is ops/crush.py with tokens/representatives.py.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace sparsight {

// Hamming distances of packed bit vectors to one anchor a row.
inline void hamming(const int64_t* vectors, const int64_t* anchors, size_t rows, size_t count, size_t words, int64_t* distances) {
  for (size_t r = 0; r < rows; ++r) {
    const int64_t* anchor = anchors + r * words;
    for (size_t i = 0; i < count; ++i, vectors += words) {
      int64_t different = 0;
      for (size_t w = 0; w < words; ++w) different += __builtin_popcountll((unsigned long long)(vectors[w] ^ anchor[w]));
      *distances++ = different;
    }
  }
}

// One sequence. Slots are in order of position; at most 63 query heads.
struct Crush {
  size_t query_heads, kv_heads, slots;
  const float* votes;         // (query_heads, slots)
  const int64_t* positions;   // (kv_heads, slots), -1 for an empty slot
  const bool* rows;           // (kv_heads, slots): those that bits are made for
  const bool* candidates;     // (kv_heads, slots)
  const int64_t* wanted;      // (kv_heads)
  float density;
  int majority;               // the first anchor: 1 the bits that most candidates have, -1 the others, 0 the first of `anchors`
  const int64_t* anchors;     // further anchors, `anchor_count` words
  size_t anchor_count;
  bool* chosen;               // (kv_heads, slots)

  void run() const {
    const size_t group = query_heads / kv_heads;
    // The rows that each query head looks at most, as a bit of its KV head's slots.
    std::vector<uint8_t> one(query_heads * slots, 0);
    std::vector<uint32_t> order;
    for (size_t h = 0; h < query_heads; ++h) {
      const bool* own = rows + h / group * slots;
      const float* vote = votes + h * slots;
      order.clear();
      for (size_t s = 0; s < slots; ++s)
        if (own[s]) order.push_back((uint32_t)s);
      const size_t most = (size_t)(density * (float)order.size());
      // Of equal votes the later first.
      auto before = [vote](uint32_t a, uint32_t b) { return vote[a] > vote[b] || (vote[a] == vote[b] && a > b); };
      if (most > 0 && most < order.size()) std::nth_element(order.begin(), order.begin() + (ptrdiff_t)most, order.end(), before);
      for (size_t i = 0; i < std::min(most, order.size()); ++i) one[h * slots + order[i]] = 1;
    }
    std::vector<uint64_t> word(slots);
    std::vector<uint64_t> key;
    for (size_t k = 0; k < kv_heads; ++k) {
      const int64_t* here = positions + k * slots;
      const bool* candidate = candidates + k * slots;
      std::fill(word.begin(), word.end(), 0);
      for (size_t h = 0; h < query_heads; ++h) {
        const int64_t* there = positions + h / group * slots;
        const uint8_t* bit = one.data() + h * slots;
        for (size_t s = 0, t = 0; s < slots; ++s) {
          if (here[s] < 0) continue;
          while (t < slots && there[t] < here[s]) ++t;
          if (t < slots && there[t] == here[s]) word[s] |= (uint64_t)bit[t] << h;
        }
      }
      represent(word.data(), candidate, wanted[k], chosen + k * slots, key);
    }
  }

 private:
  void represent(const uint64_t* word, const bool* candidate, int64_t want, bool* out, std::vector<uint64_t>& key) const {
    std::vector<uint32_t> order;
    for (size_t s = 0; s < slots; ++s)
      if (candidate[s]) order.push_back((uint32_t)s);
    std::vector<uint64_t> anchor;
    if (majority != 0) {
      uint64_t bits = 0;
      for (size_t h = 0; h < query_heads; ++h) {
        size_t ones = 0;
        for (uint32_t s : order) ones += word[s] >> h & 1;
        if ((2 * ones > order.size()) == (majority > 0)) bits |= (uint64_t)1 << h;
      }
      anchor.push_back(bits);
    }
    for (size_t i = 0; i < anchor_count; ++i) anchor.push_back((uint64_t)anchors[i]);
    // Stable sorts by one distance after the other, the first anchor's last.
    key.assign(slots, 0);
    std::vector<uint32_t> sorted(order.size()), start;
    for (size_t a = anchor.size(); a-- > 0;) {
      start.assign(query_heads + 2, 0);
      for (uint32_t s : order) ++start[(key[s] = (uint64_t)__builtin_popcountll(word[s] ^ anchor[a])) + 1];
      for (size_t d = 1; d < start.size(); ++d) start[d] += start[d - 1];
      for (uint32_t s : order) sorted[start[key[s]]++] = s;
      order.swap(sorted);
    }
    const size_t n = order.size(), count = std::min((size_t)std::max<int64_t>(want, 0), n);
    for (size_t i = 0; i < count; ++i) {
      const float exact = (float)(i * (n - 1)) / (float)std::max<size_t>(count - 1, 1);
      size_t rank = (size_t)exact;
      const float rest = exact - (float)rank;  // rounded half to even, as the reference does
      if (rest > 0.5f || (rest == 0.5f && rank % 2)) ++rank;
      out[order[rank]] = true;
    }
  }
};

}  // namespace sparsight
