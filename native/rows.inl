// Rows of a row-major matrix here and there: their products with a vector, and their weighted sum. Included behind attention.inl.

namespace {

constexpr int AT_ONCE = 4;  // rows: their sums stay in registers
// Rows that are asked for beforehand, into the second cache: there are few places for lines that the first one waits for, and with these alone
// scattered rows come at a third of the bandwidth.
constexpr int AHEAD = 32;

// Vectors stand in the order that bfloat16 is loaded in, and are padded with zeros to a multiple of ROW_PAD.
template <class T>
void order_row(const float* x, int cols, float* out, bool back) {
  const int padded = (cols + ROW_PAD - 1) / ROW_PAD * ROW_PAD, whole = cols / (2 * W) * (2 * W);
  if (!back) memset(out + whole, 0, (padded - whole) * sizeof(float));
  for (int start = 0; start < whole; start += 2 * W)  // of a fixed length, so that it becomes a shuffle of vectors
    for (int i = 0; i < 2 * W; i++) {
      const int at = start + place((const T*)nullptr, i);
      if (back) out[start + i] = x[at];
      else out[at] = x[start + i];
    }
  for (int c = whole; c < cols; c++) {
    const int at = whole + place((const T*)nullptr, c - whole);
    if (back) out[c] = x[at];
    else out[at] = x[c];
  }
}

void arrange(const float* x, int format, int cols, float* out) {
  format != BF16 ? order_row<float>(x, cols, out, false) : order_row<uint16_t>(x, cols, out, false);
}

void restore(const float* x, int format, int cols, float* out) {
  format != BF16 ? order_row<float>(x, cols, out, true) : order_row<uint16_t>(x, cols, out, true);
}

// Rows i to i + AT_ONCE - 1 of those chosen; behind the last one the last again, of which nothing is used.
template <class T>
inline void pick_rows(const char* rows, size_t stride, const int32_t* idx, int n, int i, const T** out) {
  for (int j = 0; j < AT_ONCE; j++) out[j] = (const T*)(rows + (size_t)idx[i + j < n ? i + j : n - 1] * stride);
}

inline void prefetch_first(const char* rows, size_t stride, size_t bytes, const int32_t* idx, int n) {
  for (int i = 0; i < AHEAD && i < n; i++)
    for (size_t line = 0; line < bytes; line += 64) prefetch_far(rows + (size_t)idx[i] * stride + line);
}

template <class T>
inline void prefetch_all(const T* const* row, int c) {
  UNROLL for (int j = 0; j < AT_ONCE; j++)
    UNROLL for (int line = 0; line < 2 * W * (int)sizeof(T); line += 64) prefetch_far((const char*)(row[j] + c) + line);
}

template <class T>
void dot_some(const char* rows, size_t stride, const int32_t* idx, int n, const float* x, int cols, float* out) {
  const int whole = cols / (2 * W) * (2 * W);
  prefetch_first(rows, stride, cols * sizeof(T), idx, n);
  for (int i = 0; i < n; i += AT_ONCE) {
    const T *row[AT_ONCE], *next[AT_ONCE];
    pick_rows(rows, stride, idx, n, i, row);
    pick_rows(rows, stride, idx, n, i + AHEAD < n ? i + AHEAD : i, next);
    vf acc[AT_ONCE][2];
    UNROLL for (auto& a : acc) a[0] = a[1] = zero();
    for (int c = 0; c < whole; c += 2 * W) {
      vf x0 = load(x + c), x1 = load(x + c + W);
      prefetch_all(next, c);
      UNROLL for (int j = 0; j < AT_ONCE; j++) {
        acc[j][0] = fma(load_first(row[j] + c), x0, acc[j][0]);
        acc[j][1] = fma(load_second(row[j] + c), x1, acc[j][1]);
      }
    }
    if (whole < cols) {
      vf x0 = load(x + whole), x1 = load(x + whole + W);
      for (int j = 0; j < AT_ONCE; j++) {
        Rest<T> rest(row[j] + whole, cols - whole);
        acc[j][0] = fma(load_first(rest.values), x0, acc[j][0]);
        acc[j][1] = fma(load_second(rest.values), x1, acc[j][1]);
      }
    }
    for (int j = 0; j < AT_ONCE && i + j < n; j++) out[i + j] = hsum(add(acc[j][0], acc[j][1]));
  }
}

template <class T>
void add_some(const char* rows, size_t stride, const int32_t* idx, int n, const float* h, int cols, float* acc) {
  const int whole = cols / (2 * W) * (2 * W);
  prefetch_first(rows, stride, cols * sizeof(T), idx, n);
  for (int i = 0; i < n; i += AT_ONCE) {
    const T *row[AT_ONCE], *next[AT_ONCE];
    pick_rows(rows, stride, idx, n, i, row);
    pick_rows(rows, stride, idx, n, i + AHEAD < n ? i + AHEAD : i, next);
    const int count = n - i < AT_ONCE ? n - i : AT_ONCE;
    vf weight[AT_ONCE];
    UNROLL for (int j = 0; j < AT_ONCE; j++) weight[j] = set1(j < count ? h[i + j] : 0.f);
    if (count == AT_ONCE) {
      for (int c = 0; c < whole; c += 2 * W) {
        vf a0 = load(acc + c), a1 = load(acc + c + W);
        prefetch_all(next, c);
        UNROLL for (int j = 0; j < AT_ONCE; j++) {
          a0 = fma(load_first(row[j] + c), weight[j], a0);
          a1 = fma(load_second(row[j] + c), weight[j], a1);
        }
        store(acc + c, a0), store(acc + c + W, a1);
      }
    } else {
      for (int c = 0; c < whole; c += 2 * W)
        for (int j = 0; j < count; j++) {
          store(acc + c, fma(load_first(row[j] + c), weight[j], load(acc + c)));
          store(acc + c + W, fma(load_second(row[j] + c), weight[j], load(acc + c + W)));
        }
    }
    if (whole < cols)
      for (int j = 0; j < count; j++) {
        Rest<T> rest(row[j] + whole, cols - whole);
        store(acc + whole, fma(load_first(rest.values), weight[j], load(acc + whole)));
        store(acc + whole + W, fma(load_second(rest.values), weight[j], load(acc + whole + W)));
      }
  }
}

// INT8: groups of 32 codes, each with a scale behind it.
void add_codes(const char* rows, size_t stride, const int32_t* idx, int n, const float* h, int cols, float* acc) {
  constexpr int BYTES = GROUP + 4, NV_GROUP = GROUP / W;
  const int groups = (cols + GROUP - 1) / GROUP;
  prefetch_first(rows, stride, (size_t)groups * BYTES, idx, n);
  for (int i = 0; i < n; i += AT_ONCE) {
    const char *row[AT_ONCE], *next[AT_ONCE];
    pick_rows(rows, stride, idx, n, i, row);
    pick_rows(rows, stride, idx, n, i + AHEAD < n ? i + AHEAD : i, next);
    const int count = n - i < AT_ONCE ? n - i : AT_ONCE;
    for (int g = 0; g < groups; g++) {
      vf a[NV_GROUP];
      UNROLL for (int v = 0; v < NV_GROUP; v++) a[v] = load(acc + g * GROUP + v * W);
      for (int j = 0; j < count; j++) {
        const char* group = row[j] + (size_t)g * BYTES;
        prefetch_far(next[j] + (size_t)g * BYTES);
        float scale;
        memcpy(&scale, group + GROUP, 4);
        const vf weight = set1(scale * h[i + j]);
        UNROLL for (int v = 0; v < NV_GROUP; v++) a[v] = fma(load_codes((const int8_t*)group + v * W), weight, a[v]);
      }
      UNROLL for (int v = 0; v < NV_GROUP; v++) store(acc + g * GROUP + v * W, a[v]);
    }
  }
}

void dot_rows(const void* rows, int format, size_t stride, const int32_t* idx, int n, const float* x, int cols, float* out) {
  if (format == F32) dot_some<float>((const char*)rows, stride, idx, n, x, cols, out);
  else dot_some<uint16_t>((const char*)rows, stride, idx, n, x, cols, out);
}

void add_rows(const void* rows, int format, size_t stride, const int32_t* idx, int n, const float* h, int cols, float* acc) {
  if (format == INT8) add_codes((const char*)rows, stride, idx, n, h, cols, acc);
  else if (format == F32) add_some<float>((const char*)rows, stride, idx, n, h, cols, acc);
  else add_some<uint16_t>((const char*)rows, stride, idx, n, h, cols, acc);
}

}  // namespace
