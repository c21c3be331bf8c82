// Rounding of magnitudes to the grid of a float format: kernel.py and roundings.py in registers.

#pragma once

#include "lanes.h"

namespace {

// M of 1 to 21 in float32's range: a sum rounds. Formats whose subnormals are float32's own: on the bits. All others: on
// the bits, and numbers too small for that lifted by a power of two to where float32 arithmetic is exact.
enum Path { kMagic = 0, kBits = 1, kLifted = 2 };
enum Rounding { kNearestEven = 0, kNearestAway, kTowardZero, kUp, kDown, kStochastic };

struct Grid {
    int32_t path, mantissa_bits, bias, is_signed, has_inf, has_nan, has_negative_zero, threshold_rounds_to_max;
    int32_t sums;        // kLifted: whether a sum rounds, too, from lifts_below to
    float sums_to;       // here, at most the largest value
    float first_power;   // 2^(1 - bias): below it the spacing stays the same
    float min_normal;    // 0 for fixed point
    float min_positive, max_finite, overflow_threshold, beyond;
    float lifts_below;   // kLifted: what is below is lifted, by the two powers of two
    float lift, lift_more;
    double limit;        // the largest finite value, which float32 need not hold
};

// Largest power of two not above z, at least first_power, as bits.
inline U power_bits(F z, float first_power) { return largest(u(z) & kExponent, splat(float_to_bits(first_power))); }

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

// By arithmetic on z in units of the grid's spacing at z: p 2^-M, with p the power of two below.
template <int rounding>
inline F round_units(F z, float first_power, int bias, U sign, U random, int bits, const Grid& g) {
    U p = power_bits(z, first_power), m = splat((uint32_t)g.mantissa_bits << 23);
    F units = z * f(splat(254u << 23) + m - p);
    // Truncation: 0 <= units <= 2^24, or NaN, which the unit multiplies to NaN below.
    // A number so small that the product is zero is above zero all the same.
    units = select((I)(z > 0.0f) & (I)(units < 0x1p-40f), splat(0x1p-40f), units);
    U count = (U)__builtin_convertvector(select((I)(units == units), units, F{}), I);
    F whole = __builtin_convertvector((I)count, F);
    F fraction = units - whole;
    // The code's parity: that of the mantissa, or for M = 0 of the exponent field, which is 0 below the first power.
    U parity = g.mantissa_bits ? count : select((I)(count != 0u), (p >> 23) + (uint32_t)(bias - 127), U{});
    I odd = (I)((parity & 1u) == 1u);
    I up = rounding == kStochastic ? carries(fraction, random, bits) : goes_up<rounding>(fraction, odd, sign);
    F q = (whole + select(up, splat(1.0f), F{})) * f(p - m);
    return select((I)(units == units), q, z);
}

// Drops the last `drop` bits of b: up when they, to `bits` bits, plus the top bits of random carry, as in carries().
inline U round_bits_stochastically(U b, U random, int bits, uint32_t drop) {
    U mask = splat((1u << drop) - 1u);
    if (bits >= (int)drop) return (b + shifted(random, splat(32 - drop))) & ~mask;
    uint32_t s = drop - (uint32_t)bits, unit = 1u << drop;
    U low = b & mask;
    U d = (low + ((1u << (s - 1)) - 1u) + ((low >> s) & 1u)) >> s;
    return (b - low) + select((I)(d + (random >> (uint32_t)(32 - bits)) >= (1u << bits)), splat(unit), splat(0u));
}

// On the bits, from the first power on; a sum carries into the exponent, and from the last one to infinity. NaN gives
// anything.
template <int rounding>
inline F round_bits(F z, U sign, U random, int bits, const Grid& g) {
    uint32_t drop = 23 - g.mantissa_bits;
    if (drop == 0) return z;
    uint32_t half = 1u << (drop - 1), unit = 1u << drop;
    U b = u(z), up;
    if (rounding == kNearestEven) {
        // Ties to the even code, whose parity is that of the last bit kept; of M = 0 that of the format's own exponent.
        uint32_t odd = g.mantissa_bits || (g.bias & 1) ? half : half - 1u, even = half + (half - 1u) - odd;
        up = (b + select((I)((b & unit) != 0u), splat(odd), splat(even))) & ~(unit - 1u);
    } else if (rounding == kNearestAway) {
        up = (b + half) & ~(unit - 1u);
    } else if (rounding == kTowardZero) {
        up = b & ~(unit - 1u);
    } else if (rounding == kStochastic) {
        up = round_bits_stochastically(b, random, bits, drop);
    } else {
        I away = (I)((b & (unit - 1u)) != 0u) & (rounding == kUp ? (I)(sign == 0u) : (I)(sign != 0u));
        up = (b & ~(unit - 1u)) + select(away, splat(unit), splat(0u));
    }
    return f(up);
}

// What is too small for round_bits: lifted, rounded in units, put back. All of it is exact, since whatever is lifted is
// a multiple of 2^-149 before and after.
template <int rounding>
inline F round_lifted(F z, U sign, U random, int bits, const Grid& g) {
    int by = (int)(float_to_bits(g.lift) >> 23) + (int)(float_to_bits(g.lift_more) >> 23) - 254, bias = g.bias - by;
    // From a bias of 101 on, float32's smallest subnormal is far above the first power.
    float first_power = bits_to_float((uint32_t)(bias > 100 ? 27 : 128 - bias) << 23);
    F q = round_units<rounding>(z * g.lift * g.lift_more, first_power, bias, sign, random, bits, g);
    float down = bits_to_float((254u << 23) - float_to_bits(g.lift));
    float down_more = bits_to_float((254u << 23) - float_to_bits(g.lift_more));
    return q * down_more * down;
}

// The sum's spacing is one unit, with p the power of two below z: the addition itself rounds, ties to even.
inline F round_sum(F z, F p, const Grid& g) {
    float c = bits_to_float((uint32_t)(127 + 23 - g.mantissa_bits) << 23) * 1.5f;
    return multiply_add(p, splat(-c), multiply_add(p, splat(c), z));
}

// Magnitudes, or NaN, to magnitudes of the grid: of those above `bound`, which is the largest value or what would come
// next, to the bound.
template <int path, int rounding>
inline F round_magnitude(F size, float bound, U sign, U random, int bits, const Grid& g) {
    // An unsigned difference tells what is too small, too large, or NaN, which is rare.
    uint32_t least = float_to_bits(path == kLifted ? g.lifts_below : g.first_power);
    if (path == kLifted && rounding == kNearestEven && g.sums) {
        uint32_t most = float_to_bits(g.sums_to);
        if (!any_above(u(size) - least, splat(most - least))) return round_sum(size, f(u(size) & kExponent), g);
    }
    F z = smaller(splat(bound), size);
    if (path == kBits) return select((I)(z != z), nan(), round_bits<rounding>(z, sign, random, bits, g));
    if (path == kMagic && rounding != kStochastic) {
        F p = f(power_bits(z, g.first_power)), q = round_sum(z, p, g);
        if (rounding == kNearestEven) return q;
        F unit = p * bits_to_float((uint32_t)(127 - g.mantissa_bits) << 23);
        if (rounding == kNearestAway) return q + select((I)(z - q == unit * 0.5f), unit, F{});
        q -= select((I)(q > z), unit, F{});
        if (rounding == kTowardZero) return q;
        I away = (I)(q < z) & (rounding == kUp ? (I)(sign == 0u) : (I)(sign != 0u));
        return q + select(away, unit, F{});
    }
    F q = round_bits<rounding>(z, sign, random, bits, g);
    if (!any_above(u(z) - least, splat(kExponent - least))) return q;
    q = select((I)(z != z), nan(), q);
    // Zero is right as it is.
    I below = (I)(z < bits_to_float(least)) & (I)(z > 0.0f);
    if (!any(below)) return q;
    F exact = path == kLifted ? round_lifted<rounding>(z, sign, random, bits, g)
                              : round_units<rounding>(z, g.first_power, g.bias, sign, random, bits, g);
    return select(below, exact, q);
}

}  // namespace
