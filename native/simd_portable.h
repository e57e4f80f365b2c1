// Vectors in plain C++: what every machine can run, and the order of additions that the wider forms are compared with.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "half.h"

#define SPARSIGHT_LEVEL_NAME "portable"

// Loops over registers: arrays of vectors stay in memory unless these are unrolled before anything else.
#define UNROLL _Pragma("GCC unroll 16")

namespace {

constexpr int W = 8;

struct vf {
  float v[W];
};

#define EACH for (int i = 0; i < W; i++)
// Weights, keys and values stand at any address: what is behind a pointer is copied, never read as what the pointer says it is.
inline vf load(const float* p) { vf r; memcpy(r.v, p, sizeof r.v); return r; }
inline uint16_t half_at(const uint16_t* p, int i) { uint16_t h; memcpy(&h, (const char*)p + 2 * i, 2); return h; }
inline void store(float* p, vf a) { EACH p[i] = a.v[i]; }
inline vf set1(float x) { vf r; EACH r.v[i] = x; return r; }
inline vf zero() { return set1(0.f); }
inline vf add(vf a, vf b) { vf r; EACH r.v[i] = a.v[i] + b.v[i]; return r; }
inline vf sub(vf a, vf b) { vf r; EACH r.v[i] = a.v[i] - b.v[i]; return r; }
inline vf mul(vf a, vf b) { vf r; EACH r.v[i] = a.v[i] * b.v[i]; return r; }
inline vf div(vf a, vf b) { vf r; EACH r.v[i] = a.v[i] / b.v[i]; return r; }
inline vf fma(vf a, vf b, vf c) { vf r; EACH r.v[i] = a.v[i] * b.v[i] + c.v[i]; return r; }
inline vf vmax(vf a, vf b) { vf r; EACH r.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i]; return r; }
inline vf vmin(vf a, vf b) { vf r; EACH r.v[i] = a.v[i] < b.v[i] ? a.v[i] : b.v[i]; return r; }
inline vf vabs(vf a) { vf r; EACH r.v[i] = fabsf(a.v[i]); return r; }
inline float hsum(vf a) {
  float t[4];
  for (int i = 0; i < 4; i++) t[i] = a.v[i] + a.v[i + 4];
  return (t[0] + t[2]) + (t[1] + t[3]);
}
inline float hmax(vf a) {
  float m = a.v[0];
  EACH m = a.v[i] > m ? a.v[i] : m;
  return m;
}
inline void reduce4(vf a, vf b, vf c, vf d, float* out) { out[0] = hsum(a), out[1] = hsum(b), out[2] = hsum(c), out[3] = hsum(d); }
inline vf round_even(vf a) { vf r; EACH r.v[i] = nearbyintf(a.v[i]); return r; }
// a * 2^n for whole n in [-126, 127].
inline vf scale2(vf a, vf n) {
  vf r;
  EACH { uint32_t bits = (uint32_t)((int)n.v[i] + 127) << 23; float f; memcpy(&f, &bits, 4); r.v[i] = a.v[i] * f; }
  return r;
}
// Of 2 W bfloat16 those at even, and those at odd places.
inline vf load_even(const uint16_t* p) { vf r; EACH r.v[i] = bf16_to_float(half_at(p, 2 * i)); return r; }
inline vf load_odd(const uint16_t* p) { vf r; EACH r.v[i] = bf16_to_float(half_at(p, 2 * i + 1)); return r; }
inline vf load_fp16(const uint16_t* p) { vf r; EACH r.v[i] = fp16_to_float(half_at(p, i)); return r; }
// W floats rounded to whole numbers in [-127, 127].
inline void store_int8(int8_t* p, vf a) { EACH p[i] = (int8_t)nearbyintf(a.v[i]); }
inline unsigned above(const uint32_t* keys, uint32_t cut) { unsigned m = 0; EACH m |= (unsigned)(keys[i] > cut) << i; return m; }

// first + i for the lanes in `mask`, in order, to the front of W places; how many.
inline int place_lanes(unsigned mask, int first, int32_t* out) {
  int n = 0;
  EACH if (mask >> i & 1) out[n++] = first + i;
  return n;
}

struct vcount { int v[W]; };
inline vcount count_zero() { vcount r; EACH r.v[i] = 0; return r; }
inline vcount count_if_above(vcount a, const uint32_t* keys, uint32_t cut) { EACH a.v[i] += keys[i] > cut; return a; }
inline int count_sum(vcount a) { int n = 0; EACH n += a.v[i]; return n; }

// Keys of the lanes in `mask`, in order, to the front of W places; how many.
inline int compress(const uint32_t* keys, unsigned mask, uint32_t* out) {
  int n = 0;
  EACH if (mask >> i & 1) out[n++] = keys[i];
  return n;
}

inline vf load_codes(const int8_t* p) { vf r; EACH r.v[i] = (float)p[i]; return r; }

// Sums of products of W rows, four columns of bytes at a time; `x` points to four int8.
struct vacc { int32_t v[W]; };
inline vacc acc_zero() { vacc r; EACH r.v[i] = 0; return r; }
struct vbytes { uint8_t b[4 * W]; };
inline vbytes load_bytes(const uint8_t* p) { vbytes r; memcpy(r.b, p, 4 * W); return r; }
inline vbytes low_nibbles(vbytes a) { for (int i = 0; i < 4 * W; i++) a.b[i] &= 15; return a; }
inline vbytes high_nibbles(vbytes a) { for (int i = 0; i < 4 * W; i++) a.b[i] >>= 4; return a; }
// Nibbles: at most eight additions before `acc_float`.
inline vacc dot_nibbles(vacc a, vbytes w, const int8_t* x) {
  EACH for (int j = 0; j < 4; j++) a.v[i] += w.b[4 * i + j] * x[j];
  return a;
}
inline vf acc_float(vacc a) { vf r; EACH r.v[i] = (float)a.v[i]; return r; }
using vacc8 = vacc;
inline vacc8 acc8_zero() { return acc_zero(); }
inline vacc8 dot_int8(vacc8 a, vbytes w, const int8_t* x) {
  EACH for (int j = 0; j < 4; j++) a.v[i] += (int8_t)w.b[4 * i + j] * x[j];
  return a;
}
inline vf acc8_float(vacc8 a, int32_t) { return acc_float(a); }

// Scores of W tokens: two channels of int8 keys a token, times two int16 of a query.
struct vkeys { int16_t k[2 * W]; };
inline vkeys load_keys(const int8_t* p) { vkeys r; for (int i = 0; i < 2 * W; i++) r.k[i] = p[i]; return r; }
inline vacc dot_keys(vacc a, vkeys k, const int16_t* q) {
  EACH a.v[i] += k.k[2 * i] * q[0] + k.k[2 * i + 1] * q[1];
  return a;
}
inline vf keys_float(vacc a) { return acc_float(a); }
inline vacc keys_zero() { return acc_zero(); }
inline void prefetch(const void* p) { __builtin_prefetch(p); }
inline void prefetch_far(const void* p) { __builtin_prefetch(p, 0, 2); }
#undef EACH

}  // namespace
