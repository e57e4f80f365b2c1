// Vectors of eight floats: AVX2, FMA and F16C.
#pragma once
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define SPARSIGHT_LEVEL_NAME "avx2"

// Loops over registers: arrays of vectors stay in memory unless these are unrolled before anything else.
#define UNROLL _Pragma("GCC unroll 16")

namespace {

constexpr int W = 8;
using vf = __m256;

inline vf load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, vf a) { _mm256_storeu_ps(p, a); }
inline vf set1(float x) { return _mm256_set1_ps(x); }
inline vf zero() { return _mm256_setzero_ps(); }
inline vf add(vf a, vf b) { return _mm256_add_ps(a, b); }
inline vf sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
inline vf mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
inline vf div(vf a, vf b) { return _mm256_div_ps(a, b); }
inline vf fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
inline vf vmax(vf a, vf b) { return _mm256_max_ps(a, b); }
inline vf vmin(vf a, vf b) { return _mm256_min_ps(a, b); }
inline vf vabs(vf a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.f), a); }
inline float hsum(vf a) {
  __m128 t = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  t = _mm_add_ps(t, _mm_movehl_ps(t, t));
  return _mm_cvtss_f32(_mm_add_ss(t, _mm_shuffle_ps(t, t, 1)));
}
inline float hmax(vf a) {
  __m128 t = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  t = _mm_max_ps(t, _mm_movehl_ps(t, t));
  return _mm_cvtss_f32(_mm_max_ss(t, _mm_shuffle_ps(t, t, 1)));
}
inline void reduce4(vf a, vf b, vf c, vf d, float* out) {
  vf ab = _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
  vf cd = _mm256_add_ps(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
  __m256d x = _mm256_castps_pd(ab), y = _mm256_castps_pd(cd);
  vf t = _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(x, y)), _mm256_castpd_ps(_mm256_unpackhi_pd(x, y)));
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(t), _mm256_extractf128_ps(t, 1)));
}
inline vf round_even(vf a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline vf scale2(vf a, vf n) {
  __m256i bits = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_mul_ps(a, _mm256_castsi256_ps(bits));
}
// Of 2 W bfloat16 those at even, and those at odd places.
inline vf load_even(const uint16_t* p) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_loadu_si256((const __m256i*)p), 16)); }
inline vf load_odd(const uint16_t* p) {
  return _mm256_castsi256_ps(_mm256_and_si256(_mm256_loadu_si256((const __m256i*)p), _mm256_set1_epi32((int)0xffff0000)));
}
inline vf load_codes(const int8_t* p) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p))); }
inline vf load_fp16(const uint16_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
inline void store_int8(int8_t* p, vf a) {
  __m256i x = _mm256_cvtps_epi32(a);
  __m128i h = _mm_packs_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
  _mm_storel_epi64((__m128i*)p, _mm_packs_epi16(h, h));
}
inline unsigned above(const uint32_t* keys, uint32_t cut) {
  const __m256i flip = _mm256_set1_epi32((int)0x80000000);
  __m256i x = _mm256_xor_si256(_mm256_loadu_si256((const __m256i*)keys), flip);
  return (unsigned)_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(x, _mm256_set1_epi32((int)(cut ^ 0x80000000u)))));
}

using vcount = __m256i;
inline vcount count_zero() { return _mm256_setzero_si256(); }
inline vcount count_if_above(vcount a, const uint32_t* keys, uint32_t cut) {
  __m256i x = _mm256_xor_si256(_mm256_loadu_si256((const __m256i*)keys), _mm256_set1_epi32((int)0x80000000));
  return _mm256_sub_epi32(a, _mm256_cmpgt_epi32(x, _mm256_set1_epi32((int)(cut ^ 0x80000000u))));
}
inline int count_sum(vcount a) {
  alignas(32) int v[8];
  _mm256_store_si256((__m256i*)v, a);
  return v[0] + v[1] + v[2] + v[3] + v[4] + v[5] + v[6] + v[7];
}

// For each mask, the lanes that it names, as a permutation.
struct Lanes {
  alignas(32) uint32_t of[256][8];
  constexpr Lanes() : of() {
    for (int mask = 0; mask < 256; mask++)
      for (int i = 0, n = 0; i < 8; i++)
        if (mask >> i & 1) of[mask][n++] = i;
  }
};
constexpr Lanes lanes;

inline int place_lanes(unsigned mask, int first, int32_t* out) {
  __m256i which = _mm256_load_si256((const __m256i*)lanes.of[mask]);
  _mm256_storeu_si256((__m256i*)out, _mm256_add_epi32(which, _mm256_set1_epi32(first)));
  return __builtin_popcount(mask);
}

inline int compress(const uint32_t* keys, unsigned mask, uint32_t* out) {
  __m256i order = _mm256_load_si256((const __m256i*)lanes.of[mask]);
  _mm256_storeu_si256((__m256i*)out, _mm256_permutevar8x32_epi32(_mm256_loadu_si256((const __m256i*)keys), order));
  return __builtin_popcount(mask);
}

inline __m256i four(const void* x) { int32_t d; memcpy(&d, x, 4); return _mm256_set1_epi32(d); }

// int16 lanes: eight additions of two products 15 * 127 fit.
using vacc = __m256i;
using vbytes = __m256i;
inline vacc acc_zero() { return _mm256_setzero_si256(); }
inline vbytes load_bytes(const uint8_t* p) { return _mm256_loadu_si256((const __m256i*)p); }
inline vbytes low_nibbles(vbytes a) { return _mm256_and_si256(a, _mm256_set1_epi8(15)); }
inline vbytes high_nibbles(vbytes a) { return _mm256_and_si256(_mm256_srli_epi16(a, 4), _mm256_set1_epi8(15)); }
inline vacc dot_nibbles(vacc a, vbytes w, const int8_t* x) { return _mm256_add_epi16(a, _mm256_maddubs_epi16(w, four(x))); }
inline vf acc_float(vacc a) { return _mm256_cvtepi32_ps(_mm256_madd_epi16(a, _mm256_set1_epi16(1))); }
using vacc8 = __m256i;  // int32 lanes
inline vacc8 acc8_zero() { return _mm256_setzero_si256(); }
inline vacc8 dot_int8(vacc8 a, vbytes w, const int8_t* x) {
  __m256i products = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(four(x), w));
  return _mm256_add_epi32(a, _mm256_madd_epi16(products, _mm256_set1_epi16(1)));
}
inline vf acc8_float(vacc8 a, int32_t) { return _mm256_cvtepi32_ps(a); }

using vkeys = __m256i;
inline vkeys load_keys(const int8_t* p) { return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)p)); }
inline __m256i keys_zero() { return _mm256_setzero_si256(); }
inline __m256i dot_keys(__m256i a, vkeys k, const int16_t* q) { return _mm256_add_epi32(a, _mm256_madd_epi16(k, four(q))); }
inline vf keys_float(__m256i a) { return _mm256_cvtepi32_ps(a); }
inline void prefetch(const void* p) { _mm_prefetch((const char*)p, _MM_HINT_T0); }
inline void prefetch_far(const void* p) { _mm_prefetch((const char*)p, _MM_HINT_T1); }

}  // namespace
