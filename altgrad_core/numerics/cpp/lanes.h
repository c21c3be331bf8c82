// Vectors of 16 float32 numbers, and rounding to the grid of a float format: kernel.py and roundings.py in registers.
// Needs the vector extensions of GCC or Clang, no library; AVX-512 intrinsics where the extensions compile badly.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace {

constexpr int kLanes = 16;

typedef float F __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef uint32_t U __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef int32_t I __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef uint16_t H __attribute__((vector_size(2 * kLanes), aligned(2), may_alias));
// Two H, as 16-bit and as 32-bit numbers.
typedef uint16_t W __attribute__((vector_size(4 * kLanes), aligned(2), may_alias));
typedef uint32_t P __attribute__((vector_size(4 * kLanes), aligned(2), may_alias));

constexpr uint32_t kSign = 0x80000000u, kMagnitude = 0x7fffffffu, kExponent = 0x7f800000u;

enum Type { kFloat32 = 0, kBFloat16 = 1 };
// M of 1 to 21 in float32's range; M of 0, 22 and 23 likewise; formats whose subnormals are float32's own.
enum Path { kMagic = 0, kUnits = 1, kBits = 2 };
enum Rounding { kNearestEven = 0, kNearestAway, kTowardZero, kUp, kDown, kStochastic };

struct Grid {
    int32_t path, mantissa_bits, bias, is_signed, has_inf, has_nan, has_negative_zero, threshold_rounds_to_max;
    float first_power;   // 2^(1 - bias): below it the spacing stays the same
    float min_normal;    // 0 for fixed point
    float min_positive, max_finite, overflow_threshold, beyond;
};

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

// The second operand where either is NaN.
inline F smaller(F a, F b) {
#ifdef __AVX512F__
    return (F)_mm512_min_ps((__m512)a, (__m512)b);
#else
    return a < b ? a : b;
#endif
}
// a * b + c, rounded once or twice: only for products that are exact, and for sums of squares.
inline F multiply_add(F a, F b, F c) {
#ifdef __AVX512F__
    return (F)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#else
    return a * b + c;
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

// ---------------------------------------------------------------------------------------------------------- rounding

// Largest power of two not above z, at least first_power, as bits.
inline U power_bits(F z, const Grid& g) { return largest(u(z) & kExponent, splat(float_to_bits(g.first_power))); }

template <int rounding>
inline I goes_up(F fraction, I odd, U sign) {
    if (rounding == kNearestEven) return (I)(fraction > 0.5f) | ((I)(fraction == 0.5f) & odd);
    if (rounding == kNearestAway) return (I)(fraction >= 0.5f);
    if (rounding == kUp) return (I)(fraction > 0.0f) & (I)(sign == 0u);
    if (rounding == kDown) return (I)(fraction > 0.0f) & (I)(sign != 0u);
    return I{};
}

// d = nearest even of fraction * 2^bits; up when d + (top bits of random) carries out of them.
inline I carries(F fraction, U random, int bits) {
    F scaled = fraction * bits_to_float((uint32_t)(127 + bits) << 23);
    // Below 2^23 the sum with 2^23 rounds to integers; from there on a float32 is an integer, up to 2^32 - 256 of them.
    F magic = splat(8388608.0f);
    F whole = select((I)(scaled < magic), (scaled + magic) - magic, scaled);
    U d = __builtin_convertvector(whole, U);
    if (bits == 32) return (I)(d + random < random);
    U r = random >> (uint32_t)(32 - bits);
    return (I)(d + r >= splat(1u << bits));
}

// By arithmetic on z in units of the grid's spacing at z, where p is the power of two below.
template <int path, int rounding>
inline F round_units(F z, U p, U sign, U random, int bits, const Grid& g) {
    U m = splat((uint32_t)g.mantissa_bits << 23);
    F units = z * f(splat(254u << 23) + m - p);
    // Truncation: 0 <= units <= 2^24, or NaN, which the unit multiplies to NaN below.
    // A number so small that the product is zero is above zero all the same.
    units = select((I)(z > 0.0f) & (I)(units < 0x1p-40f), splat(0x1p-40f), units);
    U count = (U)__builtin_convertvector(select((I)(units == units), units, F{}), I);
    F whole = __builtin_convertvector((I)count, F);
    F fraction = units - whole;
    // The code's parity: that of the mantissa, or for M = 0 of the exponent field, which is 0 below the first power.
    U parity = g.mantissa_bits ? count : select((I)(count != 0u), (p >> 23) + (uint32_t)(g.bias - 127), U{});
    I odd = (I)((parity & 1u) == 1u);
    I up = rounding == kStochastic ? carries(fraction, random, bits)
                                   : goes_up<rounding>(fraction, odd, sign);
    F q = (whole + select(up, splat(1.0f), F{})) * f(p - m);
    return select((I)(units == units), q, z);
}

// Drops the last `drop` bits of b: up when they, to `bits` bits, plus the top bits of random carry, as in carries().
inline U round_bits_stochastically(U b, U random, int bits, uint32_t drop) {
    U mask = splat((1u << drop) - 1u);
    if (bits >= (int)drop) return (b + (random >> (32 - drop))) & ~mask;
    uint32_t s = drop - (uint32_t)bits, unit = 1u << drop;
    U low = b & mask;
    U d = (low + ((1u << (s - 1)) - 1u) + ((low >> s) & 1u)) >> s;
    return (b - low) + select((I)(d + (random >> (uint32_t)(32 - bits)) >= (1u << bits)), splat(unit), splat(0u));
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

// Magnitudes z (at most beyond, or NaN) to magnitudes of the grid.
template <int path, int rounding>
inline F round_magnitude(F z, U sign, U random, int bits, const Grid& g) {
    if (path == kBits) {
        uint32_t drop = 23 - g.mantissa_bits;
        if (drop == 0) return z;
        U b = u(z), mask = splat((1u << drop) - 1u), low = b & mask, kept = b - low;
        uint32_t half = 1u << (drop - 1), unit = 1u << drop;
        U up;
        if (rounding == kNearestEven) up = (b + (half - 1u) + ((b >> drop) & 1u)) & ~mask;
        else if (rounding == kNearestAway) up = (b + half) & ~mask;
        else if (rounding == kTowardZero) up = kept;
        else if (rounding == kStochastic) {
            return select((I)(z != z), z, f(round_bits_stochastically(u(z), random, bits, drop)));
        } else {
            I away = (I)(low != 0u) & (rounding == kUp ? (I)(sign == 0u) : (I)(sign != 0u));
            up = kept + select(away, splat(unit), splat(0u));
        }
        return select((I)(z != z), z, f(up));
    }
    U p = power_bits(z, g);
    if (path == kMagic && rounding == kNearestEven) {
        // The sum's spacing is one unit: the addition itself rounds, ties to even.
        float c = bits_to_float((uint32_t)(127 + 23 - g.mantissa_bits) << 23) * 1.5f;
        F sum = multiply_add(f(p), splat(c), z);
        return multiply_add(f(p), splat(-c), sum);
    }
    if (path == kMagic && rounding == kStochastic) {
        // From the first power on the fraction is the last bits; below, which is rare, it takes arithmetic.
        F q = f(round_bits_stochastically(u(z), random, bits, (uint32_t)(23 - g.mantissa_bits)));
        I below = (I)(z < g.first_power);
        if (any(below)) q = select(below, round_units<path, rounding>(z, p, sign, random, bits, g), q);
        return select((I)(z != z), z, q);
    }
    return round_units<path, rounding>(z, p, sign, random, bits, g);
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
inline uint32_t smallest_of(U v) { return ~largest_of(~v); }

inline double total(F v) {
    typedef double D __attribute__((vector_size(8 * kLanes / 2)));
    typedef float G __attribute__((vector_size(4 * kLanes / 2)));
    G low, high;
    std::memcpy(&low, &v, sizeof low);
    std::memcpy(&high, (const char*)&v + sizeof low, sizeof high);
    D sum = __builtin_convertvector(low, D) + __builtin_convertvector(high, D);
    return ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
}

}  // namespace
