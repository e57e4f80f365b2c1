#include "choose.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>

#include "half.h"

namespace sparsight {

namespace {

constexpr int FEW = 96;

int round_up(int n, int to) { return (n + to - 1) / to * to; }

// Order of floats as order of unsigned integers.
uint32_t ordered(float f) {
  uint32_t bits;
  memcpy(&bits, &f, 4);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

void floats_of(const char* row, int format, int n, float* out) {
  if (format == F32) memcpy(out, row, n * sizeof(float));
  else for (int i = 0; i < n; i++) out[i] = bf16_to_float(((const uint16_t*)row)[i]);
}

size_t element(int format) { return format == F32 ? 4 : 2; }

// Place of channel c of token (or page) t in a block layout of `pairs` pairs of channels.
size_t place_of(int t, int c, int pairs) { return (size_t)(t / PANEL) * PANEL * 2 * pairs + (c / 2) * 2 * PANEL + (t % PANEL) * 2 + (c & 1); }

void extend_keys(const ChooseArguments& a, ChooseScratch& s) {
  const Sizes& z = a.model.sizes;
  const Matrix& projection = a.pieces.key_projection;
  const int pairs = a.selection.pairs(), rank = a.selection.rank, panels = projection.panels / z.kv_heads;
  const float* scales = a.pieces.key_scales + a.head * rank;
  const char* keys = a.store.keys + (size_t)a.head * a.store.capacity * z.head_dim * element(z.kv_format);
  int8_t* index = (int8_t*)a.store.index + (size_t)a.head * a.store.index_capacity * 2 * pairs;
  constexpr int TOGETHER = 4;
  s.row.assign((size_t)TOGETHER * projection.cols, 0.f);
  s.projected.resize((size_t)TOGETHER * panels * PANEL);
  Matrix mine = projection;
  mine.panels = panels, mine.data += (size_t)a.head * panels * projection.panel_bytes;
  for (int t = a.store.indexed; t < a.tokens; t += TOGETHER) {
    const int n = std::min(TOGETHER, a.tokens - t);
    Input inputs[TOGETHER];
    float* outputs[TOGETHER];
    for (int j = 0; j < n; j++) {
      float* row = s.row.data() + (size_t)j * projection.cols;
      floats_of(keys + (size_t)(t + j) * z.head_dim * element(z.kv_format), z.kv_format, z.head_dim, row);
      inputs[j] = Input{row, nullptr, nullptr, nullptr, nullptr};
      outputs[j] = s.projected.data() + (size_t)j * panels * PANEL;
    }
    a.model.kernels.matvec(mine, 0, panels, n, inputs, outputs);
    for (int j = 0; j < n; j++) {
      const int token = t + j;
      for (int c = 0; c < 2 * pairs; c++) {
        float code = c < rank ? std::nearbyint(outputs[j][c] / scales[c]) : 0.f;
        index[place_of(token, c, pairs)] = (int8_t)std::max(-127.f, std::min(127.f, code));
      }
    }
  }
}

void extend_key_pages(const ChooseArguments& a) {
  const int pairs = a.selection.pairs(), size = a.rule.pages;
  const int8_t* keys = (const int8_t*)a.store.index + (size_t)a.head * a.store.index_capacity * 2 * pairs;
  int8_t* low = (int8_t*)a.store.pages + (size_t)a.head * 2 * a.store.page_capacity * 2 * pairs;
  int8_t* high = low + (size_t)a.store.page_capacity * 2 * pairs;
  const int from = a.store.page_tokens == size ? std::min(a.store.paged, a.store.indexed) / size * size : 0;
  for (int t = from; t < a.tokens; t++)
    for (int c = 0; c < 2 * pairs; c++) {
      const int8_t code = keys[place_of(t, c, pairs)];
      int8_t &least = low[place_of(t / size, c, pairs)], &most = high[place_of(t / size, c, pairs)];
      if (t % size == 0) least = most = code;
      least = std::min(least, code), most = std::max(most, code);
    }
}

template <class T>
void extend_pages_of(const T* keys, T* bounds, int from, int to, int size, int width, float (*value)(T)) {
  for (int t = from; t < to; t++) {
    const T* key = keys + (size_t)t * width;
    T* low = bounds + (size_t)(t / size) * 2 * width;
    T* high = low + width;
    if (t % size == 0) {
      memcpy(low, key, width * sizeof(T)), memcpy(high, key, width * sizeof(T));
      continue;
    }
    for (int c = 0; c < width; c++) {
      if (value(key[c]) < value(low[c])) low[c] = key[c];
      if (value(key[c]) > value(high[c])) high[c] = key[c];
    }
  }
}

void extend_pages(const ChooseArguments& a) {
  const Sizes& z = a.model.sizes;
  const int size = a.selection.page_size, width = z.head_dim, from = a.store.indexed / size * size;
  const size_t keys = (size_t)a.head * a.store.capacity * width, bounds = (size_t)a.head * (a.store.index_capacity / size) * 2 * width;
  if (z.kv_format == F32) {
    extend_pages_of((const float*)a.store.keys + keys, (float*)a.store.index + bounds, from, a.tokens, size, width, +[](float x) { return x; });
  } else {
    extend_pages_of((const uint16_t*)a.store.keys + keys, (uint16_t*)a.store.index + bounds, from, a.tokens, size, width, +[](uint16_t x) { return bf16_to_float(x); });
  }
}

// Sums of probabilities that underflow are equal zeros, and a choice among equals is none: then in the log domain.
void log_sum_softmax2(float* const* scores, int heads, int n, float* out) {
  std::vector<double> total(heads);
  for (int h = 0; h < heads; h++) {
    double most = -INFINITY, sum = 0;
    for (int t = 0; t < n; t++) most = std::max(most, (double)scores[h][t]);
    for (int t = 0; t < n; t++) sum += std::exp2(scores[h][t] - most);
    total[h] = most + std::log2(sum);
  }
  for (int t = 0; t < n; t++) {
    double most = -INFINITY, sum = 0;
    for (int h = 0; h < heads; h++) most = std::max(most, scores[h][t] - total[h]);
    for (int h = 0; h < heads; h++) sum += std::exp2(scores[h][t] - total[h] - most);
    out[t] = (float)(most + std::log2(sum));
  }
}

struct Scorer {
  const ChooseArguments& a;
  ChooseScratch& s;
  int heads, n = 0;  // heads that are reduced; tokens or pages scored
  std::vector<float*> rows{};
  std::vector<const int16_t*> codes{};
  std::vector<float> factors{};

  void room_for(int count) {
    n = count;
    const int room = round_up(n, PANEL) + LEAST_SLACK;
    s.scores.resize((size_t)heads * room);
    s.importance.resize(room);
    rows.resize(heads);
    for (int h = 0; h < heads; h++) rows[h] = s.scores.data() + (size_t)h * room;
  }

  void score_pages() {
    const Sizes& z = a.model.sizes;
    room_for((a.tokens + a.selection.page_size - 1) / a.selection.page_size);
    const char* bounds = a.store.index + (size_t)a.head * (a.store.index_capacity / a.selection.page_size) * 2 * z.head_dim * element(z.kv_format);
    for (int h = 0; h < heads; h++) a.model.kernels.score_pages(bounds, z.kv_format, z.head_dim, n, a.queries + h * z.head_dim, rows[h]);
  }

  // The importance queries with the keys' scales in them, rounded to 16 bits; and their positive and negative parts.
  void round_queries() {
    const int width = 2 * a.selection.pairs(), rank = a.selection.rank;
    const float* scales = a.pieces.key_scales + a.head * rank;
    s.codes.assign((size_t)3 * heads * width, 0);
    codes.resize(3 * heads), factors.resize(heads);
    // Sums of `rank` products stay below 2^31.
    const float steps = (float)std::min(32767, (1 << 24) / std::max(rank, 1) - 1);
    for (int h = 0; h < heads; h++) {
      const float* q = query(h);
      float largest = 0;
      for (int c = 0; c < rank; c++) largest = std::max(largest, std::fabs(q[c] * scales[c]));
      int16_t* of[3];
      for (int part = 0; part < 3; part++) codes[part * heads + h] = of[part] = s.codes.data() + (size_t)(part * heads + h) * width;
      for (int c = 0; c < rank; c++) {
        of[0][c] = (int16_t)(largest > 0 ? std::lrintf(q[c] * scales[c] / largest * steps) : 0);
        of[1][c] = std::max<int16_t>(of[0][c], 0), of[2][c] = std::min<int16_t>(of[0][c], 0);
      }
      factors[h] = largest / steps;
    }
  }

  const int8_t* keys() const { return (const int8_t*)a.store.index + (size_t)a.head * a.store.index_capacity * 2 * a.selection.pairs(); }

  void score_tokens() {
    room_for(a.tokens);
    a.model.kernels.score_keys(keys(), nullptr, a.selection.pairs(), n, heads, codes.data(), factors.data(), rows.data());
  }

  // Bounds of the pages up to `count`: positive parts of the queries times the largest keys, negative ones times the smallest.
  void score_key_pages(int count) {
    const int pairs = a.selection.pairs();
    room_for(count);
    const int8_t* low = (const int8_t*)a.store.pages + (size_t)a.head * 2 * a.store.page_capacity * 2 * pairs;
    a.model.kernels.score_keys(low + (size_t)a.store.page_capacity * 2 * pairs, nullptr, pairs, n, heads, codes.data() + heads, factors.data(), rows.data());
    const int room = round_up(n, PANEL);
    s.bounds.resize((size_t)heads * room);
    std::vector<float*> second(heads);
    for (int h = 0; h < heads; h++) second[h] = s.bounds.data() + (size_t)h * room;
    a.model.kernels.score_keys(low, nullptr, pairs, n, heads, codes.data() + 2 * heads, factors.data(), second.data());
    for (int h = 0; h < heads; h++)
      for (int p = 0; p < n; p++) rows[h][p] += second[h][p];
  }

  void score_blocks(const std::vector<int32_t>& blocks) {
    room_for((int)blocks.size() * PANEL);
    a.model.kernels.score_keys(keys(), blocks.data(), a.selection.pairs(), n, heads, codes.data(), factors.data(), rows.data());
  }

  // The importance query of a head, (rank).
  const float* query(int h) {
    if (a.pieces.query == EMITTED) return a.queries;
    const Matrix& projection = a.pieces.query_projection;
    const Sizes& z = a.model.sizes;
    const int group = z.query_heads / z.kv_heads, panels = projection.panels / a.pieces.query_projections;
    const int which = a.pieces.query_projections == z.kv_heads ? a.head : a.head * group + h;
    Matrix mine = projection;
    mine.panels = panels, mine.data += (size_t)which * panels * projection.panel_bytes;
    s.row.assign(projection.cols, 0.f);
    memcpy(s.row.data(), a.queries + h * z.head_dim, z.head_dim * sizeof(float));
    s.projected.resize((size_t)panels * PANEL);
    Input input{s.row.data(), nullptr, nullptr, nullptr, nullptr};
    float* output = s.projected.data();
    a.model.kernels.matvec(mine, 0, panels, 1, &input, &output);
    return output;
  }

  // One importance a token or page; larger is more important. `in_log` for the slow form that does not underflow.
  void reduce(bool in_log) {
    float* out = s.importance.data();
    if (heads == 1) {
      memcpy(out, rows[0], n * sizeof(float));
    } else if (a.selection.reduction == SOFTMAX_SUM) {
      if (in_log) log_sum_softmax2(rows.data(), heads, n, out);
      else a.model.kernels.sum_softmax2(rows.data(), heads, n, out);
    } else {
      for (int t = 0; t < n; t++) {
        float value = rows[0][t];
        for (int h = 1; h < heads; h++) value = a.selection.reduction == MAX ? std::max(value, rows[h][t]) : value + rows[h][t];
        out[t] = value;
      }
    }
  }

  // The `take` most important of [from, to) into s.taken, ascending.
  int best(int from, int to, int take, bool in_log) {
    const float* importance = s.importance.data();
    s.scratch.resize(to - from + LEAST_SLACK);
    s.taken.resize(to - from + LEAST_SLACK);
    const uint32_t* keys;
    if (positive(in_log)) {  // positive floats are in the order of their bits
      keys = (const uint32_t*)importance + from;
    } else {
      s.keys.resize(to - from + 1);
      for (int t = from; t < to; t++) s.keys[t - from] = ordered(importance[t]);
      keys = s.keys.data();
    }
    return top(a.model.kernels, keys, to - from, take, from, s.taken.data(), s.scratch.data());
  }

  // Whether importance is a sum of probabilities, and not in the log domain.
  bool positive(bool in_log) const { return heads > 1 && a.selection.reduction == SOFTMAX_SUM && !in_log; }

  bool underflown(int taken) const {
    if (heads == 1 || a.selection.reduction != SOFTMAX_SUM) return false;
    for (int i = 0; i < taken; i++)
      if (!(s.importance[s.taken[i]] > 1e-36f)) return true;
    return false;
  }
};

// Scores, reduces and takes; again in the log domain where probabilities underflow. `score` fills the rows of the scorer.
template <class Score>
int score_and_take(Scorer& scorer, Score score, int from, int to, int take) {
  score();
  scorer.reduce(false);
  int taken = scorer.best(from, to, take, false);
  if (scorer.underflown(taken)) score(), scorer.reduce(true), taken = scorer.best(from, to, take, true);
  return taken;
}

// Quest: the tokens of the best pages, of the last page as many as are left, the latest first.
void take_pages(const ChooseArguments& a, ChooseScratch& s, Scorer& scorer, int take, Choice& out) {
  const int size = a.selection.page_size, from = a.rule.sinks, to = a.tokens - a.rule.window;
  const int all = (a.tokens + size - 1) / size;
  // Pages of which sinks or window take a part have fewer tokens to give.
  const int enough = std::min(all, take / size + a.rule.window / size + a.rule.sinks / size + 6);
  const int pages = score_and_take(scorer, [&] { scorer.score_pages(); }, 0, all, enough);
  std::sort(s.taken.begin(), s.taken.begin() + pages, [&](int x, int y) {
    return s.importance[x] != s.importance[y] ? s.importance[x] > s.importance[y] : x > y;
  });
  for (int i = 0; i < pages && take > 0; i++) {
    const int last = std::min((s.taken[i] + 1) * size, to), first = std::max(s.taken[i] * size, from);
    for (int t = last - 1; t >= first && take > 0; t--, take--) out.indices.push_back(t);
  }
  std::sort(out.indices.begin(), out.indices.end());
}

// Pages by the bound of their importance keys, then the tokens of the best of them. What is always read takes part in the softmax.
void take_from_pages(const ChooseArguments& a, ChooseScratch& s, Scorer& scorer, int take, Choice& out) {
  const int size = a.rule.pages, from = a.rule.sinks, to = a.tokens - a.rule.window;
  const int first = from / size, last = (to - 1) / size, all = last - first + 1;
  const int kept = std::min(all, std::max((int)std::ceil((double)a.rule.page_share * all - 1e-6), take / size + 2));
  scorer.round_queries();
  auto bounds = [&] {
    scorer.score_key_pages(last + 1);
    for (float*& row : scorer.rows) row += first;
    scorer.n = all;
  };
  const int pages = score_and_take(scorer, bounds, 0, all, std::max(kept, 1));
  std::vector<int32_t>& blocks = s.blocks;
  blocks.clear();
  for (int i = 0; i < pages; i++)
    for (int b = 0; b < size / PANEL; b++) {
      const int block = (first + s.taken[i]) * (size / PANEL) + b;
      if (block * PANEL < to) blocks.push_back(block);
    }
  const int chosen = (int)blocks.size();
  auto add = [&](int block) {
    if (!std::binary_search(blocks.begin(), blocks.begin() + chosen, block) && (blocks.empty() || std::find(blocks.begin() + chosen, blocks.end(), block) == blocks.end()))
      blocks.push_back(block);
  };
  for (int t = 0; t < from; t += PANEL) add(t / PANEL);
  for (int block = to / PANEL; block <= (a.tokens - 1) / PANEL; block++) add(block);
  auto score = [&] {
    scorer.score_blocks(blocks);
    // Pages that were chosen are whole; of the other blocks only what is always read counts.
    for (int i = chosen * PANEL; i < scorer.n; i++) {
      const int t = blocks[i / PANEL] * PANEL + i % PANEL;
      if (t >= a.tokens || (t >= from && t < to))
        for (float* row : scorer.rows) row[i] = -INFINITY;
    }
  };
  // What is always read is not chosen.
  auto mask = [&](bool in_log) {
    const float least = scorer.positive(in_log) ? 0.f : -INFINITY;
    for (int b = 0; b < chosen; b++) {
      const int t = blocks[b] * PANEL;
      if (t >= from && t + PANEL <= to) continue;
      for (int i = 0; i < PANEL; i++)
        if (t + i < from || t + i >= to) s.importance[b * PANEL + i] = least;
    }
  };
  score();
  scorer.reduce(false);
  mask(false);
  int taken = scorer.best(0, chosen * PANEL, take, false);
  if (scorer.underflown(taken)) score(), scorer.reduce(true), mask(true), taken = scorer.best(0, chosen * PANEL, take, true);
  for (int i = 0; i < taken; i++) {
    out.indices.push_back(blocks[s.taken[i] / PANEL] * PANEL + s.taken[i] % PANEL);
    out.importance.push_back(s.importance[s.taken[i]]);
  }
}

// The most important of an earlier choice that have not become window; what is missing to the budget is filled up with the latest.
void take_remembered(const ChooseArguments& a, const Choice& choice, int take, std::vector<int32_t>& out) {
  const int from = a.rule.sinks, to = a.tokens - a.rule.window;
  std::vector<std::pair<float, int32_t>> held;
  for (size_t i = 0; i < choice.indices.size(); i++)
    if (choice.indices[i] >= from && choice.indices[i] < to) held.emplace_back(choice.importance[i], choice.indices[i]);
  const int n = std::min<int>(take, (int)held.size());
  std::partial_sort(held.begin(), held.begin() + n, held.end(), [&](auto& x, auto& y) {
    return x.first != y.first ? x.first > y.first : a.pieces.key == PAGES ? x.second > y.second : x.second < y.second;
  });
  for (int i = 0; i < n; i++) out.push_back(held[i].second);
  std::sort(out.begin(), out.end());
  for (int t = to - 1; t >= from && (int)out.size() < take; t--)
    if (!std::binary_search(out.begin(), out.begin() + n, t)) out.push_back(t);
  std::sort(out.begin(), out.end());
}

}  // namespace

int top(const Kernels& kernels, const uint32_t* keys, int n, int take, int base, int32_t* out, uint32_t* scratch) {
  if (take <= 0) return 0;
  if (take >= n) {
    for (int i = 0; i < n; i++) out[i] = base + i;
    return n;
  }
  // A cut is searched that few keys are near: by how many are above it, half by interpolation, half by bisection.
  uint32_t low = 0, high = UINT32_MAX;  // `take` or more keys are above the low one (or it is the least), fewer above the high one
  int above_low = n, above_high = 0;
  for (int pass = 0; above_low - above_high > FEW && high - low > 1; pass++) {
    const double share = pass % 2 ? 0.5 : std::min(0.9, std::max(0.1, (double)(above_low - take) / (above_low - above_high)));
    const uint32_t middle = std::min(high - 1, std::max(low + 1, low + (uint32_t)((high - low) * share)));
    const int count = kernels.count_above(keys, n, middle);
    if (count >= take) low = middle, above_low = count;
    else high = middle, above_high = count;
  }
  int larger = 0;
  const int found = kernels.between(keys, n, above_low == n ? low : low + 1, high, scratch, &larger);
  const int rank = take - larger;  // of the last key taken, among those found
  std::nth_element(scratch, scratch + rank - 1, scratch + found, std::greater<uint32_t>());
  const uint32_t cut = scratch[rank - 1];
  int above_cut = 0;
  for (int i = 0; i < rank - 1; i++) above_cut += scratch[i] > cut;
  return kernels.collect(keys, n, cut, rank - above_cut, base, out);
}

void extend_index(const ChooseArguments& a, ChooseScratch& s) {
  if (a.pieces.key == KEYS) extend_keys(a, s);
  if (a.pieces.key == KEYS && a.rule.pages) extend_key_pages(a);
  if (a.pieces.key == PAGES) extend_pages(a);
}

void choose(const ChooseArguments& a, ChooseScratch& s, Read& read) {
  const int n = a.tokens, from = a.rule.sinks, to = n - a.rule.window, take = a.budget - a.rule.sinks - a.rule.window;
  read.indices.clear();
  read.first = 0, read.count = a.budget;
  for (int t = 0; t < from; t++) read.indices.push_back(t);
  if (a.pieces.key == RECENCY) {
    for (int t = to - take; t < n; t++) read.indices.push_back(t);
    return;
  }
  Choice& before = a.store.choices[a.head];
  const bool reuse = a.rule.interval > 1 && before.made_at && n > before.made_at && n - before.made_at < a.rule.interval;
  Choice now;
  Scorer scorer{a, s, a.pieces.query == EMITTED ? 1 : a.model.sizes.query_heads / a.model.sizes.kv_heads};
  const bool pages = a.pieces.key == PAGES, paged = a.pieces.key == KEYS && a.rule.pages;
  if (reuse) {
    take_remembered(a, before, take, now.indices);
  } else if (pages) {
    take_pages(a, s, scorer, take, now);
  } else if (paged) {
    take_from_pages(a, s, scorer, take, now);
  } else {
    scorer.round_queries();
    const int taken = score_and_take(scorer, [&] { scorer.score_tokens(); }, from, to, take);
    now.indices.assign(s.taken.begin(), s.taken.begin() + taken);
  }
  read.indices.insert(read.indices.end(), now.indices.begin(), now.indices.end());
  for (int t = to; t < n; t++) read.indices.push_back(t);
  if (a.rule.interval > 1 && !reuse) {
    // Tokens of the window are remembered too: they leave it before the next choice.
    before.made_at = n;
    before.indices = read.indices;
    before.importance.resize(read.indices.size());
    for (size_t i = 0; i < read.indices.size(); i++) {
      const int t = read.indices[i], at = (int)i - from;
      if (!paged) before.importance[i] = pages ? s.importance[t / a.selection.page_size] : s.importance[t];
      else before.importance[i] = at >= 0 && at < (int)now.importance.size() ? now.importance[at] : s.importance_of_block(t);
    }
  }
}

}  // namespace sparsight
