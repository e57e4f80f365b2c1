// Hamming distances of packed bit vectors to one anchor a row; see ops/crush.py.
#pragma once
#include <cstddef>
#include <cstdint>

namespace sparsight {

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

}  // namespace sparsight
