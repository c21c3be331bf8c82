// The statistics of a cast (statistics.py): what a tile's largest and smallest magnitude rule out is not counted.

#pragma once

#include "rounding.h"

namespace {

constexpr int kFields = 10;  // statistics.FIELDS

struct Counts {
    double field[kFields] = {};

    Counts() { field[7] = INFINITY; }
    void merge(const Counts& other) {
        for (int k = 0; k < kFields; ++k) {
            if (k == 6) field[k] = std::fmax(field[k], other.field[k]);
            else if (k == 7) field[k] = std::fmin(field[k], other.field[k]);
            else field[k] += other.field[k];
        }
    }
};

// Largest and smallest of magnitudes, as bits.
struct Extremes {
    U max{}, min = splat(0xffffffffu);

    void add(F size) {
        max = largest(max, u(size));
        min = smallest(min, u(size));
    }
};

// The same over magnitudes of bfloat16 numbers, 32 a vector.
struct HalfExtremes {
    W max{}, min = W{} + (uint16_t)0xffff;

    void add(W size) {
        max = max > size ? max : size;
        min = min < size ? min : size;
    }
    void into(Extremes& all) const {
        U high = (U)max, low = (U)min;
        all.max = largest(all.max, largest(high & 0xffff0000u, high << 16));
        all.min = smallest(all.min, smallest(low & 0xffff0000u, low << 16));
    }
};

struct Sums {
    Extremes x, y;           // of x; of x / scale, where blocks have scales of their own
    F signal{}, error{};     // sums of squares
};

// Between these float32 holds the squares of a tile whose largest magnitude it is (far smaller ones do not matter).
constexpr float kSquaresFrom = 1e-14f, kSquaresTo = 1e15f;
// Likewise of errors, which are 2^-M of the numbers or less.
inline float errors_from(const Grid& g) { return g.mantissa_bits <= 10 ? 1e-12f : 1e-8f; }
// A sum of squares from which on it does not matter what was too small for a square.
constexpr float kSquaresCount = 1e-29f;

// Bits of the smallest magnitude above zero.
inline uint32_t least_above_zero(const void* x, int type, int64_t n) {
    U least = splat(0xffffffffu);
    for (int64_t i = 0; i < n; i += kLanes) {
        F v = type == kFloat32 ? load((const float*)x + i) : widen((const uint16_t*)x + i);
        least = smallest(least, (u(v) & kMagnitude) - 1u);
    }
    return smallest_of(least) + 1u;
}

// The definition, in float64, of whole lanes; padding is zeros.
void count_exactly(const float* x, const float* y, const float* q, const float* scale, int64_t n, double lowest,
                   double highest, Counts& c) {
    Extremes range;
    I nan{}, infinite{};
    D signal{}, error{};
    for (int64_t i = 0; i < n; i += kLanes) {
        F v = load(x + i), value = load(q + i), factor = load(scale + i);
        U size = u(v) & kMagnitude;
        I outside = (I)(size >= kExponent), lost = (I)((u(value) & kMagnitude) >= kExponent) & ~outside;
        nan -= (I)(size > kExponent);
        infinite -= (I)(size == kExponent);
        v = select(outside, F{}, v);
        range.max = largest(range.max, u(size_of(v)));
        range.min = smallest(range.min, u(size_of(v)) - 1u);
        D a = low_half(v), b = high_half(v);
        signal += a * a + b * b;
        if (any(lost)) {  // an overflow that became infinite or NaN counts as the largest value
            for (int l = 0; l < kLanes; ++l) {
                double e = (std::signbit(y[i + l]) ? lowest : highest) * factor[l] - (double)v[l];
                if (lost[l]) c.field[9] += e * e;
            }
            v = select(lost, F{}, v);
        }
        value = select(outside | lost, F{}, value);
        a = low_half(value) * low_half(factor) - low_half(v);
        b = high_half(value) * high_half(factor) - high_half(v);
        error += a * a + b * b;
    }
    c.field[4] += sum_of(nan);
    c.field[5] += sum_of(infinite);
    uint32_t max = largest_of(range.max);
    if (max) {
        c.field[6] = std::fmax(c.field[6], (double)bits_to_float(max));
        c.field[7] = std::fmin(c.field[7], (double)bits_to_float(smallest_of(range.min) + 1u));
    }
    c.field[8] += total(signal);
    c.field[9] += total(error);
}

// Zero results of finite non-zero elements, and subnormal results.
void count_small(const float* x, const float* q, int64_t n, const Grid& g, Counts& c) {
    I vanished{}, subnormal{};
    for (int64_t i = 0; i < n; i += kLanes) {
        F v = load(x + i), size = size_of(load(q + i));
        I zero = (I)(size == 0.0f);
        vanished -= zero & (I)(v != 0.0f) & (I)((u(v) & kMagnitude) < kExponent);
        subnormal -= (I)(size < g.min_normal) & ~zero;
    }
    c.field[2] += sum_of(vanished);
    c.field[3] += sum_of(subnormal);
}

// The largest number that times `inverse`, rounded, is not above `limit`.
inline float last_within(float limit, float inverse) {
    inverse = std::fabs(inverse);  // a scale below zero, which nobody checked, means nothing, but ends
    float x = std::fmin(limit / inverse, bits_to_float(kExponent - 1u));
    while (x * inverse > limit) x = std::nextafter(x, 0.0f);
    for (float next; (next = std::nextafter(x, INFINITY)) * inverse <= limit;) x = next;
    return x;
}

// The last magnitudes that nearest even on the magic path makes zero, or subnormal, or does not clamp: of x, or where
// scales differ of x / scale.
struct Limits {
    float vanishes = 0, subnormal = 0, finite = 0;

    Limits() = default;
    Limits(const Grid& g, float inverse) {
        // On a tie: to zero, code 0; to the smallest normal, an even code, not to the largest subnormal.
        vanishes = last_within(g.min_positive / 2, inverse);
        subnormal = g.min_normal ? last_within(std::nextafter(g.min_normal - g.min_positive / 2, 0.0f), inverse) : 0.0f;
        float last = g.threshold_rounds_to_max ? g.overflow_threshold : std::nextafter(g.overflow_threshold, 0.0f);
        finite = last_within(last, inverse);
    }
};

// Counts what is beyond them.
struct Outside {
    const void* x;
    int type;
    int64_t n;
    const float* inverse;  // of the scale, one an element; or null
    const Limits& limits;

    F number_at(int64_t i) const { return type == kFloat32 ? load((const float*)x + i) : widen((const uint16_t*)x + i); }
    F size_at(int64_t i) const { return size_of(inverse ? number_at(i) * load(inverse + i) : number_at(i)); }
    // 16 bits tell whether a bfloat16 number is above a float32 one.
    bool halves() const { return !inverse && type == kBFloat16 && n % (2 * kLanes) == 0; }
    W halves_at(int64_t i) const { return *(const W*)((const uint16_t*)x + i) & (uint16_t)0x7fff; }
    static uint16_t half(float limit) { return (uint16_t)(float_to_bits(limit) >> 16); }
    static int64_t sum_of_halves(W counts) { return sum_of((I)((U)counts & 0xffffu)) + sum_of((I)((U)counts >> 16)); }

    void count_over(Counts& c) const {
        if (halves()) {
            W over{};
            for (int64_t i = 0; i < n; i += 2 * kLanes) over -= (W)(halves_at(i) > half(limits.finite));
            c.field[1] += sum_of_halves(over);
        } else {
            I over{};
            for (int64_t i = 0; i < n; i += kLanes) over -= (I)(size_at(i) > limits.finite);
            c.field[1] += sum_of(over);
        }
    }
    // Zeros became zero, but did not vanish.
    void count_under(bool zeros, Counts& c) const {
        int64_t gone, below, nothing = 0;
        if (halves()) {
            W zero{}, vanished{}, subnormal{};
            for (int64_t i = 0; i < n; i += 2 * kLanes) {
                W size = halves_at(i);
                zero -= (W)(size == (uint16_t)0);
                vanished -= (W)(size <= half(limits.vanishes));
                subnormal -= (W)(size <= half(limits.subnormal));
            }
            nothing = sum_of_halves(zero);
            gone = sum_of_halves(vanished);
            below = sum_of_halves(subnormal);
        } else {
            I zero{}, vanished{}, subnormal{};
            for (int64_t i = 0; i < n; i += kLanes) {
                F size = size_at(i);
                vanished -= (I)(size <= limits.vanishes);
                subnormal -= (I)(size <= limits.subnormal);
            }
            for (int64_t i = 0; zeros && i < n; i += kLanes) zero -= (I)(number_at(i) == 0.0f);
            nothing = sum_of(zero);
            gone = sum_of(vanished);
            below = sum_of(subnormal);
        }
        c.field[2] += gone - nothing;
        if (below > gone) c.field[3] += below - gone;
    }
};

}  // namespace
