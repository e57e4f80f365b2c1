// Vectors of sixteen floats: AVX-512 F, BW, VL, DQ and VNNI.
#pragma once
#ifdef SPARSIGHT_EMULATE_AVX512  // tests of this file on a machine without AVX-512
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>
#include <stdint.h>
// What SIMDe 0.7.4 lacks, or declares with other parameters, as Intel describes it.
#undef _mm512_madd_epi16
#define _mm512_madd_epi16(a, b) simde_mm512_madd_epi16(a, b)
#define _mm512_cvtps_epi32(a) emulated_cvtps_epi32(a)
#define _mm512_cvtepi32_ps(a) emulated_cvtepi32_ps(a)
#define _mm512_cvtepi32_epi8(a) emulated_cvtepi32_epi8(a)
#define _mm512_cmpgt_epu32_mask(a, b) emulated_cmpgt_epu32_mask(a, b)
namespace {
struct Lanes16 {
  int32_t of[16];
  Lanes16(__m512i a) { _mm512_storeu_si512((void*)of, a); }
};
inline __m512i emulated_cvtps_epi32(__m512 a) {
  float f[16];
  int32_t n[16];
  _mm512_storeu_ps(f, a);
  for (int i = 0; i < 16; i += 8) _mm256_storeu_si256((__m256i*)(n + i), _mm256_cvtps_epi32(_mm256_loadu_ps(f + i)));
  return _mm512_loadu_si512((const void*)n);
}
inline __m512 emulated_cvtepi32_ps(__m512i a) {
  float f[16];
  for (int i = 0; i < 16; i++) f[i] = (float)Lanes16(a).of[i];
  return _mm512_loadu_ps(f);
}
inline __m128i emulated_cvtepi32_epi8(__m512i a) {
  int8_t b[16];
  for (int i = 0; i < 16; i++) b[i] = (int8_t)Lanes16(a).of[i];
  return _mm_loadu_si128((const __m128i*)b);
}
inline uint16_t emulated_cmpgt_epu32_mask(__m512i a, __m512i b) {
  unsigned mask = 0;
  for (int i = 0; i < 16; i++) mask |= (unsigned)((uint32_t)Lanes16(a).of[i] > (uint32_t)Lanes16(b).of[i]) << i;
  return (uint16_t)mask;
}
}  // namespace
#else
#include <immintrin.h>
#endif
#include <stdint.h>
#include <string.h>

#define SPARSIGHT_LEVEL_NAME "avx512"

// Loops over registers: arrays of vectors stay in memory unless these are unrolled before anything else.
#define UNROLL _Pragma("GCC unroll 16")

namespace {

constexpr int W = 16;
using vf = __m512;

inline vf load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, vf a) { _mm512_storeu_ps(p, a); }
inline vf set1(float x) { return _mm512_set1_ps(x); }
inline vf zero() { return _mm512_setzero_ps(); }
inline vf add(vf a, vf b) { return _mm512_add_ps(a, b); }
inline vf sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
inline vf mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
inline vf div(vf a, vf b) { return _mm512_div_ps(a, b); }
inline vf fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
inline vf vmax(vf a, vf b) { return _mm512_max_ps(a, b); }
inline vf vmin(vf a, vf b) { return _mm512_min_ps(a, b); }
inline vf vabs(vf a) { return _mm512_abs_ps(a); }
inline __m256 half_of(vf a, int which) {
  return which ? _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(a), 1)) : _mm512_castps512_ps256(a);
}
inline __m256 halves(vf a) { return _mm256_add_ps(half_of(a, 0), half_of(a, 1)); }
inline float hsum(vf a) {
  __m256 h = halves(a);
  __m128 t = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  t = _mm_add_ps(t, _mm_movehl_ps(t, t));
  return _mm_cvtss_f32(_mm_add_ss(t, _mm_shuffle_ps(t, t, 1)));
}
inline float hmax(vf a) {
  __m256 h = _mm256_max_ps(half_of(a, 0), half_of(a, 1));
  __m128 t = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  t = _mm_max_ps(t, _mm_movehl_ps(t, t));
  return _mm_cvtss_f32(_mm_max_ss(t, _mm_shuffle_ps(t, t, 1)));
}
inline void reduce4(vf a, vf b, vf c, vf d, float* out) {
  __m256 p = halves(a), q = halves(b), r = halves(c), s = halves(d);
  __m256 ab = _mm256_add_ps(_mm256_unpacklo_ps(p, q), _mm256_unpackhi_ps(p, q));
  __m256 cd = _mm256_add_ps(_mm256_unpacklo_ps(r, s), _mm256_unpackhi_ps(r, s));
  __m256d x = _mm256_castps_pd(ab), y = _mm256_castps_pd(cd);
  __m256 t = _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(x, y)), _mm256_castpd_ps(_mm256_unpackhi_pd(x, y)));
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(t), _mm256_extractf128_ps(t, 1)));
}
inline vf round_even(vf a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline vf scale2(vf a, vf n) {
  __m512i bits = _mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23);
  return _mm512_mul_ps(a, _mm512_castsi512_ps(bits));
}
// Of 2 W bfloat16 those at even, and those at odd places.
inline vf load_even(const uint16_t* p) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512((const void*)p), 16)); }
inline vf load_odd(const uint16_t* p) {
  return _mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512((const void*)p), _mm512_set1_epi32((int)0xffff0000)));
}
inline vf load_fp16(const uint16_t* p) {
#ifdef SPARSIGHT_EMULATE_AVX512
  alignas(64) float f[16];
  _mm256_storeu_ps(f, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)));
  _mm256_storeu_ps(f + 8, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p + 8))));
  return _mm512_loadu_ps(f);
#else
  return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#endif
}
inline void store_int8(int8_t* p, vf a) { _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(a))); }
inline unsigned above(const uint32_t* keys, uint32_t cut) {
  return (unsigned)_mm512_cmpgt_epu32_mask(_mm512_loadu_si512((const void*)keys), _mm512_set1_epi32((int)cut));
}

inline int place_lanes(unsigned mask, int first, int32_t* out) {
  const __m512i all = _mm512_add_epi32(_mm512_set1_epi32(first), _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0));
  _mm512_storeu_si512((void*)out, _mm512_mask_compress_epi32(all, (__mmask16)mask, all));
  return __builtin_popcount(mask);
}

using vcount = int;
inline vcount count_zero() { return 0; }
inline vcount count_if_above(vcount a, const uint32_t* keys, uint32_t cut) { return a + __builtin_popcount(above(keys, cut)); }
inline int count_sum(vcount a) { return a; }

inline int compress(const uint32_t* keys, unsigned mask, uint32_t* out) {
  // Merged, not zeroed: on Zen the zeroing form waits for what the register held before.
  const __m512i all = _mm512_loadu_si512((const void*)keys);
  _mm512_storeu_si512((void*)out, _mm512_mask_compress_epi32(all, (__mmask16)mask, all));
  return __builtin_popcount(mask);
}

inline vf load_codes(const int8_t* p) {
#ifdef SPARSIGHT_EMULATE_AVX512
  float f[16];
  for (int i = 0; i < 16; i++) f[i] = (float)p[i];
  return _mm512_loadu_ps(f);
#else
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
#endif
}

inline __m512i four(const void* x) { int32_t d; memcpy(&d, x, 4); return _mm512_set1_epi32(d); }

using vacc = __m512i;  // int32 lanes
using vbytes = __m512i;
inline vacc acc_zero() { return _mm512_setzero_si512(); }
inline vbytes load_bytes(const uint8_t* p) { return _mm512_loadu_si512((const void*)p); }
inline vbytes low_nibbles(vbytes a) { return _mm512_and_si512(a, _mm512_set1_epi8(15)); }
inline vbytes high_nibbles(vbytes a) { return _mm512_and_si512(_mm512_srli_epi16(a, 4), _mm512_set1_epi8(15)); }
inline vacc dot_nibbles(vacc a, vbytes w, const int8_t* x) { return _mm512_dpbusd_epi32(a, w, four(x)); }
inline vf acc_float(vacc a) { return _mm512_cvtepi32_ps(a); }
using vacc8 = __m512i;
inline vacc8 acc8_zero() { return _mm512_setzero_si512(); }
// The instruction wants unsigned weights: 128 is added to them here, and 128 times the sum of x taken off at the end.
inline vacc8 dot_int8(vacc8 a, vbytes w, const int8_t* x) {
  return _mm512_dpbusd_epi32(a, _mm512_xor_si512(w, _mm512_set1_epi8((char)0x80)), four(x));
}
inline vf acc8_float(vacc8 a, int32_t sum) { return _mm512_cvtepi32_ps(_mm512_sub_epi32(a, _mm512_set1_epi32(128 * sum))); }

using vkeys = __m512i;
inline vkeys load_keys(const int8_t* p) { return _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)p)); }
inline __m512i keys_zero() { return _mm512_setzero_si512(); }
inline __m512i dot_keys(__m512i a, vkeys k, const int16_t* q) { return _mm512_add_epi32(a, _mm512_madd_epi16(k, four(q))); }
inline vf keys_float(__m512i a) { return _mm512_cvtepi32_ps(a); }
inline void prefetch(const void* p) { _mm_prefetch((const char*)p, _MM_HINT_T0); }
inline void prefetch_far(const void* p) { _mm_prefetch((const char*)p, _MM_HINT_T1); }

}  // namespace
