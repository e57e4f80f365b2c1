// Rows of a row-major matrix here and there: their products with a vector, and their weighted sum. Included behind attention.inl.

namespace {

constexpr int AT_ONCE = 4;  // rows: their sums stay in registers, and the lines of the next ones are asked for meanwhile

// Vectors stand in the order that bfloat16 is loaded in, and are padded with zeros to a multiple of ROW_PAD.
template <class T>
void order_row(const float* x, int cols, float* out, bool back) {
  const int padded = (cols + ROW_PAD - 1) / ROW_PAD * ROW_PAD;
  if (!back) memset(out, 0, padded * sizeof(float));
  for (int c = 0; c < cols; c++) {
    const int at = c / (2 * W) * 2 * W + place((const T*)nullptr, c % (2 * W));
    if (back) out[c] = x[at];
    else out[at] = x[c];
  }
}

void arrange(const float* x, int format, int cols, float* out) {
  format == F32 ? order_row<float>(x, cols, out, false) : order_row<uint16_t>(x, cols, out, false);
}

void restore(const float* x, int format, int cols, float* out) {
  format == F32 ? order_row<float>(x, cols, out, true) : order_row<uint16_t>(x, cols, out, true);
}

// Rows i to i + AT_ONCE - 1 of those chosen; behind the last one the last again, of which nothing is used.
template <class T>
inline void pick_rows(const char* rows, size_t stride, const int32_t* idx, int n, int i, const T** out) {
  for (int j = 0; j < AT_ONCE; j++) out[j] = (const T*)(rows + (size_t)idx[i + j < n ? i + j : n - 1] * stride);
}

template <class T>
inline void prefetch_all(const T* const* row, int c) {
  UNROLL for (int j = 0; j < AT_ONCE; j++)
    UNROLL for (int line = 0; line < 2 * W * (int)sizeof(T); line += 64) prefetch((const char*)(row[j] + c) + line);
}

template <class T>
void dot_some(const char* rows, size_t stride, const int32_t* idx, int n, const float* x, int cols, float* out) {
  const int whole = cols / (2 * W) * (2 * W);
  for (int i = 0; i < n; i += AT_ONCE) {
    const T *row[AT_ONCE], *next[AT_ONCE];
    pick_rows(rows, stride, idx, n, i, row);
    pick_rows(rows, stride, idx, n, i + AT_ONCE < n ? i + AT_ONCE : i, next);
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
  for (int i = 0; i < n; i += AT_ONCE) {
    const T *row[AT_ONCE], *next[AT_ONCE];
    pick_rows(rows, stride, idx, n, i, row);
    pick_rows(rows, stride, idx, n, i + AT_ONCE < n ? i + AT_ONCE : i, next);
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

void dot_rows(const void* rows, int format, size_t stride, const int32_t* idx, int n, const float* x, int cols, float* out) {
  if (format == F32) dot_some<float>((const char*)rows, stride, idx, n, x, cols, out);
  else dot_some<uint16_t>((const char*)rows, stride, idx, n, x, cols, out);
}

void add_rows(const void* rows, int format, size_t stride, const int32_t* idx, int n, const float* h, int cols, float* acc) {
  if (format == F32) add_some<float>((const char*)rows, stride, idx, n, h, cols, acc);
  else add_some<uint16_t>((const char*)rows, stride, idx, n, h, cols, acc);
}

}  // namespace
