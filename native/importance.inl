// Importance of cached tokens, and the choice of the most important.

namespace {

template <int H>
void score_keys_of(const int8_t* all, const int32_t* blocks, int pairs, int tokens, const int16_t* const* queries, const float* scales, float* const* out) {
  for (int t = 0; t < tokens; t += PANEL) {
    const int8_t* keys = all + (size_t)(blocks ? blocks[t / PANEL] : t / PANEL) * 2 * PANEL * pairs;
    decltype(keys_zero()) acc[H][NV];
    UNROLL for (auto& head : acc)
      UNROLL for (auto& v : head) v = keys_zero();
    for (int c = 0; c < pairs; c++) {
      vkeys k[NV];
      UNROLL for (int v = 0; v < NV; v++) k[v] = load_keys(keys + c * 2 * PANEL + v * 2 * W);
      UNROLL for (int h = 0; h < H; h++)
        UNROLL for (int v = 0; v < NV; v++) acc[h][v] = dot_keys(acc[h][v], k[v], queries[h] + 2 * c);
    }
    UNROLL for (int h = 0; h < H; h++)
      UNROLL for (int v = 0; v < NV; v++) store(out[h] + t + v * W, mul(keys_float(acc[h][v]), set1(scales[h])));
  }
}

void score_keys(const int8_t* keys, const int32_t* blocks, int pairs, int tokens, int heads, const int16_t* const* queries, const float* scales, float* const* out) {
  int h = 0;
  for (; h + 3 <= heads; h += 3) score_keys_of<3>(keys, blocks, pairs, tokens, queries + h, scales + h, out + h);
  if (heads - h == 2) score_keys_of<2>(keys, blocks, pairs, tokens, queries + h, scales + h, out + h);
  if (heads - h == 1) score_keys_of<1>(keys, blocks, pairs, tokens, queries + h, scales + h, out + h);
}

template <class T>
inline vf bound_of(const T* low, const T* high, const float* query) {
  vf first = load(query), second = load(query + W);
  return add(vmax(mul(first, load_first(low)), mul(first, load_first(high))), vmax(mul(second, load_second(low)), mul(second, load_second(high))));
}

template <class T>
void pages_of(const T* bounds, int head_dim, int pages, const float* query, float* out) {
  const int whole = head_dim / (2 * W) * (2 * W);
  for (int p = 0; p < pages; p++, bounds += 2 * head_dim) {
    const T *low = bounds, *high = bounds + head_dim;
    for (int i = 0; i < 2 * head_dim; i += 64 / (int)sizeof(T)) prefetch(bounds + 4 * head_dim + i);
    vf sum = zero();
    for (int i = 0; i < whole; i += 2 * W) sum = add(sum, bound_of(low + i, high + i, query + i));
    if (whole < head_dim) sum = add(sum, bound_of(Rest<T>(low + whole, head_dim - whole).values, Rest<T>(high + whole, head_dim - whole).values, query + whole));
    out[p] = hsum(sum);
  }
}

void score_pages(const void* bounds, int format, int head_dim, int pages, const float* query, float* out) {
  float lanes[512 + 2 * W];  // the query with each channel in the lane of the bounds'
  const int padded = (head_dim + 2 * W - 1) / (2 * W) * (2 * W);
  for (int c = 0; c < padded; c++) {
    int to = c / (2 * W) * (2 * W) + (format == F32 ? place((const float*)nullptr, c % (2 * W)) : place((const uint16_t*)nullptr, c % (2 * W)));
    lanes[to] = c < head_dim ? query[c] : 0.f;
  }
  if (format == F32) pages_of((const float*)bounds, head_dim, pages, lanes, out);
  else pages_of((const uint16_t*)bounds, head_dim, pages, lanes, out);
}

// 2^x for x <= 0, to five digits: enough to put tokens in order.
inline vf exp2_down(vf x) {
  x = vmax(x, set1(-126.f));
  vf n = round_even(x), f = sub(x, n);
  vf p = set1(1.3333558146e-3f);
  p = fma(p, f, set1(9.6181291076e-3f));
  p = fma(p, f, set1(5.5504108665e-2f));
  p = fma(p, f, set1(2.4022650696e-1f));
  p = fma(p, f, set1(6.9314718056e-1f));
  p = fma(p, f, set1(1.f));
  return scale2(p, n);
}

void sum_softmax2(float* const* scores, int heads, int n, float* out) {
  const int whole = (n + W - 1) / W * W;
  for (int h = 0; h < heads; h++) {
    float* s = scores[h];
    for (int t = n; t < whole; t++) s[t] = s[n - 1];
    vf most[4] = {load(s), load(s), load(s), load(s)};
    int t = 0;
    for (; t + 4 * W <= whole; t += 4 * W)
      UNROLL for (int i = 0; i < 4; i++) most[i] = vmax(most[i], load(s + t + i * W));
    for (; t < whole; t += W) most[0] = vmax(most[0], load(s + t));
    const vf shift = set1(hmax(vmax(vmax(most[0], most[1]), vmax(most[2], most[3]))));
    vf sum[2] = {zero(), zero()};
    for (t = 0; t + 2 * W <= n; t += 2 * W)
      UNROLL for (int i = 0; i < 2; i++) {
        vf e = exp2_down(sub(load(s + t + i * W), shift));
        store(s + t + i * W, e);
        sum[i] = add(sum[i], e);
      }
    for (; t < whole; t += W) {
      store(s + t, exp2_down(sub(load(s + t), shift)));
      for (int j = n; j < t + W; j++) s[j] = 0;
      sum[0] = add(sum[0], load(s + t));
    }
    const vf inverse = set1(1.f / hsum(add(sum[0], sum[1])));
    for (t = 0; t < whole; t += W) store(out + t, h ? fma(load(s + t), inverse, load(out + t)) : mul(load(s + t), inverse));
  }
}

// Keys in [low, high] into `out`, which has room for W more than n; how many there are, and how many are above.
int between(const uint32_t* keys, int n, uint32_t low, uint32_t high, uint32_t* out, int* larger) {
  int found = 0, more = 0, i = 0;
  for (; i + W <= n; i += W) {
    const unsigned over = above(keys + i, high), in = (low ? above(keys + i, low - 1) : (1u << W) - 1) & ~over;
    more += __builtin_popcount(over);
    found += compress(keys + i, in, out + found);
  }
  for (; i < n; i++) {
    if (keys[i] > high) more++;
    else if (keys[i] >= low) out[found++] = keys[i];
  }
  *larger = more;
  return found;
}

int count_above(const uint32_t* keys, int n, uint32_t cut) {
  int i = 0, count = 0;
  vcount counts = count_zero();
  for (; i + W <= n; i += W) counts = count_if_above(counts, keys + i, cut);
  count = count_sum(counts);
  for (; i < n; i++) count += keys[i] > cut;
  return count;
}

// Indices, ascending, of keys above `cut`, and of the first `equal` that equal it, plus `base`; `out` has room for W more than that.
int collect(const uint32_t* keys, int n, uint32_t cut, int equal, int base, int32_t* out) {
  int taken = 0, i = 0;
  for (; i + W <= n; i += W) {
    unsigned chosen = above(keys + i, cut);
    if (equal > 0) {
      unsigned same = (cut ? above(keys + i, cut - 1) : (1u << W) - 1) & ~chosen;
      for (; same && equal > 0; same &= same - 1, equal--) chosen |= same & -same;
    }
    taken += place_lanes(chosen, base + i, out + taken);
  }
  for (; i < n; i++)
    if (keys[i] > cut || (keys[i] == cut && equal-- > 0)) out[taken++] = base + i;
  return taken;
}

}  // namespace
