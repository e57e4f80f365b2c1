// Which heads and neurons a step computes.
#pragma once
#include <stdint.h>

#include <vector>

#include "kernels.h"

namespace sparsight {

enum Chosen : int { EVERYTHING = 0, GIVEN = 1, FORETOLD = 2, GATED = 3 };
enum Factor : int { GATE = 0, UP = 1 };

constexpr int CHUNKS = 16;  // of a layer's neurons: each is summed by itself, so that sums do not depend on the threads

// Scores `weight . z + bias` from the hidden layer of a producer.
struct Readout {
  int producer = -1;
  Matrix weight;
  const float* bias = nullptr;
};

struct LayerUnits {
  int heads = EVERYTHING, neurons = EVERYTHING;
  std::vector<char> given_heads;        // a query head each
  std::vector<int32_t> given_neurons;   // ascending
  int heads_kept = 0, head_pool = 0;    // foretold: so many of each `head_pool` neighbours
  Readout head_scores, neuron_scores;
  int first = GATE;                     // gated: the factor that is computed whole
  const float *scale = nullptr, *spread = nullptr;
  Matrix left, right;                   // of the look at the other factor; no panels without one
  float cut = 0;                        // neurons with a score from here on are computed
};

struct UnitProducer {
  Matrix weight;
  const float* bias = nullptr;
};

struct Units {
  std::vector<LayerUnits> layers;
  std::vector<UnitProducer> producers;  // by layer
  int width = 0;                        // of a producer's hidden layer, padded
};

// What a row computed of the layers that leave something out; and, if it is asked for, which.
struct UnitRecord {
  std::vector<std::vector<char>> heads;                        // a layer
  std::vector<std::vector<std::vector<int32_t>>> neurons;      // a layer, a chunk
};

// The `kept` best of each `pool` neighbouring heads; of equal scores the lower head.
void best_heads(const float* scores, int query_heads, int pool, int kept, char* out);

}  // namespace sparsight
