// A decoder's weights, the state of sequences, and one step of decoding.
#pragma once
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "cut.h"
#include "kernels.h"
#include "pool.h"
#include "units.h"

namespace sparsight {

// Thrown for arguments that do not fit together; Python sees a ValueError.
struct Misfit : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

struct Layer {
  const float *input_norm = nullptr, *attention_norm = nullptr, *ffn_norm = nullptr, *output_norm = nullptr;
  const float *query_norm = nullptr, *key_norm = nullptr;
  const float *query_bias = nullptr, *key_bias = nullptr, *value_bias = nullptr, *attention_bias = nullptr;
  const float *gate_up_bias = nullptr, *down_bias = nullptr;
  Matrix query, key, value, attention, gate_up, down;  // panels of gate and up in turn
  int window = 0;                                      // 0: the whole context
  int rotary = 0;                                      // which table
  const char* records = nullptr;                       // a neuron: its row of gate, its row of up, its column of W_down
  int record_format = F32;
  std::array<Columns, PARTS> columns;  // transposed matrices, where they were given
};

struct Rotary {
  const float *cos = nullptr, *sin = nullptr;  // (positions, channels)
  int positions = 0, channels = 0;             // channels: half of those that are turned
};

struct Sizes {
  int layers, hidden, query_heads, kv_heads, head_dim, intermediate, vocab, kv_format, activation;
  float eps, scaling, embedding_scale;
};

enum Key : int { RECENCY = 0, KEYS = 1, PAGES = 2 };
enum Query : int { TRUE_QUERY = 0, FORESEEN = 1, EMITTED = 2 };
enum Reduction : int { SOFTMAX_SUM = 0, MAX = 1, MEAN = 2 };

// What a layer's importance is made of.
struct Pieces {
  bool selects = false;
  int key = RECENCY, query = TRUE_QUERY, producer = -1;
  Matrix query_projection;  // for each of `query_projections` heads a matrix of `rank` rows
  int query_projections = 0;
  Matrix key_projection;  // a KV head
  const float* key_scales = nullptr;
  Matrix up;
  float scale = 1;  // of emitted queries
};

struct Producer {
  const float *norm_weight = nullptr, *norm_bias = nullptr;
  Matrix down;
};

struct Selection {
  std::vector<Pieces> layers;
  std::vector<Producer> producers;  // by layer
  int rank = 0, page_size = 0, reduction = SOFTMAX_SUM;
  int pairs() const { return (rank + 1) / 2; }
};

struct Rule {
  int sinks = 4, window = 32, interval = 1;
  int pages = 0;  // tokens a page; 0: every token is scored
  float page_share = 0.25f;
};

struct Choice {
  int made_at = 0;  // 0: none
  std::vector<int32_t> indices;
  std::vector<float> importance;
};

struct Store {
  char *keys = nullptr, *values = nullptr;  // (kv_heads, capacity, head_dim)
  int capacity = 0, offset = 0;             // position of the first token kept
  char* index = nullptr;                    // (kv_heads, index_capacity, 2 * pairs) int8, or (kv_heads, pages, 2, head_dim)
  int index_capacity = 0, indexed = 0;      // tokens
  char* pages = nullptr;                    // (kv_heads, 2, page_capacity, 2 * pairs) int8: smallest and largest importance key of a page
  int page_capacity = 0, page_tokens = 0;   // pages, a multiple of 16; tokens of each
  int paged = 0;                            // tokens
  std::vector<Choice> choices;              // a KV head
};

struct Sequence {
  std::vector<Store> layers;
  int length = 0;
};

struct Read {
  std::vector<int32_t> indices;  // ascending; empty: all of `first` to `count`
  int first = 0, count = 0;
};

// A step has a row a token. Rows of one sequence stand together, in the order of its tokens, and are read densely.
struct StepArguments {
  std::vector<Sequence*> sequences;  // a row
  std::vector<int> tokens, budgets;  // a row
  const Selection* selection = nullptr;
  Rule rule;
  float* logits = nullptr;  // (sequences, vocab): of the last row of each
  std::vector<std::vector<Read>>* record = nullptr;  // layer, then sequence * kv_heads + head
  float* queries = nullptr;  // (layers, rows, query_heads, head_dim), as attention sees them, to be filled if given; heads left out are 0
  std::vector<const Units*> units;  // a row, or none at all; null for a row that computes everything
  std::vector<int64_t>*heads_computed = nullptr, *neurons_computed = nullptr;  // a row
  std::vector<UnitRecord>* unit_record = nullptr;  // a row
  const Activations* activations = nullptr;        // of all rows; null: every input counts
  std::vector<std::array<int64_t, PARTS>>* inputs_read = nullptr;  // a row: inputs that were read for, summed over layers
};

class Model {
 public:
  Model(const Sizes& sizes, const Kernels& kernels);
  ~Model();

  Sizes sizes;
  const Kernels& kernels;
  std::vector<Layer> layers;
  std::vector<Rotary> rotary;
  Matrix embedding, head;
  const float* final_norm = nullptr;

  // Returns the index of the largest logit of each sequence, or -1 where one is not finite.
  std::vector<int> step(Pool& pool, const StepArguments& arguments);

 private:
  std::mutex busy_;
};

// Row `row` of a matrix, as floats.
void matrix_row(const Matrix& matrix, int row, float* out);

}  // namespace sparsight
