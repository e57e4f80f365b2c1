// Attention of the query heads of one KV head over up to CHUNK tokens, contiguous or gathered.

namespace {

// Two vectors of 2 W consecutive elements. Which element stands in which lane is the same for queries, keys and values.
inline vf load_first(const uint16_t* p) { return load_even(p); }
inline vf load_second(const uint16_t* p) { return load_odd(p); }
inline vf load_first(const float* p) { return load(p); }
inline vf load_second(const float* p) { return load(p + W); }
inline int place(const uint16_t*, int i) { return (i & 1) * W + i / 2; }
inline int place(const float*, int i) { return i; }

// The last n of a row, and zeros.
template <class T>
struct Rest {
  T values[2 * W] = {0};
  Rest(const T* p, int n) { memcpy(values, p, n * sizeof(T)); }
};

// What is multiplied with several rows is loaded anew for each: kept in registers, it would push the sums out of them.
#define LOADED_ANEW() asm volatile("" ::: "memory")

constexpr int TILE = 64;  // tokens scored before their values are added up: what is read of them stays in the first cache
constexpr int PITCH = TILE + 8;

template <class T>
inline void prefetch_row(const T* row, int d) {
  for (int i = 0; i < d; i += 64 / (int)sizeof(T)) prefetch_far(row + i);
}

// Tokens whose scores are summed together: as many as leave their sums and one vector of each key in registers.
template <int H>
constexpr int ROWS = W == 16 || H < 3 ? 4 : H == 3 ? 3 : 2;

template <int H, class T>
inline void score_step(const T* const* row, const float* queries, int padded, vf (*acc)[H]) {
  vf k[ROWS<H>];
  UNROLL for (int j = 0; j < ROWS<H>; j++) k[j] = load_first(row[j]);
  UNROLL for (int h = 0; h < H; h++) {
    vf q = load(queries + h * padded);
    UNROLL for (int j = 0; j < ROWS<H>; j++) acc[j][h] = fma(k[j], q, acc[j][h]);
  }
  LOADED_ANEW();
  UNROLL for (int j = 0; j < ROWS<H>; j++) k[j] = load_second(row[j]);
  UNROLL for (int h = 0; h < H; h++) {
    vf q = load(queries + h * padded + W);
    UNROLL for (int j = 0; j < ROWS<H>; j++) acc[j][h] = fma(k[j], q, acc[j][h]);
  }
  LOADED_ANEW();
}

// scores[h * PITCH + t] = query h . key t; H heads, D channels (0: `width`, read at run time). The values of the same tokens are asked for.
template <int H, int D, class T>
void score_tile(const T* keys, const T* values, const int64_t* rows, int count, int width, const float* queries, float* scores) {
  constexpr int R = ROWS<H>;
  const int d = D ? D : width, whole = d / (2 * W) * (2 * W), padded = (d + 2 * W - 1) / (2 * W) * (2 * W);
  for (int t = 0; t < count; t += R) {
    vf acc[R][H];
    UNROLL for (int j = 0; j < R; j++) {
      prefetch_row(values + rows[t + j], d);
      UNROLL for (int h = 0; h < H; h++) acc[j][h] = zero();
    }
    for (int i = 0; i < whole; i += 2 * W) {
      const T* row[R];
      UNROLL for (int j = 0; j < R; j++) row[j] = keys + rows[t + j] + i;
      score_step<H>(row, queries + i, padded, acc);
    }
    if (!D && whole < d) {
      Rest<T> rest[4] = {{keys + rows[t] + whole, d - whole}, {keys + rows[t + 1] + whole, d - whole}, {keys + rows[t + 2] + whole, d - whole}, {keys + rows[t + 3] + whole, d - whole}};
      const T* row[4] = {rest[0].values, rest[1].values, rest[2].values, rest[3].values};
      score_step<H>(row, queries + whole, padded, acc);
    }
    if (R == 2) {
      UNROLL for (int j = 0; j < R; j++) {
        float heads[4];
        reduce4(acc[j][0], acc[j][1 % H], acc[j][2 % H], acc[j][3 % H], heads);
        UNROLL for (int h = 0; h < H; h++) scores[h * PITCH + t + j] = heads[h];
      }
    } else {  // a fourth sum of three is written over by the next
      UNROLL for (int h = 0; h < H; h++) reduce4(acc[0][h], acc[1][h], acc[2 % R][h], acc[3 % R][h], scores + h * PITCH + t);
    }
  }
}

// sums[h * padded + lane] = factor[h] * itself + sum over tokens of weights[h * PITCH + t] * value[t], N double vectors of channels from `at`. The
// keys of the next tile are asked for by the first block.
template <int H, int N, class T>
void weigh_block(const T* keys, const T* values, const int64_t* rows, int count, int width, int padded, int at, const float* weights, const float* factor, float* sums) {
  const int rest = width - at < 2 * W ? width - at : 0;
  vf acc[H][2 * N];
  UNROLL for (int h = 0; h < H; h++)
    UNROLL for (int i = 0; i < 2 * N; i++) acc[h][i] = mul(load(sums + h * padded + at + i * W), set1(factor[h]));
  for (int t = 0; t < count; t++) {
    const T* row = values + rows[t] + at;
    if (at == 0) prefetch_row(keys + rows[t + TILE], width);
    UNROLL for (int i = 0; i < N; i++) {
      vf a, b;
      if (rest) {
        Rest<T> last(row, rest);
        a = load_first(last.values), b = load_second(last.values);
      } else {
        a = load_first(row + i * 2 * W), b = load_second(row + i * 2 * W);
      }
      UNROLL for (int h = 0; h < H; h++) {
        vf p = set1(weights[h * PITCH + t]);
        acc[h][2 * i] = fma(p, a, acc[h][2 * i]);
        acc[h][2 * i + 1] = fma(p, b, acc[h][2 * i + 1]);
      }
      LOADED_ANEW();
    }
  }
  UNROLL for (int h = 0; h < H; h++)
    UNROLL for (int i = 0; i < 2 * N; i++) store(sums + h * padded + at + i * W, acc[h][i]);
}

// Scores to weights 2^(score - largest) of one tile; what came before shrinks by the factor returned where `largest` rises.
inline float soften(float* s, int count, float& largest, float& total) {
  for (int t = count; t % W; t++) s[t] = s[count - 1];
  vf most = load(s);
  for (int t = W; t < count; t += W) most = vmax(most, load(s + t));
  const float before = largest, now = hmax(most) > largest ? hmax(most) : largest;
  const vf shift = set1(now);
  vf sum = zero();
  for (int t = 0; t < count; t += W) {
    vf e = exp2v(sub(load(s + t), shift));
    store(s + t, e);
    if (t + W > count) {
      for (int j = count; j < t + W; j++) s[j] = 0;
      e = load(s + t);
    }
    sum = add(sum, e);
  }
  const float factor = before == now ? 1.f : exp2f(before - now);
  largest = now;
  total = total * factor + hsum(sum);
  return factor;
}

// Where the tokens of a piece begin, and of those behind it; as many of the last follow as loops look ahead.
void fill_rows(const Attend& a, int64_t* rows) {
  const int64_t d = a.stride;
  const int known = a.count + (a.beyond < TILE ? a.beyond : TILE);
  if (a.indices)
    for (int t = 0; t < known; t++) rows[t] = a.indices[t] * d;
  else
    for (int t = 0; t < known; t++) rows[t] = (a.start + t) * d;
  for (int t = known; t < a.count + TILE + 4; t++) rows[t] = rows[known - 1];
}

template <int H, int D, class T>
void attend_heads(const Attend& a, int first, const int64_t* rows) {
  const int d = D ? D : a.head_dim, padded = (d + 2 * W - 1) / (2 * W) * (2 * W);
  const T *keys = (const T*)a.keys, *values = (const T*)a.values;
  alignas(64) float queries[H * 512], sums[H * 512], scores[H * PITCH];
  UNROLL for (int h = 0; h < H; h++) {
    const float* from = a.queries + (first + h) * d;
    int at = 0;
    for (; at + 2 * W <= d; at += 2 * W)
      for (int i = 0; i < 2 * W; i++) queries[h * padded + at + place((const T*)nullptr, i)] = from[at + i];
    for (int i = 0; at + i < padded; i++) queries[h * padded + at + place((const T*)nullptr, i)] = at + i < d ? from[at + i] : 0.f;
    for (int i = 0; i < padded; i++) sums[h * padded + i] = 0;
  }
  constexpr int N = (W == 8 && H == 4) ? 1 : 2;
  float largest[H], total[H], factor[H];
  UNROLL for (int h = 0; h < H; h++) largest[h] = -INFINITY, total[h] = 0;
  for (int t = 0; t < a.count; t += TILE) {
    const int count = a.count - t < TILE ? a.count - t : TILE;
    score_tile<H, D, T>(keys, values, rows + t, count, d, queries, scores);
    UNROLL for (int h = 0; h < H; h++) factor[h] = soften(scores + h * PITCH, count, largest[h], total[h]);
    int at = 0;
    for (; at + N * 2 * W <= d; at += N * 2 * W) weigh_block<H, N, T>(keys, values, rows + t, count, d, padded, at, scores, factor, sums);
    for (; at < d; at += 2 * W) weigh_block<H, 1, T>(keys, values, rows + t, count, d, padded, at, scores, factor, sums);
  }
  UNROLL for (int h = 0; h < H; h++) {
    a.largest[first + h] = largest[h], a.total[first + h] = total[h];
    float* to = a.out + (first + h) * d;
    int at = 0;
    for (; at + 2 * W <= d; at += 2 * W)
      for (int i = 0; i < 2 * W; i++) to[at + i] = sums[h * padded + at + place((const T*)nullptr, i)];
    for (int i = 0; at + i < d; i++) to[at + i] = sums[h * padded + at + place((const T*)nullptr, i)];
  }
}

template <int H, class T>
void attend_width(const Attend& a, int first, const int64_t* rows) {
  switch (a.head_dim) {
    case 64: return attend_heads<H, 64, T>(a, first, rows);
    case 128: return attend_heads<H, 128, T>(a, first, rows);
    default: return attend_heads<H, 0, T>(a, first, rows);
  }
}

template <class T>
void attend_all(const Attend& a) {
  int64_t rows[CHUNK + TILE + 4];
  fill_rows(a, rows);
  int h = 0;
  for (; h + 4 <= a.heads; h += 4) attend_width<4, T>(a, h, rows);
  switch (a.heads - h) {
    case 3: attend_width<3, T>(a, h, rows); break;
    case 2: attend_width<2, T>(a, h, rows); break;
    case 1: attend_width<1, T>(a, h, rows); break;
  }
}

void attend(const Attend& a) {
  if (a.format == F32) attend_all<float>(a);
  else attend_all<uint16_t>(a);
}

}  // namespace
