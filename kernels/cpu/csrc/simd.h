// Vectors of LANES floats, whatever the processor: AVX-512, AVX2 with or without VNNI, or plain C vectors.
// The compiler's flags choose one (kernels/cpu/build.py); everything else in this folder is written once, over these.
// Products are fused only where vfma says so, so that a result does not depend on how the compiler arranges a loop.
#pragma once

#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512F__)
#define LANES 16
#define LANE_NUMBERS (vi){0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define LANES 8
#define LANE_NUMBERS (vi){0, 1, 2, 3, 4, 5, 6, 7}
#else
#define LANES 4
#define LANE_NUMBERS (vi){0, 1, 2, 3}
#endif

// Tokens at a time: the codes of a line are unpacked once for all of them. As many as the registers hold sums for.
#define CODE_TILE (LANES == 16 ? 8 : 4)

typedef float vf __attribute__((vector_size(4 * LANES)));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));
typedef uint32_t vu __attribute__((vector_size(4 * LANES)));

INLINE vf vf_load(const float *p) { vf v; memcpy(&v, p, sizeof v); return v; }
INLINE void vf_store(float *p, vf v) { memcpy(p, &v, sizeof v); }
INLINE vi vi_set(int32_t x) { return (vi){0} + x; }
INLINE vu vu_load(const uint8_t *p) { vu v; memcpy(&v, p, sizeof v); return v; }
INLINE vf vf_of(vi v) { return __builtin_convertvector(v, vf); }
INLINE vf vf_pick(vi mask, vf yes, vf no) { return (vf)((mask & (vi)yes) | (~mask & (vi)no)); }
INLINE vf vf_max(vf a, vf b) { return vf_pick(a > b, a, b); }

typedef int8_t vs __attribute__((vector_size(LANES)));

INLINE void vi_store_bytes(int8_t *p, vi v) {
    vs bytes = __builtin_convertvector(v, vs);
    memcpy(p, &bytes, sizeof bytes);
}

INLINE float half_to_float(uint16_t half) {
    const int finite = (half & 0x7c00) != 0x7c00;
    uint32_t bits = (uint32_t)(half & 0x7fff) << 13 | (finite ? 0 : 0x7f800000);
    float value;
    memcpy(&value, &bits, 4);
    if (finite) value *= 0x1p112f;  // subnormals come out right, too
    return half & 0x8000 ? -value : value;
}

INLINE uint16_t float_to_half(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    uint32_t sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
    if (size > 0x7f800000) return sign | 0x7e00;
    if (size >= 0x477ff000) return sign | 0x7c00;
    if (size < 0x38800000) {  // subnormal: let the adder round to a multiple of 2^-24
        float small;
        memcpy(&small, &size, 4);
        small += 0.5f;
        memcpy(&size, &small, 4);
        return sign | (size - 0x3f000000);
    }
    return sign | ((size - 0x38000000 + 0xfff + (size >> 13 & 1)) >> 13);
}

// Products of codes below 4 with activations, for sums of up to four of them, times a factor below 16: dot4_short adds to
// partial sums, which scaled_short alone can read.
#if LANES == 16
INLINE vf vf_set(float x) { return (vf)_mm512_set1_ps(x); }
INLINE vf vfma(vf a, vf b, vf c) { return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
INLINE vf vf_half(const uint16_t *p) { return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
INLINE void vf_store_half(uint16_t *p, vf v) {
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
}
INLINE vi vi_bytes(const uint8_t *p) { return (vi)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)); }
INLINE vi vi_round(vf v) { return (vi)_mm512_cvtps_epi32((__m512)v); }
INLINE vf vf_lanes(vf v, vi from) { return (vf)_mm512_permutexvar_ps((__m512i)from, (__m512)v); }  // lane i: v[from[i]]
// acc += the four products of each lane: unsigned bytes of codes times the four signed bytes of x.
INLINE vi dot4(vi acc, vu codes, int32_t x, int bits) {
    (void)bits;
    return (vi)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)codes, _mm512_set1_epi32(x));
}
INLINE vi dot4_short(vi acc, vu codes, int32_t x) { return dot4(acc, codes, x, 2); }
INLINE vi scaled_short(vi sums, vi factor) { return (vi)_mm512_madd_epi16((__m512i)sums, (__m512i)factor); }
#elif LANES == 8
INLINE vf vf_set(float x) { return (vf)_mm256_set1_ps(x); }
INLINE vf vfma(vf a, vf b, vf c) { return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
INLINE vf vf_half(const uint16_t *p) { return (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
INLINE void vf_store_half(uint16_t *p, vf v) {
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
}
INLINE vi vi_bytes(const uint8_t *p) { return (vi)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p)); }
INLINE vi vi_round(vf v) { return (vi)_mm256_cvtps_epi32((__m256)v); }
INLINE vf vf_lanes(vf v, vi from) { return (vf)_mm256_permutevar8x32_ps((__m256)v, (__m256i)from); }
#if defined(__AVXVNNI__)
INLINE vi dot4(vi acc, vu codes, int32_t x, int bits) {
    (void)bits;
    return (vi)_mm256_dpbusd_avx_epi32((__m256i)acc, (__m256i)codes, _mm256_set1_epi32(x));
}
INLINE vi dot4_short(vi acc, vu codes, int32_t x) { return dot4(acc, codes, x, 2); }
INLINE vi scaled_short(vi sums, vi factor) { return (vi)_mm256_madd_epi16((__m256i)sums, (__m256i)factor); }
#else
INLINE __m256i dot4_small(__m256i codes, __m256i x) {  // exact for codes below 128
    return _mm256_madd_epi16(_mm256_maddubs_epi16(codes, x), _mm256_set1_epi16(1));
}
INLINE vi dot4(vi acc, vu codes, int32_t x, int bits) {
    __m256i all = (__m256i)codes, activations = _mm256_set1_epi32(x);
    if (bits < 8) return acc + (vi)dot4_small(all, activations);
    __m256i low = _mm256_and_si256(all, _mm256_set1_epi8(15));
    __m256i high = _mm256_and_si256(_mm256_srli_epi16(all, 4), _mm256_set1_epi8(15));
    return acc + (vi)dot4_small(low, activations) + 16 * (vi)dot4_small(high, activations);
}
INLINE vi dot4_short(vi acc, vu codes, int32_t x) {  // each lane holds two sums of 16 bits
    return (vi)_mm256_add_epi16((__m256i)acc, _mm256_maddubs_epi16((__m256i)codes, _mm256_set1_epi32(x)));
}
INLINE vi scaled_short(vi sums, vi factor) {
    return (vi)_mm256_madd_epi16((__m256i)sums, (__m256i)(factor | factor << 16));
}
#endif
#else
INLINE vf vf_set(float x) { return (vf){x, x, x, x}; }
INLINE vf vfma(vf a, vf b, vf c) { return a * b + c; }
INLINE vf vf_half(const uint16_t *p) {
    vf v;
    for (int i = 0; i < LANES; i++) v[i] = half_to_float(p[i]);
    return v;
}
INLINE void vf_store_half(uint16_t *p, vf v) {
    for (int i = 0; i < LANES; i++) p[i] = float_to_half(v[i]);
}
INLINE vf vf_lanes(vf v, vi from) {
    vf moved;
    for (int i = 0; i < LANES; i++) moved[i] = v[from[i]];
    return moved;
}
INLINE vi vi_bytes(const uint8_t *p) {
    vi v;
    for (int i = 0; i < LANES; i++) v[i] = p[i];
    return v;
}
INLINE vi vi_round(vf v) {  // to nearest, ties to even: adding 1.5 * 2^23 leaves the integer in the low bits
    vf magic = vf_set(12582912.0f);
    return (vi)(v + magic) - (vi)magic;
}
INLINE vi dot4(vi acc, vu codes, int32_t x, int bits) {
    (void)bits;
    for (int j = 0; j < 4; j++) {
        vi code = (vi)(codes >> (8 * j) & 255);
        acc += code * (int32_t)(int8_t)((uint32_t)x >> (8 * j));
    }
    return acc;
}
INLINE vi dot4_short(vi acc, vu codes, int32_t x) { return dot4(acc, codes, x, 2); }
INLINE vi scaled_short(vi sums, vi factor) { return sums * factor; }
#endif

// Halves first, lane by lane with their neighbours: a chain of LANES operations would have to wait for each of them.
#define NEIGHBOURS(v, half) vf_lanes(v, (LANE_NUMBERS + (half)) & (LANES - 1))

INLINE float vf_sum(vf v) {
#pragma GCC unroll 4
    for (int half = LANES / 2; half; half /= 2) v += NEIGHBOURS(v, half);
    return v[0];
}

INLINE float vf_largest(vf v) {
#pragma GCC unroll 4
    for (int half = LANES / 2; half; half /= 2) v = vf_max(v, NEIGHBOURS(v, half));
    return v[0];
}

INLINE vf vf_bytes(const uint8_t *p) { return vf_of(vi_bytes(p)); }

// e^x to two units in the last place; below -87 it is 0 for our purpose (softmax, SiLU).
INLINE vf vf_exp(vf x) {
    x = vf_pick(x > vf_set(88.0f), vf_set(88.0f), x);
    vi tiny = x < vf_set(-87.0f);
    x = vf_pick(tiny, vf_set(0.0f), x);
    vi n = vi_round(x * vf_set(1.44269504f));
    vf r = vfma(vf_of(n), vf_set(-0.693359375f), x);
    r = vfma(vf_of(n), vf_set(2.12194440e-4f), r);
    vf p = vf_set(1.9875691500e-4f);
    p = vfma(p, r, vf_set(1.3981999507e-3f));
    p = vfma(p, r, vf_set(8.3334519073e-3f));
    p = vfma(p, r, vf_set(4.1665795894e-2f));
    p = vfma(p, r, vf_set(1.6666665459e-1f));
    p = vfma(p, r, vf_set(5.0000001201e-1f));
    p = vfma(p, r * r, r + 1.0f);
    vf scaled = p * (vf)((n + 127) << 23);
    return vf_pick(tiny, vf_set(0.0f), scaled);
}
