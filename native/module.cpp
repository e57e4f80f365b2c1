// What Python sees. Every size is checked here: the code below trusts its arguments.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <tuple>

#include "choose.h"
#include "crush.h"
#include "half.h"
#include "model.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace sparsight;

namespace {

using Bytes = nb::ndarray<uint8_t, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Halves = nb::ndarray<uint16_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Table = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Ints = nb::ndarray<int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Words = nb::ndarray<int64_t, nb::c_contig, nb::device::cpu>;

void need(bool holds, const std::string& what) {
  if (!holds) throw Misfit(what);
}

std::string text(size_t n) { return std::to_string(n); }

// An array as it is: converted to another dtype or layout it would be a copy, gone when its pointer is used.
template <class Array>
Array array(nb::handle object, const std::string& what) {
  Array found;
  need(nb::try_cast(object, found, false), what + " must be a contiguous, writable array on the CPU, of the right dtype and dimensions");
  return found;
}

bool aligned(const void* p, size_t bytes) { return (uintptr_t)p % bytes == 0; }

std::vector<const Kernels*> levels() {
  std::vector<const Kernels*> found{&kernels_portable};
#ifdef SPARSIGHT_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
    found.push_back(&kernels_avx2);
#ifdef SPARSIGHT_EMULATE_AVX512
    found.push_back(&kernels_avx512);
#else
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni"))
      found.push_back(&kernels_avx512);
#endif
  }
#endif
  return found;
}

const Kernels& level(const std::string& name) {
  std::string known;
  for (const Kernels* k : levels()) {
    if (name == k->name) return *k;
    known += (known.empty() ? "" : ", ") + std::string(k->name);
  }
  throw Misfit("no instruction set level '" + name + "' on this machine; it has " + known);
}

struct PyMatrix {
  Matrix matrix;
  Bytes held;

  PyMatrix(int format, int rows, int cols, Bytes data) : held(data) {
    need(format >= F32 && format <= INT4, "format must be 0 to 3, got " + std::to_string(format));
    need(rows > 0 && cols > 0 && cols % GROUP == 0 && rows < 1 << 30 && cols < 1 << 30, "a matrix needs rows, and columns in multiples of " + text(GROUP));
    matrix.format = format, matrix.rows = rows, matrix.cols = cols;
    matrix.panels = (rows + PANEL - 1) / PANEL;
    matrix.panel_bytes = panel_bytes_of(format, cols);
    const size_t expected = (size_t)matrix.panels * matrix.panel_bytes;
    need(data.nbytes() == expected, "a matrix of " + text(rows) + " x " + text(cols) + " needs " + text(expected) + " bytes, got " + text(data.nbytes()));
    matrix.data = data.data();
  }
};

const float* floats(nb::handle object, size_t n, const std::string& what) {
  Floats found = array<Floats>(object, what);
  need(found.shape(0) == n, what + " must have " + text(n) + " values, got " + text(found.shape(0)));
  need(aligned(found.data(), sizeof(float)), what + " must be aligned");
  return found.data();
}

// One number, or `n` bfloat16 given by their bits.
PerInput per_input(nb::handle object, size_t n, const std::string& what) {
  PerInput found;
  if (nb::isinstance<nb::float_>(object)) {
    found.one = nb::cast<float>(object);
    need(!std::isnan(found.one), what + " is not a number");
    return found;
  }
  Halves own = array<Halves>(object, what);
  need(own.shape(0) == n, what + " must have " + text(n) + " values, got " + text(own.shape(0)));
  need(aligned(own.data(), sizeof(uint16_t)), what + " must be aligned");
  for (size_t i = 0; i < n; i++) need(!std::isnan(bf16_to_float(own.data()[i])), what + " holds what is not a number");
  found.own = own.data();
  return found;
}

Cutting cutting(nb::handle centre, nb::handle threshold, size_t inputs) {
  const Cutting cut{true, per_input(centre, inputs, "centre"), per_input(threshold, inputs, "threshold")};
  bool finite = std::isfinite(cut.centre.one);
  for (size_t i = 0; cut.centre.own && i < inputs; i++) finite = finite && std::isfinite(bf16_to_float(cut.centre.own[i]));
  need(finite, "centres must be finite");
  return cut;
}

struct PyModel {
  Model model;
  std::vector<nb::object> held;

  PyModel(const Sizes& s, const std::string& name) : model(checked(s), level(name)) {}

  static const Sizes& checked(const Sizes& s) {
    need(s.layers > 0 && s.hidden > 0 && s.intermediate > 0 && s.vocab > 0 && s.kv_heads > 0, "sizes must be positive");
    need(std::max({s.layers, s.query_heads}) <= 1 << 16 && std::max({s.hidden, s.intermediate, s.vocab}) <= 1 << 28, "sizes are out of range");
    need(s.query_heads > 0 && s.query_heads % s.kv_heads == 0, "query heads must be a multiple of the KV heads");
    need(s.head_dim > 0 && s.head_dim <= 512, "head_dim must be 1 to 512, got " + std::to_string(s.head_dim));
    need(s.kv_format == F32 || s.kv_format == BF16, "keys and values are kept in float32 or bfloat16");
    need(s.activation == SILU || s.activation == GELU_TANH, "unknown activation");
    return s;
  }

  Layer& layer(int i) {
    need(i >= 0 && i < model.sizes.layers, "no layer " + std::to_string(i));
    return model.layers[i];
  }

  void set_vector(int i, const std::string& name, nb::object object) {
    Layer& l = layer(i);
    const Sizes& z = model.sizes;
    const size_t q = (size_t)z.query_heads * z.head_dim, kv = (size_t)z.kv_heads * z.head_dim, hidden = z.hidden, head = z.head_dim;
    const size_t panels = (size_t)(z.intermediate + PANEL - 1) / PANEL * 2 * PANEL;
    const struct { const char* name; const float** to; size_t n; } table[] = {
        {"input_norm", &l.input_norm, hidden}, {"attention_norm", &l.attention_norm, hidden}, {"ffn_norm", &l.ffn_norm, hidden},
        {"output_norm", &l.output_norm, hidden}, {"query_norm", &l.query_norm, head}, {"key_norm", &l.key_norm, head},
        {"query_bias", &l.query_bias, q}, {"key_bias", &l.key_bias, kv}, {"value_bias", &l.value_bias, kv},
        {"attention_bias", &l.attention_bias, hidden}, {"gate_up_bias", &l.gate_up_bias, panels}, {"down_bias", &l.down_bias, hidden}};
    for (auto& entry : table)
      if (name == entry.name) {
        *entry.to = floats(object, entry.n, name);
        held.push_back(object);
        return;
      }
    throw Misfit("a layer has no vector '" + name + "'");
  }

  void set_matrix(int i, const std::string& name, nb::object object) {
    Layer& l = layer(i);
    const Sizes& z = model.sizes;
    const int q = z.query_heads * z.head_dim, kv = z.kv_heads * z.head_dim, hidden = z.hidden;
    const int gate_up = (z.intermediate + PANEL - 1) / PANEL * 2 * PANEL;
    const struct { const char* name; Matrix* to; int rows, cols; } table[] = {
        {"query", &l.query, q, hidden}, {"key", &l.key, kv, hidden}, {"value", &l.value, kv, hidden}, {"attention", &l.attention, hidden, q},
        {"gate_up", &l.gate_up, gate_up, hidden}, {"down", &l.down, hidden, z.intermediate}};
    for (auto& entry : table)
      if (name == entry.name) {
        *entry.to = fitting(object, entry.rows, entry.cols, name);
        held.push_back(object);
        return;
      }
    throw Misfit("a layer has no matrix '" + name + "'");
  }

  // (neurons, bytes): a row of gate, a row of up and a column of W_down each.
  void set_records(int i, nb::object object, int format) {
    Layer& l = layer(i);
    need(format == F32 || format == BF16, "neurons are read in float32 or bfloat16");
    const size_t element = format == F32 ? 4 : 2, row = (size_t)3 * model.sizes.hidden * element;
    Bytes found = array<Bytes>(object, "records");
    need(found.ndim() == 2 && found.shape(0) == (size_t)model.sizes.intermediate && found.shape(1) == row,
         "records must be (" + text(model.sizes.intermediate) + ", " + text(row) + ") bytes");
    need(aligned(found.data(), element), "records must be aligned");
    l.records = (const char*)found.data(), l.record_format = format;
    held.push_back(object);
  }

  // The transposed matrix: (inputs, bytes of a row).
  void set_columns(int i, int part, nb::object object, int format) {
    Layer& l = layer(i);
    need(part >= 0 && part < PARTS, "no such matrix of a layer");
    need(format == F32 || format == BF16 || format == INT8, "columns are kept in float32, bfloat16 or int8");
    const Sizes& z = model.sizes;
    const int wide = z.query_heads * z.head_dim, kv = z.kv_heads * z.head_dim;
    const int inputs[PARTS] = {z.hidden, z.hidden, z.hidden, wide, z.hidden, z.hidden, z.intermediate};
    const int outputs[PARTS] = {wide, kv, kv, z.hidden, z.intermediate, z.intermediate, z.hidden};
    Columns c{nullptr, format, inputs[part], outputs[part], columns_stride(format, outputs[part])};
    Bytes found = array<Bytes>(object, "columns");
    need(found.ndim() == 2 && found.shape(0) == (size_t)c.inputs && found.shape(1) == c.stride,
         "columns must be (" + text(c.inputs) + ", " + text(c.stride) + ") bytes");
    need(format == INT8 || aligned(found.data(), format == F32 ? 4 : 2), "columns must be aligned");
    c.data = (const char*)found.data();
    l.columns[part] = c;
    held.push_back(object);
  }

  static const Matrix& matrix(nb::handle object, const std::string& what) {
    need(nb::isinstance<PyMatrix>(object), what + " must be a Matrix");
    return nb::cast<PyMatrix&>(object).matrix;
  }

  static Matrix fitting(nb::handle object, int rows, int cols, const std::string& what) {
    const Matrix& m = matrix(object, what);
    const int padded = (cols + GROUP - 1) / GROUP * GROUP;
    need(m.rows == rows && m.cols == padded, what + " must be " + text(rows) + " x " + text(padded) + ", got " + text(m.rows) + " x " + text(m.cols));
    return m;
  }

  void set_window(int i, int window) {
    need(window >= 0, "a window is not negative");
    layer(i).window = window;
  }

  void set_rotary(int i, int kind) {
    need(kind >= 0 && kind < 16, "a model has at most 16 rotary tables");
    layer(i).rotary = kind;
  }

  void set_table(int kind, nb::object cos, nb::object sin) {
    Table c = array<Table>(cos, "cos"), s = array<Table>(sin, "sin");
    need(kind >= 0 && kind < 16, "a model has at most 16 rotary tables");
    need(c.shape(0) == s.shape(0) && c.shape(1) == s.shape(1), "cos and sin must have the same shape");
    need(2 * c.shape(1) <= (size_t)model.sizes.head_dim, "a rotation turns at most head_dim channels");
    need(aligned(c.data(), sizeof(float)) && aligned(s.data(), sizeof(float)) && c.shape(0) < 1u << 30, "cos and sin must be aligned, and not that long");
    if ((int)model.rotary.size() <= kind) model.rotary.resize(kind + 1), tables.resize(kind + 1);
    model.rotary[kind] = Rotary{c.data(), s.data(), (int)c.shape(0), (int)c.shape(1)};
    tables[kind] = nb::make_tuple(cos, sin);
  }

  void set_ends(nb::object embedding, nb::object head, nb::object final_norm) {
    model.embedding = fitting(embedding, model.sizes.vocab, model.sizes.hidden, "embedding");
    model.head = fitting(head, model.sizes.vocab, model.sizes.hidden, "head");
    model.final_norm = floats(final_norm, model.sizes.hidden, "final_norm");
    held.push_back(embedding), held.push_back(head), held.push_back(final_norm);
  }

  void seal() {
    need(model.final_norm != nullptr, "the model has no embedding, head and final norm");
    for (int i = 0; i < model.sizes.layers; i++) {
      const Layer& l = model.layers[i];
      for (const Matrix* m : {&l.query, &l.key, &l.value, &l.attention, &l.gate_up, &l.down})
        need(m->data != nullptr, "layer " + std::to_string(i) + " lacks a matrix");
      need(l.input_norm && l.ffn_norm, "layer " + std::to_string(i) + " lacks a norm");
      need(model.rotary.empty() || l.rotary < (int)model.rotary.size(), "layer " + std::to_string(i) + " has no rotary table");
    }
    sealed = true;
  }

  std::vector<nb::object> tables;
  bool sealed = false;
};

struct PySelection {
  Selection selection;
  const Sizes sizes;
  std::vector<nb::object> held;

  PySelection(const PyModel& model, int rank, int page_size, int reduction) : sizes(model.model.sizes) {
    need(rank >= 0 && rank <= 512, "rank must be at most 512");
    need(page_size >= 0 && page_size <= 1 << 20, "page_size is out of range");
    need(reduction >= SOFTMAX_SUM && reduction <= MEAN, "unknown reduction");
    selection.rank = rank, selection.page_size = page_size, selection.reduction = reduction;
    selection.layers.resize(sizes.layers), selection.producers.resize(sizes.layers);
  }

  void check_layer(int i) const { need(i >= 0 && i < sizes.layers, "no layer " + std::to_string(i)); }

  void set_layer(int i, int key, int query, int producer, float scale, nb::object query_projection, int projections, nb::object key_projection,
                 nb::object key_scales, nb::object up) {
    check_layer(i);
    need(key >= RECENCY && key <= PAGES && query >= TRUE_QUERY && query <= EMITTED, "unknown pieces");
    Pieces p;
    p.selects = true, p.key = key, p.query = query, p.producer = producer, p.scale = scale;
    const int rank = selection.rank, padded_rank = (rank + PANEL - 1) / PANEL * PANEL;
    if (key == PAGES) need(selection.page_size > 0 && query == TRUE_QUERY, "pages are scored by the true query, and have a size");
    if (key == KEYS) {
      need(rank > 0, "importance keys have a rank");
      p.key_projection = projection(key_projection, sizes.kv_heads * padded_rank, "key_projection");
      p.key_scales = floats(key_scales, (size_t)sizes.kv_heads * rank, "key_scales");
      for (int c = 0; c < sizes.kv_heads * rank; c++) need(p.key_scales[c] > 0, "key_scales must be positive");
      if (query == EMITTED) {
        p.up = PyModel::fitting(up, sizes.kv_heads * rank, PyModel::matrix(up, "up").cols, "up");
      } else {
        need(projections == sizes.kv_heads || projections == sizes.query_heads, "a query projection a KV head, or a query head");
        p.query_projections = projections;
        p.query_projection = projection(query_projection, projections * padded_rank, "query_projection");
        if (query == FORESEEN) p.up = PyModel::fitting(up, sizes.query_heads * sizes.head_dim, PyModel::matrix(up, "up").cols, "up");
      }
    }
    if (query != TRUE_QUERY) {
      need(key == KEYS, "only importance keys are scored by foreseen queries");
      need(producer >= 0 && producer < i && selection.producers[producer].norm_weight, "the producer comes before its layer, and is set first");
      need((selection.producers[producer].down.rows + GROUP - 1) / GROUP * GROUP == p.up.cols, "the producer's width must fit the layer's matrix");
    }
    selection.layers[i] = p;
    held.push_back(query_projection), held.push_back(key_projection), held.push_back(key_scales), held.push_back(up);
  }

  // Projections are multiplied with rows that were not quantised.
  Matrix projection(nb::handle object, int rows, const std::string& what) const {
    Matrix m = PyModel::fitting(object, rows, sizes.head_dim, what);
    need(m.format == F32 || m.format == BF16, what + " must be in float32 or bfloat16");
    return m;
  }

  void set_producer(int i, nb::object norm_weight, nb::object norm_bias, nb::object down) {
    check_layer(i);
    need(!selection.producers[i].norm_weight, "a producer is set once: layers may rely on it");
    Producer p;
    p.norm_weight = floats(norm_weight, sizes.hidden, "norm_weight");
    p.norm_bias = floats(norm_bias, sizes.hidden, "norm_bias");
    p.down = PyModel::fitting(down, PyModel::matrix(down, "down").rows, sizes.hidden, "down");
    selection.producers[i] = p;
    held.push_back(norm_weight), held.push_back(norm_bias), held.push_back(down);
  }
};

struct PyUnits {
  Units units;
  const Sizes sizes;
  const PyModel& model;
  std::vector<nb::object> held;

  explicit PyUnits(const PyModel& m) : sizes(m.model.sizes), model(m) { units.layers.resize(sizes.layers), units.producers.resize(sizes.layers); }

  void check_layer(int i) const { need(i >= 0 && i < sizes.layers, "no layer " + std::to_string(i)); }

  // Products with rows that were not quantised.
  static Matrix plain(nb::handle object, int rows, int cols, const std::string& what) {
    Matrix m = PyModel::fitting(object, rows, cols, what);
    need(m.format == F32 || m.format == BF16, what + " must be in float32 or bfloat16");
    return m;
  }

  const float* finite(nb::handle object, size_t n, const std::string& what) const {
    const float* found = floats(object, n, what);
    for (size_t i = 0; i < n; i++) need(std::isfinite(found[i]), what + " must be finite");
    return found;
  }

  void set_producer(int i, nb::object weight, nb::object bias) {
    check_layer(i);
    need(!units.producers[i].weight.panels, "a producer is set once: layers may rely on it");
    const int width = PyModel::matrix(weight, "weight").rows;
    need(width <= 512, "a producer's width is at most 512");
    UnitProducer p;
    p.weight = plain(weight, width, sizes.hidden, "weight"), p.bias = finite(bias, width, "bias");
    units.producers[i] = p;
    units.width = std::max(units.width, (width + GROUP - 1) / GROUP * GROUP);
    held.push_back(weight), held.push_back(bias);
  }

  Readout readout(int layer, int producer, nb::object weight, nb::object bias, int rows) {
    need(producer >= 0 && producer < layer && units.producers[producer].weight.panels, "the producer comes before its layer, and is set first");
    Readout r;
    r.producer = producer;
    r.weight = plain(weight, rows, units.producers[producer].weight.rows, "weight"), r.bias = finite(bias, rows, "bias");
    held.push_back(weight), held.push_back(bias);
    return r;
  }

  LayerUnits& heads(int i) {
    check_layer(i);
    need(sizes.head_dim % GROUP == 0, "heads are left out where a head has a multiple of " + text(GROUP) + " channels");
    const Matrix& output = model.model.layers[i].attention;
    need(output.format == F32 || output.format == BF16, "heads are left out where weights are in float32 or bfloat16");
    need(units.layers[i].heads == EVERYTHING, "the heads of a layer are set once");
    return units.layers[i];
  }

  LayerUnits& neurons(int i) {
    check_layer(i);
    need(model.model.layers[i].records != nullptr, "layer " + std::to_string(i) + " has no records");
    need(units.layers[i].neurons == EVERYTHING, "the neurons of a layer are set once");
    return units.layers[i];
  }

  static void ascending(const std::vector<int>& list, int below, const std::string& what) {
    int last = -1;
    for (int one : list) {
      need(one > last && one < below, what + " must be ascending, and below " + std::to_string(below));
      last = one;
    }
  }

  void give_heads(int i, std::vector<int> kept) {
    LayerUnits& u = heads(i);
    ascending(kept, sizes.query_heads, "heads");
    need(!kept.empty(), "a layer keeps at least one head");
    std::vector<char> chosen(sizes.query_heads);
    for (int h : kept) chosen[h] = 1;
    u.heads = GIVEN, u.given_heads = chosen;
  }

  void foretell_heads(int i, int kept, int pool, int producer, nb::object weight, nb::object bias) {
    LayerUnits& u = heads(i);
    need(pool >= 1 && pool <= sizes.query_heads && sizes.query_heads % pool == 0, "heads are ranked in pools of the same size");
    need(kept >= 1 && kept <= pool, "the number of heads kept is out of range");
    u.head_scores = readout(i, producer, weight, bias, sizes.query_heads);
    u.heads_kept = kept, u.head_pool = pool, u.heads = FORETOLD;
  }

  void give_neurons(int i, std::vector<int> kept) {
    LayerUnits& u = neurons(i);
    ascending(kept, sizes.intermediate, "neurons");
    u.given_neurons.assign(kept.begin(), kept.end()), u.neurons = GIVEN;
  }

  void foretell_neurons(int i, float cut, int producer, nb::object weight, nb::object bias) {
    LayerUnits& u = neurons(i);
    need(!std::isnan(cut), "the cut is not a number");
    u.neuron_scores = readout(i, producer, weight, bias, sizes.intermediate);
    u.cut = cut, u.neurons = FORETOLD;
  }

  void gate_neurons(int i, float cut, int first, nb::object scale, nb::object left, nb::object right, nb::object spread) {
    LayerUnits& u = neurons(i);
    const Matrix& gate_up = model.model.layers[i].gate_up;
    need(gate_up.format == F32 || gate_up.format == BF16, "neurons are left out where weights are in float32 or bfloat16");
    need(!std::isnan(cut) && (first == GATE || first == UP), "the cut or the first factor is out of range");
    u.scale = finite(scale, sizes.intermediate, "scale"), u.first = first, u.cut = cut;
    if (!left.is_none()) {
      const int rank = PyModel::matrix(right, "right").rows;
      need(rank <= 512, "a look's rank is at most 512");
      u.right = plain(right, rank, sizes.hidden, "right"), u.left = plain(left, sizes.intermediate, rank, "left");
      u.spread = finite(spread, sizes.intermediate, "spread");
    }
    u.neurons = GATED;
    held.push_back(scale), held.push_back(left), held.push_back(right), held.push_back(spread);
  }
};

struct PyActivations {
  Activations activations;
  const Sizes sizes;
  const PyModel& model;
  std::vector<nb::object> held;

  explicit PyActivations(const PyModel& m) : sizes(m.model.sizes), model(m) { activations.layers.resize(sizes.layers); }

  void cut(int i, int part, nb::object centre, nb::object threshold, nb::object folded) {
    need(i >= 0 && i < sizes.layers && part >= 0 && part < PARTS, "no such matrix");
    const Columns& w = model.model.layers[i].columns[part];
    need(w.data != nullptr, "layer " + std::to_string(i) + " has no columns of this matrix");
    Cutting& c = activations.layers[i][part];
    need(!c.cuts, "a matrix is cut once");
    Cutting given = cutting(centre, threshold, w.inputs);
    if (!folded.is_none()) given.folded = floats(folded, w.outputs, "folded");
    c = given;
    held.push_back(centre), held.push_back(threshold), held.push_back(folded);
  }

  void check() const {
    for (auto& layer : activations.layers) need(layer[GATE_PART].cuts == layer[UP_PART].cuts, "gate and up are cut both, or neither");
  }
};

struct PySequence {
  Sequence sequence;
  const Sizes sizes;
  std::vector<nb::object> kv, index, pages;
  std::vector<std::tuple<int, int, int>> kinds;  // of the index of a layer
  std::vector<int> page_pairs;

  explicit PySequence(const PyModel& model) : sizes(model.model.sizes), kv(sizes.layers), index(sizes.layers), pages(sizes.layers), kinds(sizes.layers), page_pairs(sizes.layers) {
    sequence.layers.resize(sizes.layers);
    for (auto& store : sequence.layers) store.choices.resize(sizes.kv_heads);
  }

  Store& store(int i) {
    need(i >= 0 && i < sizes.layers, "no layer " + std::to_string(i));
    return sequence.layers[i];
  }

  // keys and values: (kv_heads, capacity, bytes of a row)
  void bind(int i, nb::object keys, nb::object values, int offset) {
    Store& s = store(i);
    Bytes k = array<Bytes>(keys, "keys"), v = array<Bytes>(values, "values");
    const size_t element = sizes.kv_format == F32 ? 4 : 2, row = sizes.head_dim * element;
    for (const Bytes& a : {k, v})
      need(a.ndim() == 3 && a.shape(0) == (size_t)sizes.kv_heads && a.shape(2) == row && a.shape(1) == k.shape(1) && a.shape(1) < (1u << 30),
           "keys and values must be (kv_heads, capacity, " + text(row) + ") bytes");
    need(aligned(k.data(), element) && aligned(v.data(), element), "keys and values must be aligned");
    need(offset >= 0 && offset < 1 << 30, "an offset is not negative, and not that large");
    s.keys = (char*)k.data(), s.values = (char*)v.data(), s.capacity = (int)k.shape(1), s.offset = offset;
    kv[i] = nb::make_tuple(keys, values);
  }

  // (kv_heads, bytes of a head): int8 keys of `capacity` tokens, or bounds of the pages of `capacity` tokens.
  void bind_index(int i, nb::object object, int capacity, const PySelection& selection) {
    Store& s = store(i);
    check_selection(i, selection);
    const Pieces& p = selection.selection.layers[i];
    need(p.selects && p.key != RECENCY, "layer " + std::to_string(i) + " keeps no index");
    Bytes b = array<Bytes>(object, "an index");
    const bool pages = p.key == PAGES;
    const int unit = pages ? selection.selection.page_size : PANEL;
    need(capacity >= 0 && capacity % unit == 0, "the capacity of an index is a multiple of " + text(unit));
    const size_t bytes = pages ? (size_t)(capacity / unit) * 2 * sizes.head_dim * (sizes.kv_format == F32 ? 4 : 2)
                               : (size_t)capacity * 2 * selection.selection.pairs();
    need(b.ndim() == 2 && b.shape(0) == (size_t)sizes.kv_heads && b.shape(1) == bytes, "an index must be (kv_heads, " + text(bytes) + ") bytes");
    need(!pages || aligned(b.data(), sizes.kv_format == F32 ? 4 : 2), "an index must be aligned");
    s.index = (char*)b.data(), s.index_capacity = capacity;
    kinds[i] = kind(selection.selection, i);
    index[i] = object;
  }

  // What the bytes of an index depend on.
  static std::tuple<int, int, int> kind(const Selection& s, int layer) { return {s.layers[layer].key, s.page_size, s.pairs()}; }

  // (kv_heads, bytes of a head): smallest and largest importance keys of `capacity` pages.
  void bind_pages(int i, nb::object object, int capacity, const PySelection& selection) {
    Store& s = store(i);
    check_selection(i, selection);
    need(selection.selection.layers[i].key == KEYS && selection.selection.layers[i].selects, "layer " + std::to_string(i) + " keeps no importance keys");
    Bytes b = array<Bytes>(object, "pages");
    need(capacity >= 0 && capacity % PANEL == 0, "the capacity for pages is a multiple of " + text(PANEL));
    const size_t bytes = (size_t)2 * capacity * 2 * selection.selection.pairs();
    need(b.ndim() == 2 && b.shape(0) == (size_t)sizes.kv_heads && b.shape(1) == bytes, "pages must be (kv_heads, " + text(bytes) + ") bytes");
    s.pages = (char*)b.data(), s.page_capacity = capacity, s.paged = 0;
    page_pairs[i] = selection.selection.pairs();
    pages[i] = object;
  }

  void check_selection(int i, const PySelection& selection) const {
    need(i < selection.sizes.layers && selection.sizes.kv_format == sizes.kv_format && selection.sizes.head_dim == sizes.head_dim, "the selection is of another model");
  }

  void forget_index() {
    for (auto& s : sequence.layers) s.index = s.pages = nullptr, s.index_capacity = s.indexed = s.page_capacity = s.paged = 0;
    for (auto& object : pages) object.reset();
    for (auto& object : index) object.reset();
    forget_choices();
  }

  void forget_choices() {
    for (auto& s : sequence.layers)
      for (auto& c : s.choices) c.made_at = 0;
  }

  void set_length(int length) {
    need(length >= 0 && length < 1 << 30, "a length is not negative, and not that large");
    for (auto& s : sequence.layers) s.indexed = std::min(s.indexed, length), s.paged = std::min(s.paged, length);
    sequence.length = length;
    forget_choices();
  }
};

std::vector<int> step(PyModel& model, Pool& pool, std::vector<PySequence*> sequences, std::vector<int> tokens, Bytes logits,
                      std::optional<PySelection*> selection, std::vector<int> budgets, int sinks, int window, int interval, int pages, float page_share,
                      nb::object record, std::vector<std::optional<PyUnits*>> units, nb::object computed,
                      std::optional<PyActivations*> activations, nb::object inputs_read, std::optional<Bytes> queries) {
  need(model.sealed, "the model is not complete");
  const Sizes& z = model.model.sizes;
  const size_t batch = sequences.size();
  need(batch > 0 && tokens.size() == batch, "a step needs one token a row");
  size_t distinct = 0;
  for (size_t b = 0; b < batch; b++) {
    need(sequences[b] != nullptr, "a row needs a sequence");
    if (b && sequences[b] == sequences[b - 1]) {
      need(!selection, "several rows of a sequence are read densely");
      need(units.empty() && !activations, "several rows of a sequence are computed densely");
      continue;
    }
    distinct++;
    for (size_t other = 0; other + 1 < b; other++) need(sequences[other] != sequences[b], "the rows of a sequence stand together");
  }
  need(logits.nbytes() == distinct * z.vocab * sizeof(float) && aligned(logits.data(), sizeof(float)), "logits must be (sequences, vocab) float32");
  need(record.is_none() || nb::isinstance<nb::list>(record), "what is read is recorded in a list");
  StepArguments a;
  a.tokens = tokens, a.logits = (float*)logits.data();
  if (queries) {
    const size_t wide = (size_t)z.query_heads * z.head_dim;
    need(queries->nbytes() == z.layers * batch * wide * sizeof(float) && aligned(queries->data(), sizeof(float)),
         "queries must be (layers, rows, query_heads, head_dim) float32");
    std::fill_n((float*)queries->data(), z.layers * batch * wide, 0.f);
    a.queries = (float*)queries->data();
  }
  a.rule.sinks = sinks, a.rule.window = window, a.rule.interval = interval, a.rule.pages = pages, a.rule.page_share = page_share;
  if (selection) {
    need(budgets.size() == batch, "a step needs one budget a row");
    need(sinks >= 0 && window >= 0 && interval >= 1, "sinks, window and interval are out of range");
    need(pages >= 0 && pages % PANEL == 0 && pages <= window && page_share > 0 && page_share <= 1, "pages must be a multiple of 16 tokens, at most the window");
    need((*selection)->sizes.layers == z.layers && (*selection)->sizes.head_dim == z.head_dim && (*selection)->sizes.hidden == z.hidden &&
             (*selection)->sizes.kv_heads == z.kv_heads && (*selection)->sizes.query_heads == z.query_heads,
         "the selection is of another model");
    a.selection = &(*selection)->selection, a.budgets = budgets;
  }
  need(units.empty() || units.size() == batch, "units are given for each row, or not at all");
  need(computed.is_none() || nb::isinstance<nb::list>(computed), "what is computed is recorded in a list");
  bool any = false;
  for (auto& one : units) {
    const PyUnits* u = one ? *one : nullptr;
    need(!u || &u->model == &model, "the units are of another model");
    a.units.push_back(u ? &u->units : nullptr);
    any = any || u;
  }
  if (!any) a.units.clear();
  std::vector<std::array<int64_t, PARTS>> read_for;
  if (activations) {
    need(&(*activations)->model == &model, "the activations are of another model");
    need(!any, "units and inputs are not left out together");
    (*activations)->check();
    a.activations = &(*activations)->activations;
    need(inputs_read.is_none() || nb::isinstance<nb::list>(inputs_read), "what is read is counted in a list");
    a.inputs_read = &read_for;
  }
  std::vector<int64_t> heads_computed(batch), neurons_computed(batch);
  std::vector<UnitRecord> unit_records;
  if (any) a.heads_computed = &heads_computed, a.neurons_computed = &neurons_computed;
  if (any && !record.is_none()) a.unit_record = &unit_records;
  int at = 0;
  for (size_t b = 0; b < batch; b++) {
    need(tokens[b] >= 0 && tokens[b] < z.vocab, "token " + std::to_string(tokens[b]) + " is not in the vocabulary of " + text(z.vocab));
    PySequence& s = *sequences[b];
    need((int)s.sequence.layers.size() == z.layers && s.sizes.head_dim == z.head_dim && s.sizes.kv_heads == z.kv_heads && s.sizes.kv_format == z.kv_format,
         "the sequence is of another model");
    at = b && sequences[b] == sequences[b - 1] ? at + 1 : s.sequence.length;
    for (const Rotary& turn : model.model.rotary) need(!turn.channels || at < turn.positions, "the rotary table ends before position " + std::to_string(at));
    const bool selects = selection && budgets[b] < at + 1;
    if (selects) need(budgets[b] > (int64_t)sinks + window, "a budget must hold sinks, window and one chosen token");
    for (int i = 0; i < z.layers; i++) {
      const Store& store = s.sequence.layers[i];
      need(model.model.rotary.empty() || model.model.layers[i].rotary < (int)model.model.rotary.size(), "layer " + std::to_string(i) + " has no rotary table");
      need(store.keys != nullptr && at >= store.offset && at - store.offset < store.capacity, "layer " + std::to_string(i) + " has no room for a token");
      need(store.offset == 0 || model.model.layers[i].window > 0, "only layers with a window let tokens go");
      const int held = model.model.layers[i].window;
      need(!store.offset || store.offset <= at + 1 - std::min(at + 1, held), "layer " + std::to_string(i) + " lacks tokens of its window");
      const Pieces* p = selects ? &(*selection)->selection.layers[i] : nullptr;
      if (p && p->selects) {
        need(held == 0 && store.offset == 0, "a layer with a window does not select");
        if (p->key != RECENCY) {
          need(store.index != nullptr && store.index_capacity >= at + 1, "layer " + std::to_string(i) + " has no room in its index");
          need(s.kinds[i] == PySequence::kind((*selection)->selection, i), "the index is of another selection");
          if (p->key == KEYS && pages) {
            need(store.pages != nullptr && at / pages < store.page_capacity, "layer " + std::to_string(i) + " has no room for its pages");
            need(s.page_pairs[i] == (*selection)->selection.pairs(), "the pages are of another selection");
          }
        }
      }
    }
    a.sequences.push_back(&s.sequence);
  }
  std::vector<std::vector<Read>> reads;
  if (!record.is_none()) {
    reads.assign(z.layers, std::vector<Read>(batch * z.kv_heads));
    a.record = &reads;
  }
  std::vector<int> best;
  {
    nb::gil_scoped_release release;
    best = model.model.step(pool, a);
  }
  if (!record.is_none()) {
    nb::list out = nb::cast<nb::list>(record);
    for (auto& layer : reads) {
      nb::list heads;
      for (auto& read : layer) {
        if (read.indices.empty()) heads.append(nb::none());
        else heads.append(nb::cast(read.indices));
      }
      out.append(heads);
    }
  }
  if (activations && !inputs_read.is_none())
    for (auto& row : read_for) nb::cast<nb::list>(inputs_read).append(nb::cast(std::vector<int64_t>(row.begin(), row.end())));
  // A row each: heads and neurons computed and, recorded, which of them by layer.
  if (!computed.is_none())
    for (size_t b = 0; b < batch; b++) {
      nb::list heads, neurons;
      if (b < unit_records.size())
        for (int l = 0; l < z.layers; l++) {
          std::vector<int> which, all;
          for (int h = 0; h < (int)unit_records[b].heads[l].size(); h++)
            if (unit_records[b].heads[l][h]) which.push_back(h);
          for (auto& chunk : unit_records[b].neurons[l]) all.insert(all.end(), chunk.begin(), chunk.end());
          heads.append(nb::cast(which)), neurons.append(nb::cast(all));
        }
      nb::cast<nb::list>(computed).append(nb::make_tuple(heads_computed[b], neurons_computed[b], heads, neurons));
    }
  return best;
}

// ---- kernels one by one, for tests ----

nb::object numpy(const std::vector<float>& values, size_t rows, size_t cols) {
  float* copy = new float[values.size() + 1];
  std::copy(values.begin(), values.end(), copy);
  nb::capsule owner(copy, [](void* p) noexcept { delete[] (float*)p; });
  size_t shape[2] = {rows, cols};
  return nb::cast(nb::ndarray<nb::numpy, float>(copy, 2, shape, owner));
}

nb::object test_matvec(const std::string& name, const PyMatrix& matrix, Table x) {
  const Kernels& k = level(name);
  const Matrix& m = matrix.matrix;
  const size_t batch = x.shape(0), cols = m.cols;
  need(x.shape(1) <= cols, "x has more columns than the matrix");
  std::vector<std::vector<float>> values(batch, std::vector<float>(cols)), scales(batch, std::vector<float>(cols / GROUP)), sums = scales, y;
  std::vector<std::vector<int8_t>> codes(batch, std::vector<int8_t>(cols));
  std::vector<std::vector<int32_t>> code_sums(batch, std::vector<int32_t>(cols / GROUP));
  std::vector<Input> inputs;
  std::vector<float*> outputs;
  y.assign(batch, std::vector<float>((size_t)m.panels * PANEL));
  for (size_t b = 0; b < batch; b++) {
    std::copy_n(x.data() + b * x.shape(1), x.shape(1), values[b].begin());
    k.quantise(values[b].data(), (int)cols, codes[b].data(), scales[b].data(), sums[b].data(), code_sums[b].data());
    inputs.push_back({values[b].data(), codes[b].data(), scales[b].data(), sums[b].data(), code_sums[b].data()});
    outputs.push_back(y[b].data());
  }
  k.matvec(m, 0, m.panels, (int)batch, inputs.data(), outputs.data());
  std::vector<float> flat;
  for (auto& row : y) flat.insert(flat.end(), row.begin(), row.begin() + m.rows);
  return numpy(flat, batch, m.rows);
}

// (heads, head_dim) queries over (tokens, row bytes) keys and values; the softmax is joined over chunks as a step does.
nb::object test_attend(const std::string& name, Table queries, Bytes keys, Bytes values, int format, float scaling, std::optional<Ints> indices) {
  const Kernels& k = level(name);
  const int heads = (int)queries.shape(0), d = (int)queries.shape(1);
  need(format == F32 || format == BF16, "keys and values are kept in float32 or bfloat16");
  const size_t row = (size_t)d * (format == F32 ? 4 : 2);
  need(d >= 1 && d <= 512 && keys.ndim() == 2 && values.ndim() == 2 && keys.shape(1) == row && values.shape(1) == row && keys.shape(0) == values.shape(0),
       "keys and values must be (tokens, " + text(row) + ") bytes");
  const int tokens = (int)keys.shape(0), count = indices ? (int)indices->shape(0) : tokens;
  need(count > 0, "there is no token to attend to");
  if (indices)
    for (int i = 0; i < count; i++) need(indices->data()[i] >= 0 && indices->data()[i] < tokens, "an index is out of range");
  std::vector<float> scaled((size_t)heads * d), out((size_t)heads * d);
  for (size_t i = 0; i < scaled.size(); i++) scaled[i] = queries.data()[i] * scaling * 1.4426950408889634f;
  const int chunks = (count + CHUNK - 1) / CHUNK;
  std::vector<std::vector<float>> largest(chunks, std::vector<float>(heads)), total = largest, sums(chunks, out);
  for (int i = 0; i < chunks; i++) {
    const int start = i * CHUNK, end = std::min(count, start + CHUNK);
    k.attend(Attend{keys.data(), values.data(), format, d, d, heads, scaled.data(), indices ? indices->data() + start : nullptr, start, end - start, count - end,
                    largest[i].data(), total[i].data(), sums[i].data()});
  }
  for (int h = 0; h < heads; h++) {
    float most = -INFINITY, all = 0;
    for (int i = 0; i < chunks; i++) most = std::max(most, largest[i][h]);
    for (int i = 0; i < chunks; i++) {
      const float weight = std::exp2(largest[i][h] - most);
      all += weight * total[i][h];
      for (int c = 0; c < d; c++) out[h * d + c] += weight * sums[i][h * d + c];
    }
    for (int c = 0; c < d; c++) out[h * d + c] /= all;
  }
  return numpy(out, heads, d);
}

// (blocks, pairs, 16, 2) int8 keys, of which all or some are scored, (heads, 2 * pairs) queries of whole numbers.
nb::object test_score_keys(const std::string& name, Bytes keys, Table queries, Floats scales, std::optional<Ints> blocks) {
  need(keys.ndim() == 4 && keys.shape(2) == PANEL && keys.shape(3) == 2, "keys must be (blocks, pairs, 16, 2)");
  const int pairs = (int)keys.shape(1), heads = (int)queries.shape(0), tokens = (int)(blocks ? blocks->shape(0) : keys.shape(0)) * PANEL;
  if (blocks)
    for (size_t i = 0; i < blocks->shape(0); i++) need(blocks->data()[i] >= 0 && blocks->data()[i] < (int)keys.shape(0), "a block is out of range");
  need(queries.shape(1) == (size_t)2 * pairs && scales.shape(0) == (size_t)heads, "queries must be (heads, 2 * pairs), and have a scale each");
  std::vector<std::vector<int16_t>> codes(heads, std::vector<int16_t>(2 * pairs));
  std::vector<float> out((size_t)heads * tokens);
  std::vector<const int16_t*> from;
  std::vector<float*> to;
  for (int h = 0; h < heads; h++) {
    for (int c = 0; c < 2 * pairs; c++) codes[h][c] = (int16_t)queries(h, c);
    from.push_back(codes[h].data()), to.push_back(out.data() + (size_t)h * tokens);
  }
  level(name).score_keys((const int8_t*)keys.data(), blocks ? blocks->data() : nullptr, pairs, tokens, heads, from.data(), scales.data(), to.data());
  return numpy(out, heads, tokens);
}

// (pages, 2, bytes of a row) smallest and largest keys.
nb::object test_score_pages(const std::string& name, Bytes bounds, int format, Floats query) {
  need(format == F32 || format == BF16, "bounds are kept in float32 or bfloat16");
  const size_t d = query.shape(0), row = d * (format == F32 ? 4 : 2);
  need(d >= 1 && d <= 512 && bounds.ndim() == 3 && bounds.shape(1) == 2 && bounds.shape(2) == row, "bounds must be (pages, 2, " + text(row) + ") bytes");
  std::vector<float> out(bounds.shape(0));
  level(name).score_pages(bounds.data(), format, (int)d, (int)out.size(), query.data(), out.data());
  return numpy(out, 1, out.size());
}

std::vector<int> test_top(const std::string& name, Floats values, int take) {
  const int n = (int)values.shape(0);
  std::vector<uint32_t> keys(n + 1), scratch(n + LEAST_SLACK);
  for (int i = 0; i < n; i++) {
    uint32_t bits;
    memcpy(&bits, values.data() + i, 4);
    keys[i] = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  }
  std::vector<int32_t> out(n + LEAST_SLACK);
  out.resize(std::max(0, top(level(name), keys.data(), n, take, 0, out.data(), scratch.data())));
  return out;
}

nb::object test_sum_softmax2(const std::string& name, Table scores) {
  const int heads = (int)scores.shape(0), n = (int)scores.shape(1);
  need(heads > 0 && n > 0, "there are no scores");
  std::vector<std::vector<float>> rows(heads, std::vector<float>(n + LEAST_SLACK));
  std::vector<float*> pointers;
  for (int h = 0; h < heads; h++) memcpy(rows[h].data(), scores.data() + (size_t)h * n, n * sizeof(float)), pointers.push_back(rows[h].data());
  std::vector<float> out(n + LEAST_SLACK);
  level(name).sum_softmax2(pointers.data(), heads, n, out.data());
  out.resize(n);
  return numpy(out, 1, n);
}

// Rows `active` of (rows, cols) weights with x, zeros elsewhere; or, of the transposed matrix, what the active elements of h add up to.
void some_rows(const std::string& name, Pool& pool, Bytes weight, int format, Ints active, Floats x, Floats out, bool columns) {
  const Kernels& k = level(name);
  need((format == F32 || format == BF16) && weight.ndim() == 2, "weights must be (rows, bytes), in float32 or bfloat16");
  const size_t element = format == F32 ? 4 : 2, rows = weight.shape(0), stride = weight.shape(1);
  need(stride % element == 0 && stride / element <= 1u << 28 && rows <= 1u << 28 && aligned(weight.data(), element), "weights are too large, or not aligned");
  const int cols = (int)(stride / element), n = (int)active.shape(0);
  need(x.shape(0) == (columns ? rows : (size_t)cols) && out.shape(0) == (columns ? (size_t)cols : rows), "the vectors do not fit the matrix");
  for (int i = 0; i < n; i++) need(active(i) > (i ? active(i - 1) : -1) && active(i) < (int)rows, "active rows must be ascending, and there");
  const size_t padded = (size_t)(cols + ROW_PAD - 1) / ROW_PAD * ROW_PAD;
  const int32_t* idx = active.data();
  std::vector<float> arranged(padded), found(n + 1), sums(columns ? padded * CHUNKS : 0);
  {
    nb::gil_scoped_release release;
    if (!columns) k.arrange(x.data(), format, cols, arranged.data());
    for (int i = 0; columns && i < n; i++) found[i] = x.data()[idx[i]];
    pool.run([&](int t) {
      for (int c = CHUNKS * t / pool.size(); c < CHUNKS * (t + 1) / pool.size(); c++) {
        const int from = (int)((int64_t)n * c / CHUNKS), count = (int)((int64_t)n * (c + 1) / CHUNKS) - from;
        if (columns) k.add_rows(weight.data(), format, stride, idx + from, count, found.data() + from, cols, sums.data() + c * padded);
        else k.dot_rows(weight.data(), format, stride, idx + from, count, arranged.data(), cols, found.data() + from);
      }
    });
    if (columns) {
      for (int c = 0; c < CHUNKS; c++)
        for (size_t i = 0; i < padded; i++) arranged[i] += sums[c * padded + i];
      k.restore(arranged.data(), format, cols, out.data());
    } else {
      std::fill_n(out.data(), rows, 0.f);
      for (int i = 0; i < n; i++) out.data()[idx[i]] = found[i];
    }
  }
}

// Rows of x through a matrix of which only some columns are read; how many for each.
std::vector<int> cut_columns(const std::string& name, Pool& pool, Bytes columns, int format, int outputs, Table x, nb::object centre,
                             nb::object threshold, std::optional<Floats> folded, Floats out) {
  const Kernels& k = level(name);
  need(format == F32 || format == BF16 || format == INT8, "columns are kept in float32, bfloat16 or int8");
  need(outputs >= 1 && outputs <= 1 << 28 && columns.ndim() == 2 && columns.shape(0) <= 1u << 28, "columns must be (inputs, bytes)");
  const Columns w{(const char*)columns.data(), format, (int)columns.shape(0), outputs, columns_stride(format, outputs)};
  need(columns.shape(1) == w.stride && (format == INT8 || aligned(columns.data(), format == F32 ? 4 : 2)), "columns must be (inputs, " + text(w.stride) + ") bytes, aligned");
  const size_t batch = x.shape(0);
  need(x.shape(1) == (size_t)w.inputs, "the rows do not fit the inputs");
  need(out.shape(0) == batch * outputs && (!folded || folded->shape(0) == (size_t)outputs), "the vectors do not fit the outputs");
  Cutting cut = cutting(centre, threshold, w.inputs);
  cut.folded = folded ? folded->data() : nullptr;
  std::vector<const float*> from;
  std::vector<float*> to;
  for (size_t b = 0; b < batch; b++) from.push_back(x.data() + b * w.inputs), to.push_back(out.data() + b * outputs);
  std::vector<int> read(batch);
  std::vector<CutScratch> scratch(pool.size());
  {
    nb::gil_scoped_release release;
    pool.run([&](int t) { multiply_cut(k, w, cut, (int)batch, from.data(), to.data(), t, pool.size(), scratch[t], t ? nullptr : read.data()); });
  }
  return read;
}

nb::object test_vector(const std::string& name, const std::string& what, Floats x, Floats weight, Floats other) {
  const Kernels& k = level(name);
  const int n = (int)x.shape(0);
  need(weight.shape(0) == (size_t)n && other.shape(0) == (size_t)n, "the vectors must be of one length");
  std::vector<float> y(n);
  if (what == "rms_norm") k.rms_norm(x.data(), weight.data(), y.data(), n, 1e-5f);
  else if (what == "layer_norm") k.layer_norm(x.data(), weight.data(), other.data(), y.data(), n, 1e-5f);
  else if (what == "silu" || what == "gelu") {
    std::copy_n(x.data(), n, y.begin());
    k.gate(y.data(), weight.data(), n, what == "silu" ? SILU : GELU_TANH);
  } else throw Misfit("no kernel '" + what + "'");
  return numpy(y, 1, n);
}

double read_bandwidth(const std::string& name, Pool& pool, size_t bytes, int repeats) {
  const Kernels& k = level(name);
  need(bytes >= 1 << 20 && bytes <= (size_t)1 << 36 && repeats > 0, "bytes and repeats are out of range");
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  madvise(memory, bytes, MADV_HUGEPAGE);
  memset(memory, 1, bytes);
  double best = 0;
  volatile uint64_t sink = 0;
  {
    nb::gil_scoped_release release;
    for (int r = 0; r < repeats; r++) {
      auto start = std::chrono::steady_clock::now();
      pool.run([&](int t) {
        const size_t piece = bytes / pool.size() / 4096 * 4096;
        sink = sink + k.read((const char*)memory + piece * t, piece);
      });
      const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      best = std::max(best, (double)bytes / seconds);
    }
  }
  munmap(memory, bytes);
  return best;
}

// Asks for large pages under an array that was not touched yet: fewer misses of the address table.
void advise(Bytes array) {
  const uintptr_t page = 4096, from = ((uintptr_t)array.data() + page - 1) / page * page, to = ((uintptr_t)array.data() + array.nbytes()) / page * page;
  if (to > from) madvise((void*)from, to - from, MADV_HUGEPAGE);
}

void count_different(nb::object vectors, nb::object anchors, nb::object distances) {
  Words v = array<Words>(vectors, "vectors"), a = array<Words>(anchors, "anchors"), d = array<Words>(distances, "distances");
  need(v.ndim() == 3 && a.ndim() == 2 && d.ndim() == 2, "vectors, anchors and distances must have 3, 2 and 2 dimensions");
  need(a.shape(0) == v.shape(0) && a.shape(1) == v.shape(2), "an anchor of " + text(v.shape(2)) + " words is needed for each of " + text(v.shape(0)) + " rows");
  need(d.shape(0) == v.shape(0) && d.shape(1) == v.shape(1), "distances must be " + text(v.shape(0)) + " x " + text(v.shape(1)));
  hamming(v.data(), a.data(), v.shape(0), v.shape(1), v.shape(2), d.data());
}

void represent(nb::object votes, nb::object positions, nb::object rows, nb::object candidates, nb::object wanted, float density, int majority,
               nb::object anchors, nb::object chosen) {
  using Votes = nb::ndarray<float, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
  using Masks = nb::ndarray<bool, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
  auto v = array<Votes>(votes, "votes");
  auto p = array<Words>(positions, "positions"), w = array<Words>(wanted, "wanted"), a = array<Words>(anchors, "anchors");
  auto r = array<Masks>(rows, "rows"), c = array<Masks>(candidates, "candidates"), out = array<Masks>(chosen, "chosen");
  const size_t batch = v.shape(0), query_heads = v.shape(1), slots = v.shape(2);
  need(p.ndim() == 3 && w.ndim() == 2 && a.ndim() == 1, "positions, wanted and anchors must have 3, 2 and 1 dimensions");
  const size_t kv_heads = p.shape(1);
  need(kv_heads > 0 && query_heads % kv_heads == 0 && query_heads <= 63, "query heads must be a multiple of the KV heads, and at most 63");
  for (const Masks* m : {&r, &c, &out})
    need(m->shape(0) == batch && m->shape(1) == kv_heads && m->shape(2) == slots, "masks must be " + text(batch) + " x " + text(kv_heads) + " x " + text(slots));
  need(p.shape(0) == batch && p.shape(2) == slots, "positions must be " + text(batch) + " x " + text(kv_heads) + " x " + text(slots));
  need(w.shape(0) == batch && w.shape(1) == kv_heads, "wanted must be " + text(batch) + " x " + text(kv_heads));
  need(majority != 0 || a.shape(0) > 0, "without a majority an anchor is needed");
  for (size_t b = 0; b < batch; ++b) {
    const size_t at = b * kv_heads * slots;
    Crush{query_heads, kv_heads, slots, v.data() + b * query_heads * slots, p.data() + at, r.data() + at, c.data() + at,
          w.data() + b * kv_heads, density, majority, a.data(), a.shape(0), out.data() + at}.run();
  }
}

}  // namespace

NB_MODULE(_native, m) {
  nb::set_leak_warnings(false);  // pools are kept for as long as the process runs
  m.doc() = "Kernels of Sparsight's CPU decoder.";
  m.attr("PANEL") = PANEL;
  m.attr("GROUP") = GROUP;
  m.def("levels", [] {
    std::vector<std::string> names;
    for (const Kernels* k : levels()) names.push_back(k->name);
    return names;
  }, "Levels of instruction sets that this machine has, the best last.");
  nb::class_<Pool>(m, "Pool").def("__init__", [](Pool* self, int threads) {
    need(threads >= 1 && threads <= 1024, "a pool has 1 to 1024 threads, got " + std::to_string(threads));
    new (self) Pool(threads);
  }, "threads"_a).def_prop_ro("threads", &Pool::size);
  nb::class_<PyMatrix>(m, "Matrix").def(nb::init<int, int, int, Bytes>(), "format"_a, "rows"_a, "cols"_a, "data"_a.noconvert());
  nb::class_<PyModel>(m, "Model")
      .def("__init__", [](PyModel* self, const std::string& name, int layers, int hidden, int query_heads, int kv_heads, int head_dim, int intermediate,
                          int vocab, int kv_format, int activation, float eps, float scaling, float embedding_scale) {
        new (self) PyModel(Sizes{layers, hidden, query_heads, kv_heads, head_dim, intermediate, vocab, kv_format, activation, eps, scaling, embedding_scale}, name);
      }, "level"_a, "layers"_a, "hidden"_a, "query_heads"_a, "kv_heads"_a, "head_dim"_a, "intermediate"_a, "vocab"_a, "kv_format"_a, "activation"_a,
         "eps"_a, "scaling"_a, "embedding_scale"_a)
      .def("set_vector", &PyModel::set_vector)
      .def("set_matrix", &PyModel::set_matrix)
      .def("set_window", &PyModel::set_window)
      .def("set_rotary", &PyModel::set_rotary)
      .def("set_table", &PyModel::set_table)
      .def("set_records", &PyModel::set_records)
      .def("set_columns", &PyModel::set_columns, "layer"_a, "part"_a, "columns"_a, "format"_a)
      .def("set_ends", &PyModel::set_ends)
      .def("seal", &PyModel::seal);
  nb::class_<PySelection>(m, "Selection")
      .def(nb::init<const PyModel&, int, int, int>(), "model"_a, "rank"_a, "page_size"_a, "reduction"_a)
      .def("set_layer", &PySelection::set_layer, "layer"_a, "key"_a, "query"_a, "producer"_a, "scale"_a, "query_projection"_a.none(), "projections"_a,
           "key_projection"_a.none(), "key_scales"_a.none(), "up"_a.none())
      .def("set_producer", &PySelection::set_producer);
  nb::class_<PyUnits>(m, "Units")
      .def(nb::init<const PyModel&>(), "model"_a, nb::keep_alive<1, 2>())
      .def("set_producer", &PyUnits::set_producer, "layer"_a, "weight"_a, "bias"_a)
      .def("give_heads", &PyUnits::give_heads, "layer"_a, "kept"_a)
      .def("foretell_heads", &PyUnits::foretell_heads, "layer"_a, "kept"_a, "pool"_a, "producer"_a, "weight"_a, "bias"_a)
      .def("give_neurons", &PyUnits::give_neurons, "layer"_a, "kept"_a)
      .def("foretell_neurons", &PyUnits::foretell_neurons, "layer"_a, "cut"_a, "producer"_a, "weight"_a, "bias"_a)
      .def("gate_neurons", &PyUnits::gate_neurons, "layer"_a, "cut"_a, "first"_a, "scale"_a, "left"_a.none(), "right"_a.none(), "spread"_a.none());
  nb::class_<PyActivations>(m, "Activations")
      .def(nb::init<const PyModel&>(), "model"_a, nb::keep_alive<1, 2>())
      .def("cut", &PyActivations::cut, "layer"_a, "part"_a, "centre"_a, "threshold"_a, "folded"_a.none());
  nb::class_<PySequence>(m, "Sequence")
      .def(nb::init<const PyModel&>())
      .def("bind", &PySequence::bind, "layer"_a, "keys"_a, "values"_a, "offset"_a = 0)
      .def("bind_index", &PySequence::bind_index)
      .def("bind_pages", &PySequence::bind_pages)
      .def("forget_index", &PySequence::forget_index)
      .def("forget_choices", &PySequence::forget_choices)
      .def_prop_rw("length", [](const PySequence& s) { return s.sequence.length; }, &PySequence::set_length);
  m.def("step", &step, "model"_a, "pool"_a, "sequences"_a, "tokens"_a, "logits"_a.noconvert(), "selection"_a.none(), "budgets"_a, "sinks"_a, "window"_a,
        "interval"_a, "pages"_a, "page_share"_a, "record"_a.none(), "units"_a = nb::list(), "computed"_a.none() = nb::none(),
        "activations"_a.none() = nb::none(), "inputs_read"_a.none() = nb::none(), "queries"_a.noconvert().none() = nb::none());
  m.def("cut_columns", &cut_columns, "level"_a, "pool"_a, "columns"_a.noconvert(), "format"_a, "outputs"_a, "x"_a.noconvert(), "centre"_a.noconvert(),
        "threshold"_a.noconvert(), "folded"_a.none(), "out"_a.noconvert(), "Inputs of each row that were read for.");
  m.def("some_rows", &some_rows, "level"_a, "pool"_a, "weight"_a.noconvert(), "format"_a, "active"_a.noconvert(), "x"_a.noconvert(),
        "out"_a.noconvert(), "columns"_a);
  m.def("read_bandwidth", &read_bandwidth, "Bytes a second read from memory: the best of `repeats`.");
  m.def("hamming", &count_different, "vectors"_a, "anchors"_a, "distances"_a, "Bits in which packed vectors differ from the anchor of their row.");
  m.def("represent", &represent, "votes"_a, "positions"_a, "rows"_a, "candidates"_a, "wanted"_a, "density"_a, "majority"_a, "anchors"_a,
        "chosen"_a, "KVCrush's representatives of a layer.");
  m.def("advise", &advise, "array"_a.noconvert());
  m.def("test_matvec", &test_matvec);
  m.def("test_attend", &test_attend, "level"_a, "queries"_a, "keys"_a, "values"_a, "format"_a, "scaling"_a, "indices"_a.none());
  m.def("test_score_keys", &test_score_keys, "level"_a, "keys"_a, "queries"_a, "scales"_a, "blocks"_a.none());
  m.def("test_score_pages", &test_score_pages);
  m.def("test_top", &test_top);
  m.def("test_sum_softmax2", &test_sum_softmax2);
  m.def("test_vector", &test_vector);
}
