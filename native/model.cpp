#include "model.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>

#include "choose.h"
#include "half.h"

namespace sparsight {

namespace {

constexpr float LOG2E = 1.4426950408889634f;

int share(int n, int thread, int threads) { return (int)((int64_t)n * thread / threads); }

// One row of activations with its quantised form, for matrices of up to `cols` columns.
struct Row {
  std::vector<float> values, scales, sums;
  std::vector<int8_t> codes;
  std::vector<int32_t> code_sums;

  void reserve(int cols) {
    values.assign(cols, 0.f), codes.assign(cols, 0);
    scales.assign(cols / GROUP, 0.f), sums.assign(cols / GROUP, 0.f), code_sums.assign(cols / GROUP, 0);
  }
  // `n` values are set; the columns behind them are zero.
  Input input(const Kernels& kernels, const Matrix& matrix, int n) {
    std::fill(values.begin() + n, values.begin() + matrix.cols, 0.f);
    if (matrix.format >= INT8) kernels.quantise(values.data(), matrix.cols, codes.data(), scales.data(), sums.data(), code_sums.data());
    return Input{values.data(), codes.data(), scales.data(), sums.data(), code_sums.data()};
  }
};

void add_bias(float* y, const float* bias, int from, int to) {
  if (bias)
    for (int i = from; i < to; i++) y[i] += bias[i];
}

// Rotary embedding (Su et al. 2021, arXiv:2104.09864) of the first 2 * channels channels.
void rotate(float* x, const float* cos, const float* sin, int channels) {
  for (int i = 0; i < channels; i++) {
    const float a = x[i], b = x[i + channels];
    x[i] = a * cos[i] - b * sin[i];
    x[i + channels] = b * cos[i] + a * sin[i];
  }
}

struct Piece {
  int row, head, start, count;  // of the tokens that the head reads
};

struct Private {
  std::vector<std::vector<float>> residual;                    // a sequence
  std::vector<std::vector<std::vector<float>>> producer;       // layer, sequence
  std::vector<Row> rows;                                       // two a sequence: of the layer, and of its producer
  std::vector<float> normed;
  std::vector<Piece> pieces;
  ChooseScratch scratch;
  std::vector<std::vector<char>> kept;                         // a row: which query heads
  std::vector<float> part, first, guess, other, look, arranged, joined;
  std::vector<int32_t> active;
  CutScratch cut;
};

}  // namespace

void matrix_row(const Matrix& m, int row, float* out) {
  const uint8_t* panel = m.data + (size_t)(row / PANEL) * m.panel_bytes;
  const int r = row % PANEL;
  for (int k = 0; k < m.cols; k++) {
    const int g = k / GROUP, c = k % GROUP;
    if (m.format == F32) {
      memcpy(out + k, panel + ((size_t)k * PANEL + r) * 4, 4);
    } else if (m.format == BF16) {
      uint16_t h;
      memcpy(&h, panel + ((size_t)(k / 2) * 2 * PANEL + 2 * r + k % 2) * 2, 2);
      out[k] = bf16_to_float(h);
    } else {
      const bool four = m.format == INT4;
      const int bytes = PANEL * GROUP / (four ? 2 : 1);
      const uint8_t* group = panel + (size_t)g * (bytes + (four ? 4 : 2) * PANEL);
      uint16_t scale, least = 0;
      memcpy(&scale, group + bytes + 2 * r, 2);
      if (four) {
        memcpy(&least, group + bytes + 2 * (PANEL + r), 2);
        const uint8_t byte = group[(c % 16 / 4) * 4 * PANEL + 4 * r + c % 4];
        out[k] = fp16_to_float(scale) * (float)(c < 16 ? byte & 15 : byte >> 4) + fp16_to_float(least);
      } else {
        out[k] = fp16_to_float(scale) * (float)(int8_t)group[(c / 4) * 4 * PANEL + 4 * r + c % 4];
      }
    }
  }
}

// What the threads of a step share, and the order in which they work.
class Step {
 public:
  Step(Model& model, Pool& pool, const StepArguments& arguments)
      : m(model), z(model.sizes), k(model.kernels), pool(pool), a(arguments), batch((int)arguments.sequences.size()) {
    group = z.query_heads / z.kv_heads;
    wide = z.query_heads * z.head_dim;
    const int kv_wide = z.kv_heads * z.head_dim;
    auto padded = [](int n) { return (n + PANEL - 1) / PANEL * PANEL; };
    query.resize(batch), foreseen.resize(batch), key.resize(batch), value.resize(batch), attended.resize(batch), gated.resize(batch);
    down.resize(batch), emitted.resize(batch);
    int hidden_width = 0, emitted_width = 0;
    if (a.selection) {
      for (auto& p : a.selection->producers) hidden_width = std::max(hidden_width, padded(p.down.rows));
      for (auto& p : a.selection->layers) emitted_width = std::max(emitted_width, padded(p.up.rows));
      hidden.resize(m.layers.size());
      for (auto& rows : hidden) rows.assign(batch, std::vector<float>(hidden_width));
    }
    if (!a.units.empty()) {
      int width = 0;
      for (const Units* u : a.units) width = std::max(width, u ? u->width : 0);
      shadows.resize(m.layers.size());
      for (auto& rows : shadows) rows.assign(batch, std::vector<float>(width));
      chunk_sums.resize((size_t)batch * CHUNKS * row_width());
      compact.assign((size_t)batch * wide, 0.f);
      computed = std::vector<std::atomic<int64_t>>(batch);
      if (a.heads_computed) a.heads_computed->assign(batch, 0);
      if (a.unit_record) {
        UnitRecord empty;
        empty.heads.resize(m.layers.size());
        empty.neurons.assign(m.layers.size(), std::vector<std::vector<int32_t>>(CHUNKS));
        a.unit_record->assign(batch, empty);
      }
    }
    if (a.activations) {
      const size_t neurons = (size_t)m.layers[0].gate_up.panels / 2 * PANEL;
      gates.assign(batch, std::vector<float>(neurons)), ups = gates;
      if (a.inputs_read) a.inputs_read->assign(batch, {});
    }
    columns = std::max({m.embedding.cols, padded(wide) + GROUP, m.layers[0].down.cols, m.head.cols, hidden_width + GROUP});
    for (int b = 0; b < batch; b++) {
      query[b].resize(padded(wide)), foreseen[b].resize(padded(wide));
      key[b].resize(padded(kv_wide)), value[b].resize(padded(kv_wide));
      attended[b].resize(padded(z.hidden)), down[b].resize(padded(z.hidden)), emitted[b].resize(emitted_width);
      gated[b].resize(m.layers[0].gate_up.panels * PANEL);
      offsets.push_back(b && a.sequences[b] == a.sequences[b - 1] ? offsets[b - 1] + 1 : 0);
      if (b + 1 == batch || a.sequences[b + 1] != a.sequences[b]) lasts.push_back(b);
      selects.push_back(a.selection && a.budgets[b] < tokens(b));
    }
    logits.resize(lasts.size());
    for (auto& row : logits) row.resize(z.vocab % PANEL ? m.head.panels * PANEL : 0);
    any_selects = std::any_of(selects.begin(), selects.end(), [](char c) { return c; });
    reads.resize((size_t)batch * z.kv_heads);
    privates.resize(pool.size());
    counters = std::vector<std::atomic<int>>(2 * m.layers.size());
    largest.resize((size_t)pool.size() * lasts.size());
    scaled.assign((size_t)batch * wide, 0.f);
    guesses.assign((size_t)batch * wide, 0.f);
    size_t most = 0;
    for (int b = 0; b < batch; b++) most += (size_t)z.kv_heads * ((tokens(b) + CHUNK - 1) / CHUNK + 1);
    totals.resize(most * group * 2), partial.resize(most * group * z.head_dim);
  }

  std::vector<int> run() {
    pool.run([this](int t) { thread(t); });
    const int n = (int)lasts.size();
    std::vector<int> best(n);
    for (int i = 0; i < n; i++) {
      Best all = largest[i];
      for (int t = 1; t < pool.size(); t++) {
        const Best& other = largest[(size_t)t * n + i];
        all.finite = all.finite && other.finite;
        if (other.value > all.value) all.value = other.value, all.index = other.index;
      }
      best[i] = all.finite ? all.index : -1;
      a.sequences[lasts[i]]->length += offsets[lasts[i]] + 1;
    }
    if (!a.units.empty() && a.neurons_computed) a.neurons_computed->assign(computed.begin(), computed.end());
    return best;
  }

 private:
  struct Best {
    float value = -INFINITY;
    int index = 0;
    bool finite = true;
  };
  using Rows = std::vector<std::vector<float>>;

  Model& m;
  const Sizes& z;
  const Kernels& k;
  Pool& pool;
  const StepArguments& a;
  int batch, group, wide, columns;
  Rows query, foreseen, key, value, attended, gated, down, emitted, logits;
  std::vector<Rows> hidden;  // of a producer's MLP: layer, sequence
  std::vector<int> offsets, lasts;  // of a row behind the sequence's length; the last row of each sequence
  std::vector<char> selects;
  bool any_selects;
  std::vector<Read> reads;
  std::vector<Private> privates;
  std::vector<std::atomic<int>> counters;
  std::vector<Best> largest;
  std::vector<float> scaled, guesses, totals, partial;
  std::vector<Rows> shadows;                // hidden layers that units are foretold from: layer, row
  std::vector<float> chunk_sums, compact;   // of the feed-forward part, arranged; queries of the heads that are computed
  std::vector<std::atomic<int64_t>> computed;
  Rows gates, ups;                          // of layers whose gate and up are cut

  int position(int b) const { return a.sequences[b]->length + offsets[b]; }
  int tokens(int b) const { return position(b) + 1; }
  const LayerUnits* units(int b, int l) const { return a.units.empty() || !a.units[b] ? nullptr : &a.units[b]->layers[l]; }
  bool skips_heads(int b, int l) const { return units(b, l) && units(b, l)->heads != EVERYTHING; }
  bool skips_neurons(int b, int l) const { return units(b, l) && units(b, l)->neurons != EVERYTHING; }
  bool cuts(int l, int part) const { return a.activations && a.activations->layers[l][part].cuts; }
  size_t row_width() const { return (size_t)(z.hidden + ROW_PAD - 1) / ROW_PAD * ROW_PAD; }
  const Pieces* pieces(int l) const { return any_selects && a.selection->layers[l].selects ? &a.selection->layers[l] : nullptr; }

  std::vector<float*> pointers(Rows& rows) {
    std::vector<float*> out;
    for (auto& row : rows) out.push_back(row.data());
    return out;
  }

  // This thread's share of a matrix times all inputs.
  void multiply(int t, const Matrix& matrix, const std::vector<Input>& x, const std::vector<float*>& y, const float* bias) {
    const int p0 = share(matrix.panels, t, pool.size()), p1 = share(matrix.panels, t + 1, pool.size());
    k.matvec(matrix, p0, p1, (int)x.size(), x.data(), y.data());
    for (float* row : y) add_bias(row, bias, p0 * PANEL, std::min(p1 * PANEL, matrix.rows));
  }

  // This thread's outputs of a matrix of which only some columns are read; `x` may hold more rows than the batch.
  void multiply_inputs(int t, int l, int part, Private& own, const std::vector<Input>& x, const std::vector<float*>& y) {
    std::vector<const float*> from;
    for (int b = 0; b < batch; b++) from.push_back(x[b].values);
    std::vector<int> read(batch);
    multiply_cut(k, m.layers[l].columns[part], a.activations->layers[l][part], batch, from.data(), y.data(), t, pool.size(), own.cut, read.data());
    for (int b = 0; t == 0 && a.inputs_read && b < batch; b++) (*a.inputs_read)[b][part] += read[b];
  }

  void thread(int t) {
    Private& own = privates[t];
    own.residual.assign(batch, std::vector<float>(z.hidden));
    own.rows.resize(2 * batch);
    for (auto& row : own.rows) row.reserve(columns);
    own.normed.resize(z.hidden);
    own.producer.assign(m.layers.size(), {});
    if (!a.units.empty()) {
      own.kept.assign(batch, std::vector<char>(z.query_heads));
      const size_t neurons = (size_t)m.layers[0].gate_up.panels / 2 * PANEL;
      for (auto* buffer : {&own.first, &own.guess, &own.other}) buffer->resize(neurons);
      own.active.resize(neurons), own.arranged.resize(row_width()), own.joined.resize(row_width());
      own.part.resize(std::max({neurons, (size_t)m.layers[0].attention.panels * PANEL, (size_t)z.query_heads + PANEL}));
    }
    std::vector<float> row(m.embedding.cols);
    for (int b = 0; b < batch; b++) {
      matrix_row(m.embedding, a.tokens[b], row.data());
      for (int i = 0; i < z.hidden; i++) own.residual[b][i] = row[i] * z.embedding_scale;
    }
    for (int l = 0; l < (int)m.layers.size(); l++) {
      project(t, l, own);
      pool.barrier();
      select(l, own);
      pool.barrier();
      attend(l, own);
      pool.barrier();
      join(t, l, own);
      pool.barrier();
      for (int b = 0; b < batch; b++) add_to_residual(own, b, attended[b].data(), m.layers[l].attention_norm);
      std::vector<int> whole;
      for (int b = 0; b < batch; b++)
        if (!skips_neurons(b, l)) whole.push_back(b);
      feed_forward_up(t, l, own, whole);
      pool.barrier();
      if (!whole.empty()) {
        feed_forward_down(t, l, own, whole);
        pool.barrier();
      }
      for (int b = 0; b < batch; b++) add_to_residual(own, b, skips_neurons(b, l) ? join_chunks(own, b, l) : down[b].data(), m.layers[l].output_norm);
    }
    predict(t, own);
  }

  void project(int t, int l, Private& own) {
    const Layer& layer = m.layers[l];
    const Pieces* p = pieces(l);
    std::vector<Input> x;
    for (int b = 0; b < batch; b++) {
      k.rms_norm(own.residual[b].data(), layer.input_norm, own.rows[b].values.data(), z.hidden, z.eps);
      x.push_back(own.rows[b].input(k, layer.query, z.hidden));
    }
    if (cuts(l, KEY_PART)) multiply_inputs(t, l, KEY_PART, own, x, pointers(key));
    else multiply(t, layer.key, x, pointers(key), layer.key_bias);
    if (cuts(l, VALUE_PART)) multiply_inputs(t, l, VALUE_PART, own, x, pointers(value));
    else multiply(t, layer.value, x, pointers(value), layer.value_bias);
    std::vector<float*> y = pointers(query);
    if (p && p->query == FORESEEN) {
      // The look-ahead queries are multiplied together with the true ones, so that W_Q is read once.
      for (int b = 0; b < batch; b++) {
        k.rms_norm(own.producer[p->producer][b].data(), layer.input_norm, own.rows[batch + b].values.data(), z.hidden, z.eps);
        x.push_back(own.rows[batch + b].input(k, layer.query, z.hidden));
        y.push_back(foreseen[b].data());
      }
    }
    if (cuts(l, QUERY)) {
      multiply_inputs(t, l, QUERY, own, x, y);
      if ((int)x.size() > batch) multiply(t, layer.query, {x.begin() + batch, x.end()}, {y.begin() + batch, y.end()}, layer.query_bias);
    } else if (a.units.empty()) {
      multiply(t, layer.query, x, y, layer.query_bias);
    } else {
      choose_heads(t, l, own);
      multiply_queries(t, l, own, x, y);
      foretell(t, l, x);
    }
    if (!any_selects) return;
    if (p && p->query != TRUE_QUERY) {
      std::vector<Input> inner;
      for (int b = 0; b < batch; b++) {
        Row& row = own.rows[batch + b];
        std::copy_n(hidden[p->producer][b].begin(), producer_of(p->producer).down.rows, row.values.begin());
        inner.push_back(row.input(k, p->up, producer_of(p->producer).down.rows));
      }
      multiply(t, p->up, inner, pointers(emitted), nullptr);
    }
    if (const Producer& producer = a.selection->producers[l]; producer.norm_weight) {
      own.producer[l] = own.residual;
      if (!producer.down.panels) return;
      std::vector<Input> inner;
      for (int b = 0; b < batch; b++) {
        Row& row = own.rows[batch + b];
        k.layer_norm(own.rows[b].values.data(), producer.norm_weight, producer.norm_bias, row.values.data(), z.hidden, 1e-5f);
        inner.push_back(row.input(k, producer.down, z.hidden));
      }
      std::vector<float*> out = pointers(hidden[l]);
      const int p0 = share(producer.down.panels, t, pool.size()), p1 = share(producer.down.panels, t + 1, pool.size());
      k.matvec(producer.down, p0, p1, batch, inner.data(), out.data());
      for (float* row : out) k.gate(row + p0 * PANEL, nullptr, (p1 - p0) * PANEL, SILU);
    }
  }

  const Producer& producer_of(int layer) const { return a.selection->producers[layer]; }

  // A query or key as attention sees it: normed by head, then turned.
  void finish_head(float* x, const float* norm, const Rotary& turn, int at) {
    if (norm) k.rms_norm(x, norm, x, z.head_dim, z.eps);
    if (turn.channels) rotate(x, turn.cos + (size_t)at * turn.channels, turn.sin + (size_t)at * turn.channels, turn.channels);
  }

  void select(int l, Private& own) {
    const Layer& layer = m.layers[l];
    const Pieces* p = pieces(l);
    static const Rotary still;
    const Rotary& turn = m.rotary.empty() ? still : m.rotary[layer.rotary];
    const float factor = z.scaling * LOG2E;
    for (int item; (item = counters[2 * l].fetch_add(1)) < batch * z.kv_heads;) {
      const int b = item / z.kv_heads, h = item % z.kv_heads, at = position(b);
      Store& store = a.sequences[b]->layers[l];
      const int slot = at - store.offset;
      float *own_key = key[b].data() + h * z.head_dim, *own_value = value[b].data() + h * z.head_dim;
      finish_head(own_key, layer.key_norm, turn, at);
      const size_t place = ((size_t)h * store.capacity + slot) * z.head_dim;
      for (int c = 0; c < z.head_dim; c++) {
        if (z.kv_format == F32) {
          ((float*)store.keys)[place + c] = own_key[c], ((float*)store.values)[place + c] = own_value[c];
        } else {
          ((uint16_t*)store.keys)[place + c] = float_to_bf16(own_key[c]), ((uint16_t*)store.values)[place + c] = float_to_bf16(own_value[c]);
        }
      }
      const bool foresees = p && selects[b] && p->query == FORESEEN;
      const size_t first_head = (size_t)h * group * z.head_dim;
      const char* kept = skips_heads(b, l) ? own.kept[b].data() + (size_t)h * group : nullptr;
      float* dense = kept ? compact.data() + (size_t)b * wide + first_head : nullptr;
      float* mine = scaled.data() + (size_t)b * wide + first_head;
      float* guess = guesses.data() + (size_t)b * wide + first_head;
      for (int g = 0; g < group; g++) {
        float* q = query[b].data() + first_head + g * z.head_dim;
        if (!kept || kept[g]) {
          finish_head(q, layer.query_norm, turn, at);
          if (a.queries) std::copy_n(q, z.head_dim, a.queries + ((size_t)l * batch + b) * wide + first_head + g * z.head_dim);
          for (int c = 0; c < z.head_dim; c++) mine[g * z.head_dim + c] = q[c] * factor;
          if (kept) dense = std::copy_n(mine + g * z.head_dim, z.head_dim, dense);
        } else {
          std::fill_n(mine + g * z.head_dim, z.head_dim, 0.f);
        }
        if (!foresees) continue;
        float* f = foreseen[b].data() + first_head + g * z.head_dim;
        if (layer.query_norm) k.rms_norm(f, layer.query_norm, f, z.head_dim, z.eps);
        for (int c = 0; c < z.head_dim; c++) f[c] += emitted[b][first_head + g * z.head_dim + c];
        finish_head(f, nullptr, turn, at);
        for (int c = 0; c < z.head_dim; c++) guess[g * z.head_dim + c] = f[c] * factor;
      }
      Read& read = reads[(size_t)b * z.kv_heads + h];
      if (p && selects[b]) {
        const float* queries = foresees ? guess : mine;
        std::vector<float> given;
        if (p->query == EMITTED) {
          given.resize(a.selection->rank);
          for (int c = 0; c < a.selection->rank; c++) given[c] = emitted[b][h * a.selection->rank + c] * p->scale * LOG2E;
          queries = given.data();
        }
        ChooseArguments arguments{m, *a.selection, *p, store, l, h, tokens(b), a.budgets[b], a.rule, queries};
        extend_index(arguments, own.scratch);
        choose(arguments, own.scratch, read);
      } else {
        read.indices.clear();
        read.first = layer.window ? std::max(0, slot + 1 - layer.window) : 0;
        read.count = slot + 1;
      }
      if (a.record) (*a.record)[l][(size_t)b * z.kv_heads + h] = read;
    }
  }

  void attend(int l, Private& own) {
    // Pieces are cut by the tokens of a head alone, and joined in their order: the same sums whatever the threads and the batch.
    own.pieces.clear();
    for (int b = 0; b < batch; b++)
      for (int h = 0; h < z.kv_heads; h++) {
        if (!heads_of(own, b, h, l)) continue;
        const Read& read = reads[(size_t)b * z.kv_heads + h];
        const int from = read.indices.empty() ? read.first : 0, to = read.indices.empty() ? read.count : (int)read.indices.size();
        for (int start = from; start < to; start += CHUNK) own.pieces.push_back({b, h, start, std::min(CHUNK, to - start)});
      }
    for (int item; (item = counters[2 * l + 1].fetch_add(1)) < (int)own.pieces.size();) {
      const Piece& piece = own.pieces[item];
      const Store& store = a.sequences[piece.row]->layers[l];
      const Read& read = reads[(size_t)piece.row * z.kv_heads + piece.head];
      const size_t at = (size_t)piece.head * store.capacity * z.head_dim * (z.kv_format == F32 ? 4 : 2);
      Attend work;
      work.keys = store.keys + at, work.values = store.values + at;
      work.format = z.kv_format, work.stride = work.head_dim = z.head_dim, work.heads = heads_of(own, piece.row, piece.head, l);
      work.queries = (skips_heads(piece.row, l) ? compact : scaled).data() + (size_t)piece.row * wide + (size_t)piece.head * group * z.head_dim;
      work.indices = read.indices.empty() ? nullptr : read.indices.data() + piece.start;
      work.start = piece.start, work.count = piece.count;
      work.beyond = (read.indices.empty() ? read.count : (int)read.indices.size()) - piece.start - piece.count;
      work.largest = totals.data() + (size_t)item * 2 * group, work.total = work.largest + group;
      work.out = partial.data() + (size_t)item * group * z.head_dim;
      k.attend(work);
    }
  }

  // Joins the pieces of attention and multiplies with the output projection.
  void join(int t, int l, Private& own) {
    const Layer& layer = m.layers[l];
    std::vector<Input> x;
    for (int b = 0; b < batch; b++) std::fill_n(own.rows[b].values.begin(), wide, 0.f);
    for (size_t i = 0; i < own.pieces.size();) {
      const int b = own.pieces[i].row, h = own.pieces[i].head;
      size_t end = i;
      while (end < own.pieces.size() && own.pieces[end].row == b && own.pieces[end].head == h) end++;
      int place = 0;
      for (int head = 0; head < group; head++) {
        if (skips_heads(b, l) && !own.kept[b][(size_t)h * group + head]) continue;
        const int g = place++;
        float most = -INFINITY, total = 0;
        for (size_t j = i; j < end; j++) most = std::max(most, totals[j * 2 * group + g]);
        float* out = own.rows[b].values.data() + ((size_t)h * group + head) * z.head_dim;
        for (size_t j = i; j < end; j++) {
          const float weight = std::exp2(totals[j * 2 * group + g] - most);
          total += weight * totals[j * 2 * group + group + g];
          const float* from = partial.data() + (j * group + g) * z.head_dim;
          for (int c = 0; c < z.head_dim; c++) out[c] += weight * from[c];
        }
        for (int c = 0; c < z.head_dim; c++) out[c] /= total;
      }
      i = end;
    }
    for (int b = 0; b < batch; b++) x.push_back(own.rows[b].input(k, layer.attention, wide));
    if (cuts(l, HEAD_OUTPUT)) multiply_inputs(t, l, HEAD_OUTPUT, own, x, pointers(attended));
    else multiply_outputs(t, l, own, x);
    // Every head has been indexed by now.
    if (t == 0 && pieces(l))
      for (int b = 0; b < batch; b++)
        if (selects[b]) {
          Store& store = a.sequences[b]->layers[l];
          store.indexed = tokens(b);
          if (a.rule.pages) store.paged = tokens(b), store.page_tokens = a.rule.pages;
        }
  }

  void add_to_residual(Private& own, int b, const float* from, const float* norm) {
    if (norm) k.rms_norm(from, norm, own.normed.data(), z.hidden, z.eps), from = own.normed.data();
    for (int i = 0; i < z.hidden; i++) own.residual[b][i] += from[i];
  }

#include "skip.inl"

  void feed_forward_up(int t, int l, Private& own, const std::vector<int>& whole) {
    const Layer& layer = m.layers[l];
    std::vector<Input> x;
    std::vector<float*> y;
    for (int b = 0; b < batch; b++) {
      k.rms_norm(own.residual[b].data(), layer.ffn_norm, own.rows[b].values.data(), z.hidden, z.eps);
      const Input input = own.rows[b].input(k, layer.gate_up, z.hidden);
      if (skips_neurons(b, l)) some_neurons(t, l, b, own, input);
      else x.push_back(input), y.push_back(gated[b].data());
    }
    if (whole.empty()) return;
    if (cuts(l, GATE_PART)) {
      // Gate and up have as many outputs, so a thread has the same of both.
      multiply_inputs(t, l, GATE_PART, own, x, pointers(gates));
      multiply_inputs(t, l, UP_PART, own, x, pointers(ups));
      int from, to;
      cut_share(layer.columns[GATE_PART], t, pool.size(), &from, &to);
      for (int b = 0; b < batch && from < to; b++) k.gate(gates[b].data() + from, ups[b].data() + from, to - from, z.activation);
      return;
    }
    const int pairs = layer.gate_up.panels / 2;
    const int p0 = share(pairs, t, pool.size()), p1 = share(pairs, t + 1, pool.size());
    k.matvec(layer.gate_up, 2 * p0, 2 * p1, (int)x.size(), x.data(), y.data());
    for (float* row : y) {
      add_bias(row, layer.gate_up_bias, 2 * p0 * PANEL, 2 * p1 * PANEL);
      for (int p = p0; p < p1; p++) k.gate(row + 2 * p * PANEL, row + (2 * p + 1) * PANEL, PANEL, z.activation);
    }
  }

  void feed_forward_down(int t, int l, Private& own, const std::vector<int>& whole) {
    const Layer& layer = m.layers[l];
    std::vector<Input> x;
    std::vector<float*> y;
    for (int b : whole) {
      float* to = own.rows[b].values.data();
      if (cuts(l, GATE_PART)) std::copy_n(gates[b].begin(), z.intermediate, to);
      for (int p = 0; !cuts(l, GATE_PART) && p < layer.gate_up.panels / 2; p++)
        memcpy(to + p * PANEL, gated[b].data() + 2 * p * PANEL, std::min(PANEL, z.intermediate - p * PANEL) * sizeof(float));
      x.push_back(own.rows[b].input(k, layer.down, z.intermediate));
      y.push_back(down[b].data());
    }
    if (cuts(l, DOWN)) multiply_inputs(t, l, DOWN, own, x, y);
    else multiply(t, layer.down, x, y, layer.down_bias);
  }

  void predict(int t, Private& own) {
    std::vector<Input> x;
    std::vector<float*> y;
    std::vector<char> finite;
    const int n = (int)lasts.size();
    for (int i = 0; i < n; i++) {
      const std::vector<float>& residual = own.residual[lasts[i]];
      float sum = 0;
      for (float v : residual) sum += v * 0.f;  // 0, or NaN
      finite.push_back(sum == 0);
      k.rms_norm(residual.data(), m.final_norm, own.rows[i].values.data(), z.hidden, z.eps);
      x.push_back(own.rows[i].input(k, m.head, z.hidden));
      y.push_back(logits[i].empty() ? a.logits + (size_t)i * z.vocab : logits[i].data());
    }
    multiply(t, m.head, x, y, nullptr);
    const int from = share(m.head.panels, t, pool.size()) * PANEL, to = std::min(share(m.head.panels, t + 1, pool.size()) * PANEL, z.vocab);
    for (int i = 0; i < n; i++) {
      Best best;
      best.index = from;
      best.finite = finite[i];
      for (int v = from; v < to; v++) {
        if (y[i][v] > best.value) best.value = y[i][v], best.index = v;
        best.finite &= y[i][v] - y[i][v] == 0;
      }
      if (!logits[i].empty()) memcpy(a.logits + (size_t)i * z.vocab + from, y[i] + from, std::max(0, to - from) * sizeof(float));
      largest[(size_t)t * n + i] = best;
    }
  }
};

Model::Model(const Sizes& s, const Kernels& k) : sizes(s), kernels(k), layers(s.layers) {}
Model::~Model() = default;

std::vector<int> Model::step(Pool& pool, const StepArguments& arguments) {
  std::lock_guard<std::mutex> one_at_a_time(busy_);
  return Step(*this, pool, arguments).run();
}

}  // namespace sparsight
