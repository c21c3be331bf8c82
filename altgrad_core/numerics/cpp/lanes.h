// Vectors of float32 numbers. Needs the vector extensions of GCC or Clang, no library; AVX-512 and FMA intrinsics where the
// extensions compile badly.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__AVX512F__) || defined(__FMA__)
#include <immintrin.h>
#endif

namespace {

// As wide as the machine's registers: wider ones compile to slow code, and ten times as long.
#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float F __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef uint32_t U __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef int32_t I __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef uint16_t H __attribute__((vector_size(2 * kLanes), aligned(2), may_alias));
// Two H, as 16-bit and as 32-bit numbers.
typedef uint16_t W __attribute__((vector_size(4 * kLanes), aligned(2), may_alias));
typedef uint32_t P __attribute__((vector_size(4 * kLanes), aligned(2), may_alias));

constexpr uint32_t kSign = 0x80000000u, kMagnitude = 0x7fffffffu, kExponent = 0x7f800000u;

enum Type { kFloat32 = 0, kBFloat16 = 1 };

inline F f(U v) { return (F)v; }
inline U u(F v) { return (U)v; }
inline F splat(float v) { return F{} + v; }
inline U splat(uint32_t v) { return U{} + v; }
inline F load(const float* p) { return *(const F*)p; }
inline U load(const uint32_t* p) { return *(const U*)p; }
inline void store(float* p, F v) { *(F*)p = v; }
inline float bits_to_float(uint32_t b) { float v; std::memcpy(&v, &b, 4); return v; }
inline uint32_t float_to_bits(float v) { uint32_t b; std::memcpy(&b, &v, 4); return b; }
inline F select(I mask, F a, F b) { return mask ? a : b; }
inline U select(I mask, U a, U b) { return mask ? a : b; }
// Quiet: its first 16 bits are a NaN, too.
inline F nan() { return f(splat(0x7fc00000u)); }
inline F size_of(F v) { return f(u(v) & kMagnitude); }

// The second operand where either is NaN.
inline F smaller(F a, F b) {
#ifdef __AVX512F__
    return (F)_mm512_min_ps((__m512)a, (__m512)b);
#else
    return a < b ? a : b;
#endif
}

// a * b + c, rounded once where kFused; else only good for products that are exact, and for sums of squares.
#if defined(__AVX512F__) || defined(__FMA__) || defined(__FP_FAST_FMAF) || defined(__ARM_FEATURE_FMA)
constexpr bool kFused = true;
#else
constexpr bool kFused = false;
#endif
inline F multiply_add(F a, F b, F c) {
#if defined(__AVX512F__)
    return (F)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
    return (F)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    if (!kFused) return a * b + c;
    for (int l = 0; l < kLanes; ++l) c[l] = __builtin_fmaf(a[l], b[l], c[l]);
    return c;
#endif
}
inline U largest(U a, U b) { return a > b ? a : b; }
inline U smallest(U a, U b) { return a < b ? a : b; }

inline F widen(const uint16_t* p) { return f(__builtin_convertvector(*(const H*)p, U) << 16); }

// The bits of the nearest bfloat16, ties to even; a NaN becomes the quiet one, as in torch.
inline U narrowed(F v) {
    U b = u(v);
    U rounded = (b + 0x7fffu + ((b >> 16) & 1u)) >> 16;
    return select((I)(v != v), splat(0x7fc0u), rounded);
}

// The numbers at even and at odd places of two vectors.
inline F at_even_places(F a, F b) {
#ifdef __AVX512F__
    const __m512i places = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    return (F)_mm512_permutex2var_ps((__m512)a, places, (__m512)b);
#else
    F r;
    for (int l = 0; l < kLanes / 2; ++l) { r[l] = a[2 * l]; r[l + kLanes / 2] = b[2 * l]; }
    return r;
#endif
}
inline F at_odd_places(F a, F b) {
#ifdef __AVX512F__
    const __m512i places = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
    return (F)_mm512_permutex2var_ps((__m512)a, places, (__m512)b);
#else
    F r;
    for (int l = 0; l < kLanes / 2; ++l) { r[l] = a[2 * l + 1]; r[l + kLanes / 2] = b[2 * l + 1]; }
    return r;
#endif
}

inline F gather(const float* from, U places) {
#ifdef __AVX512F__
    return (F)_mm512_i32gather_ps((__m512i)places, from, 4);
#else
    F r;
    for (int l = 0; l < kLanes; ++l) r[l] = from[places[l]];
    return r;
#endif
}

inline U gather(const uint32_t* from, U places) {
#ifdef __AVX512F__
    return (U)_mm512_i32gather_epi32((__m512i)places, from, 4);
#else
    U r;
    for (int l = 0; l < kLanes; ++l) r[l] = from[places[l]];
    return r;
#endif
}

inline bool any(I mask) {
#ifdef __AVX512F__
    return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#else
    int32_t found = 0;
    for (int l = 0; l < kLanes; ++l) found |= mask[l];
    return found != 0;
#endif
}

// Whether any a > b; spares the detour from a mask to lanes and back that compilers make.
inline bool any_above(U a, U b) {
#ifdef __AVX512F__
    return _mm512_cmpgt_epu32_mask((__m512i)a, (__m512i)b) != 0;
#else
    return any((I)(a > b));
#endif
}
// Shifts by a number that the compiler does not know; AVX-512 shifts twice as fast by as many numbers as lanes.
inline U shifted(U v, U by) {
#ifdef __AVX512F__
    return (U)_mm512_srlv_epi32((__m512i)v, (__m512i)by);
#else
    return v >> by[0];
#endif
}

// ------------------------------------------------------------------------------------------------------- reductions

inline uint32_t largest_of(U v) {
#ifdef __AVX512F__
    return _mm512_reduce_max_epu32((__m512i)v);
#else
    uint32_t most = 0;
    for (int l = 0; l < kLanes; ++l) most = v[l] > most ? v[l] : most;
    return most;
#endif
}
inline int64_t sum_of(I v) {
#ifdef __AVX512F__
    return _mm512_reduce_add_epi32((__m512i)v);
#else
    int64_t sum = 0;
    for (int l = 0; l < kLanes; ++l) sum += v[l];
    return sum;
#endif
}
inline uint32_t smallest_of(U v) { return ~largest_of(~v); }

typedef double D __attribute__((vector_size(8 * kLanes / 2)));

inline D low_half(F v) {
    typedef float G __attribute__((vector_size(4 * kLanes / 2)));
    G half;
    std::memcpy(&half, &v, sizeof half);
    return __builtin_convertvector(half, D);
}
inline D high_half(F v) {
    typedef float G __attribute__((vector_size(4 * kLanes / 2)));
    G half;
    std::memcpy(&half, (const char*)&v + sizeof half, sizeof half);
    return __builtin_convertvector(half, D);
}
inline double total(D v) {
    double sum = 0;
    for (int l = 0; l < kLanes / 2; ++l) sum += v[l];
    return sum;
}
inline double total(F v) { return total(low_half(v) + high_half(v)); }

}  // namespace
