// Rounding to a table format: which interval between thresholds a number lies in (tables.py), by look-ups.

#pragma once

#include "lanes.h"

namespace {

// Buckets of 2^shift numbers, counted in the order of the numbers from `origin` on; what lies outside counts to the first
// or the last. Bucket k has the numbers behind its start up to and including the start of the next.
struct Table {
    const float *thresholds, *results;  // the first number of each interval but the first, then NaN; what intervals become
    const float *threshold, *value;     // of a bucket its only threshold, or NaN; what its start becomes. Null: see `first`
    const uint32_t* first;              // interval of a bucket's start, where a bucket can have many thresholds
    int32_t shift, origin, last, above; // the last bucket; the interval above the table, that below it is 1
    int32_t has_negative_zero;
    double lowest, highest;             // finite values
};

// The interval of each lane, by steps from that of its bucket's start.
inline U interval_of(F y, U bucket, const Table& t) {
    U place = gather(t.first, bucket);
    for (;;) {
        I further = (I)(y >= gather(t.thresholds, place));
        if (!any(further)) return place;
        place -= (U)further;
    }
}

// From y to q, n a whole number of lanes; tells how many of the first `counted` finite elements of x overflowed.
int64_t look_up(const float* x, const float* y, float* q, int64_t n, int64_t counted, const Table& t) {
    const float largest_number = bits_to_float(kExponent - 1u);
    F minus = splat(t.results[0]), plus = splat(t.results[t.above + 1]);
    F lowest = splat(t.thresholds[1]), highest = splat(t.thresholds[t.above - 1]);
    I overflows{};
    for (int64_t i = 0; i < n; i += kLanes) {
        F number = load(x + i), v = load(y + i);
        I infinite = (I)((u(number) & kMagnitude) == kExponent);
        // The quotient of a finite element is finite; -0 is 0.
        F w = select(infinite, v, smaller(splat(largest_number), v));
        w = select((I)(w < -largest_number) & ~infinite, splat(-largest_number), w) + 0.0f;
        I order = (I)u(w) ^ (((I)u(w) >> 31) & (I)splat(kMagnitude));
        U behind = smallest(((U)order - (uint32_t)t.origin - 1u) >> (uint32_t)t.shift, splat((uint32_t)t.last));
        U bucket = select((I)(order <= t.origin), U{}, behind);
        F value;
        if (t.value) {
            bucket -= (U)(I)(w >= gather(t.threshold, bucket));
            value = gather(t.value, bucket);
        } else {
            value = gather(t.results, interval_of(w, bucket, t));
        }
        value = select((I)(w == INFINITY), plus, select((I)(w == -INFINITY), minus, value));
        I nan = (I)(w != w);
        I over = (((I)(w >= highest)) | ((I)(w < lowest))) & ~infinite;
        if (i + kLanes > counted) for (int l = (int)(counted > i ? counted - i : 0); l < kLanes; ++l) over[l] = 0;
        overflows -= over;
        if (t.has_negative_zero) value = select((I)(value == 0.0f), f(u(v) & kSign), value);
        store(q + i, select(nan, v, value));
    }
    return sum_of(overflows);
}

}  // namespace
