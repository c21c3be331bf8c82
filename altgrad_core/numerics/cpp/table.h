// Rounding to a table format: which interval between thresholds a number lies in (tables.py), by look-ups.

#pragma once

#include "lanes.h"

namespace {

// Buckets of 2^shift numbers, counted in the order of the numbers from `origin` on; what lies outside counts to the first
// or the last. Bucket k has the numbers behind its start up to and including the start of the next. Most have one
// threshold at most; those from `crowded` to `crowded_last` can have many.
struct Table {
    const float *thresholds, *results;  // the first number of each interval but the first, then NaN; what intervals become
    const float *threshold, *value;     // of a bucket its only threshold, or NaN; what its start becomes, then `results`
    const uint32_t* first;              // interval of a bucket's start
    int32_t shift, origin, last, crowded, crowded_last;
    int32_t above;                      // the interval above the table; that below it is 1
    int32_t has_negative_zero;
    double lowest, highest;             // finite values
};

// From an interval on, the one that y lies in.
inline U step_on(F y, U place, const Table& t) {
    for (;;) {
        I further = (I)(y >= gather(t.thresholds, place));
        if (!any(further)) return place;
        place -= (U)further;
    }
}

// From y to q, n a whole number of lanes; tells how many of the first `counted` finite elements of x overflowed. A look-up
// that waits for another one takes twice the time: all places are looked up before any result is.
int64_t look_up(const float* x, const float* y, float* q, uint32_t* places, int64_t n, int64_t counted,
                const Table& table) {
    const Table t = table;  // a copy, which stores cannot be suspected of changing
    const float last = bits_to_float(kExponent - 1u);
    const float lowest = t.thresholds[1], highest = t.thresholds[t.above - 1];
    I overflows{};
    for (int64_t i = 0; i < n; i += kLanes) {
        F v = load(y + i);
        I infinite = (I)((u(load(x + i)) & kMagnitude) == kExponent);
        // The quotient of a finite element is finite; -0 is 0.
        v = select(infinite, v, smaller(splat(last), v));
        v = select((I)(v < -last) & ~infinite, splat(-last), v) + 0.0f;
        I order = (I)u(v) ^ (((I)u(v) >> 31) & (I)splat(kMagnitude));
        U behind = shifted((U)order - (uint32_t)t.origin - 1u, splat((uint32_t)t.shift));
        U place = select((I)(order <= t.origin), U{}, smallest(behind, splat((uint32_t)t.last)));
        I crowded = (I)(place - (uint32_t)t.crowded <= (uint32_t)(t.crowded_last - t.crowded));
        U found = place - (U)(I)(v >= gather(t.threshold, place));
        if (any(crowded)) {
            U interval = step_on(v, gather(t.first, select(crowded, place, U{})), t);
            found = select(crowded, interval + (uint32_t)(t.last + 2), found);
        }
        *(U*)(places + i) = found;
        overflows -= ((I)(v >= highest) | (I)(v < lowest)) & ~infinite;
    }
    bool padding_is_over = highest <= 0.0f || lowest > 0.0f;  // it is zeros, which a table need not have
    F minus = splat(t.results[0]), plus = splat(t.results[t.above + 1]);
    for (int64_t i = 0; i < n; i += kLanes) {
        F number = load(x + i), v = load(y + i), value = gather(t.value, load(places + i));
        if (any_above(u(number) & kMagnitude, splat(kExponent - 1u))) {
            value = select((I)(number == INFINITY), plus, select((I)(number == -INFINITY), minus, value));
            value = select((I)(number != number), v, value);
        }
        if (t.has_negative_zero) value = select((I)(value == 0.0f), f(u(v) & kSign), value);
        store(q + i, value);
    }
    return sum_of(overflows) - (padding_is_over ? n - counted : 0);
}

}  // namespace
