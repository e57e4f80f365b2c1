// Matrix times vector, and what surrounds it: quantised inputs, norms, gates.

namespace {

using namespace sparsight;

constexpr int NV = PANEL / W;         // vectors a column of a panel
constexpr int MOST = 4;        // inputs that a panel is multiplied with at once: more would not fit the registers
// Panels that are read side by side: one processor draws more from memory in two streams than in one, and software prefetch slows it.
template <int B>
constexpr int STREAMS = B == 1 ? 2 : 1;

inline vf exp2v(vf x) {
  x = vmin(vmax(x, set1(-126.f)), set1(127.f));
  vf n = round_even(x), f = sub(x, n);
  vf p = set1(1.5252733804e-5f);  // Taylor: ln(2)^k / k!
  p = fma(p, f, set1(1.5403530393e-4f));
  p = fma(p, f, set1(1.3333558146e-3f));
  p = fma(p, f, set1(9.6181291076e-3f));
  p = fma(p, f, set1(5.5504108665e-2f));
  p = fma(p, f, set1(2.4022650696e-1f));
  p = fma(p, f, set1(6.9314718056e-1f));
  p = fma(p, f, set1(1.f));
  return scale2(p, n);
}

// With many inputs only one vector of a panel's rows is summed at a time, as many sums as there are registers for.
template <int B>
constexpr int TOGETHER = B * NV > 4 ? 1 : NV;

template <int B, int S>
void panel_f32(const uint8_t* const* w, int cols, const Input* x, float* const* y, const int* row) {
  constexpr int N = TOGETHER<B>;
  for (int first = 0; first < NV; first += N) {
    vf acc[S][B][N][2];
    UNROLL for (auto& stream : acc)
      UNROLL for (auto& input : stream)
        UNROLL for (auto& v : input) v[0] = v[1] = zero();
    for (int k = 0; k < cols; k += 2)
      UNROLL for (int s = 0; s < S; s++)
        UNROLL for (int v = 0; v < N; v++)
          UNROLL for (int i = 0; i < 2; i++) {
            vf weight = load((const float*)w[s] + (k + i) * PANEL + (first + v) * W);
            UNROLL for (int b = 0; b < B; b++) acc[s][b][v][i] = fma(weight, set1(x[b].values[k + i]), acc[s][b][v][i]);
          }
    UNROLL for (int s = 0; s < S; s++)
      UNROLL for (int b = 0; b < B; b++)
        UNROLL for (int v = 0; v < N; v++) store(y[b] + row[s] + (first + v) * W, add(acc[s][b][v][0], acc[s][b][v][1]));
  }
}

template <int B, int S>
void panel_bf16(const uint8_t* const* w, int cols, const Input* x, float* const* y, const int* row) {
  constexpr int N = TOGETHER<B>;
  for (int first = 0; first < NV; first += N) {
    vf acc[S][B][N][2];
    UNROLL for (auto& stream : acc)
      UNROLL for (auto& input : stream)
        UNROLL for (auto& v : input) v[0] = v[1] = zero();
    for (int k = 0; k < cols; k += 2)
      UNROLL for (int s = 0; s < S; s++)
        UNROLL for (int v = 0; v < N; v++) {
          const uint16_t* pairs = (const uint16_t*)w[s] + k * PANEL + 2 * (first + v) * W;
          vf even = load_even(pairs), odd = load_odd(pairs);
          UNROLL for (int b = 0; b < B; b++) {
            acc[s][b][v][0] = fma(even, set1(x[b].values[k]), acc[s][b][v][0]);
            acc[s][b][v][1] = fma(odd, set1(x[b].values[k + 1]), acc[s][b][v][1]);
          }
        }
    UNROLL for (int s = 0; s < S; s++)
      UNROLL for (int b = 0; b < B; b++)
        UNROLL for (int v = 0; v < N; v++) store(y[b] + row[s] + (first + v) * W, add(acc[s][b][v][0], acc[s][b][v][1]));
  }
}

template <int B, int S>
void panel_int8(const uint8_t* const* w, int cols, const Input* x, float* const* y, const int* row) {
  constexpr int BYTES = PANEL * GROUP + 2 * PANEL, N = TOGETHER<B>;
  for (int first = 0; first < NV; first += N) {
    vf acc[S][B][N];
    UNROLL for (auto& stream : acc)
      UNROLL for (auto& input : stream)
        UNROLL for (auto& v : input) v = zero();
    for (int g = 0; g < cols / GROUP; g++) {
      vacc8 a[S][B][N];
      UNROLL for (auto& stream : a)
        UNROLL for (auto& input : stream)
          UNROLL for (auto& v : input) v = acc8_zero();
      UNROLL for (int c = 0; c < GROUP / 4; c++)
        UNROLL for (int s = 0; s < S; s++)
          UNROLL for (int v = 0; v < N; v++) {
            vbytes bytes = load_bytes(w[s] + (size_t)g * BYTES + c * 4 * PANEL + (first + v) * 4 * W);
            UNROLL for (int b = 0; b < B; b++) a[s][b][v] = dot_int8(a[s][b][v], bytes, x[b].codes + g * GROUP + 4 * c);
          }
      UNROLL for (int s = 0; s < S; s++)
        UNROLL for (int v = 0; v < N; v++) {
          vf scale = load_fp16((const uint16_t*)(w[s] + (size_t)g * BYTES + PANEL * GROUP) + (first + v) * W);
          UNROLL for (int b = 0; b < B; b++)
            acc[s][b][v] = fma(mul(scale, set1(x[b].scales[g])), acc8_float(a[s][b][v], x[b].code_sums[g]), acc[s][b][v]);
        }
    }
    UNROLL for (int s = 0; s < S; s++)
      UNROLL for (int b = 0; b < B; b++)
        UNROLL for (int v = 0; v < N; v++) store(y[b] + row[s] + (first + v) * W, acc[s][b][v]);
  }
}

template <int B, int S>
void panel_int4(const uint8_t* const* w, int cols, const Input* x, float* const* y, const int* row) {
  constexpr int BYTES = PANEL * GROUP / 2 + 4 * PANEL, N = TOGETHER<B>;
  for (int first = 0; first < NV; first += N) {
    vf acc[S][B][N];
    UNROLL for (auto& stream : acc)
      UNROLL for (auto& input : stream)
        UNROLL for (auto& v : input) v = zero();
    for (int g = 0; g < cols / GROUP; g++) {
      vacc a[S][B][N];
      UNROLL for (auto& stream : a)
        UNROLL for (auto& input : stream)
          UNROLL for (auto& v : input) v = acc_zero();
      UNROLL for (int c = 0; c < GROUP / 8; c++)
        UNROLL for (int s = 0; s < S; s++)
          UNROLL for (int v = 0; v < N; v++) {
            vbytes bytes = load_bytes(w[s] + (size_t)g * BYTES + c * 4 * PANEL + (first + v) * 4 * W);
            vbytes low = low_nibbles(bytes), high = high_nibbles(bytes);
            UNROLL for (int b = 0; b < B; b++) {
              a[s][b][v] = dot_nibbles(a[s][b][v], low, x[b].codes + g * GROUP + 4 * c);
              a[s][b][v] = dot_nibbles(a[s][b][v], high, x[b].codes + g * GROUP + GROUP / 2 + 4 * c);
            }
          }
      UNROLL for (int s = 0; s < S; s++)
        UNROLL for (int v = 0; v < N; v++) {
          const uint16_t* scales = (const uint16_t*)(w[s] + (size_t)g * BYTES + PANEL * GROUP / 2) + (first + v) * W;
          vf scale = load_fp16(scales), least = load_fp16(scales + PANEL);
          UNROLL for (int b = 0; b < B; b++) {
            acc[s][b][v] = fma(mul(scale, set1(x[b].scales[g])), acc_float(a[s][b][v]), acc[s][b][v]);
            acc[s][b][v] = fma(least, set1(x[b].sums[g]), acc[s][b][v]);
          }
        }
    }
    UNROLL for (int s = 0; s < S; s++)
      UNROLL for (int b = 0; b < B; b++)
        UNROLL for (int v = 0; v < N; v++) store(y[b] + row[s] + (first + v) * W, acc[s][b][v]);
  }
}

// The panels p and, in the second stream, `apart` further.
template <int B, int S>
void panels(const Matrix& m, int p, int apart, const Input* x, float* const* y) {
  const uint8_t* w[2] = {m.data + (size_t)p * m.panel_bytes, m.data + (size_t)(p + apart) * m.panel_bytes};
  const int row[2] = {p * PANEL, (p + apart) * PANEL};
  switch (m.format) {
    case F32: return panel_f32<B, S>(w, m.cols, x, y, row);
    case BF16: return panel_bf16<B, S>(w, m.cols, x, y, row);
    case INT8: return panel_int8<B, S>(w, m.cols, x, y, row);
    default: return panel_int4<B, S>(w, m.cols, x, y, row);
  }
}

template <int B>
void all_panels(const Matrix& m, int p0, int p1, const Input* x, float* const* y) {
  const int half = STREAMS<B> == 2 ? (p1 - p0) / 2 : 0;
  for (int p = p0; p < p0 + half; p++) panels<B, STREAMS<B>>(m, p, half, x, y);
  for (int p = p0 + 2 * half; p < p1; p++) panels<B, 1>(m, p, 0, x, y);
}

// Each input's sums run in the same order whatever the batch, so a row gives the same bits alone and among others.
void matvec(const Matrix& m, int p0, int p1, int batch, const Input* x, float* const* y) {
  if (batch == 1) return all_panels<1>(m, p0, p1, x, y);
  for (int p = p0; p < p1; p++) {
    int b = 0;
    for (; b + MOST <= batch; b += MOST) panels<MOST, 1>(m, p, 0, x + b, y + b);
    if (b + 2 <= batch) panels<2, 1>(m, p, 0, x + b, y + b), b += 2;
    if (b < batch) panels<1, 1>(m, p, 0, x + b, y + b);
  }
}

void quantise(const float* x, int cols, int8_t* codes, float* scales, float* sums, int32_t* code_sums) {
  for (int g = 0; g < cols / GROUP; g++, x += GROUP, codes += GROUP) {
    vf most = zero();
    for (int i = 0; i < GROUP; i += W) most = vmax(vabs(load(x + i)), most);
    float largest = hmax(most);
    float inverse = largest > 1e-30f ? 127.f / largest : 0.f;
    for (int i = 0; i < GROUP; i += W) store_int8(codes + i, mul(load(x + i), set1(inverse)));
    int32_t sum = 0;
    for (int i = 0; i < GROUP; i++) sum += codes[i];
    scales[g] = largest > 1e-30f ? largest / 127.f : 0.f;
    sums[g] = scales[g] * (float)sum;
    code_sums[g] = sum;
  }
}

void rms_norm(const float* x, const float* weight, float* y, int n, float eps) {
  vf acc[2] = {zero(), zero()};
  int i = 0;
  for (; i + 2 * W <= n; i += 2 * W)
    UNROLL for (int s = 0; s < 2; s++) acc[s] = fma(load(x + i + s * W), load(x + i + s * W), acc[s]);
  float sum = hsum(add(acc[0], acc[1]));
  for (int j = i; j < n; j++) sum += x[j] * x[j];
  float r = 1.f / sqrtf(sum / (float)n + eps);
  for (i = 0; i + W <= n; i += W) store(y + i, mul(mul(load(x + i), set1(r)), load(weight + i)));
  for (; i < n; i++) y[i] = x[i] * r * weight[i];
}

void layer_norm(const float* x, const float* weight, const float* bias, float* y, int n, float eps) {
  double sum = 0, squares = 0;
  for (int i = 0; i < n; i++) sum += x[i];
  float mean = (float)(sum / n);
  for (int i = 0; i < n; i++) squares += (double)(x[i] - mean) * (x[i] - mean);
  float r = 1.f / sqrtf((float)(squares / n) + eps);
  for (int i = 0; i < n; i++) y[i] = (x[i] - mean) * r * weight[i] + bias[i];
}

inline vf activate(vf g, int activation) {
  // gelu_tanh(g) = g * sigmoid(2 * sqrt(2 / pi) * (g + 0.044715 g^3))
  vf t = activation == SILU ? g : mul(set1(1.5957691216f), fma(mul(mul(g, g), g), set1(0.044715f), g));
  return div(g, add(set1(1.f), exp2v(mul(t, set1(-1.4426950409f)))));
}

void gate(float* g, const float* up, int n, int activation) {
  int i = 0;
  for (; i + W <= n; i += W) {
    vf a = activate(load(g + i), activation);
    store(g + i, up ? mul(a, load(up + i)) : a);
  }
  if (i < n) {
    float rest[W] = {0};
    memcpy(rest, g + i, (n - i) * sizeof(float));
    store(rest, activate(load(rest), activation));
    for (int j = i; j < n; j++) g[j] = up ? rest[j - i] * up[j] : rest[j - i];
  }
}

// Two streams, as `matvec` reads.
uint64_t read_memory(const void* memory, size_t bytes) {
  const size_t half = bytes / 8 / (8 * W) * (8 * W);
  const float* p[2] = {(const float*)memory, (const float*)memory + half};
  vf acc[8];
  UNROLL for (auto& a : acc) a = zero();
  for (size_t i = 0; i < half; i += 8 * W)
    UNROLL for (int s = 0; s < 2; s++)
      for (int j = 0; j < 8; j++) acc[j] = add(acc[j], load(p[s] + i + j * W));
  float sum = 0;
  UNROLL for (auto& a : acc) sum += hsum(a);
  uint32_t bits;
  memcpy(&bits, &sum, 4);
  return bits;
}

}  // namespace
