// Sums that probes take over all parameters of a model, each in one pass at the speed of memory, in float64.

#include <vector>

#include "rounding.h"

namespace {

constexpr int64_t kChunk = 65536;  // elements a thread takes at a time

// n numbers of either type as lanes, the last one filled up with zeros.
template <typename Each>
void for_lanes(const void* x, int type, int64_t at, int64_t n, Each&& each) {
    int64_t whole = n / kLanes * kLanes;
    if (type == kFloat32) {
        const float* p = (const float*)x + at;
        for (int64_t i = 0; i < whole; i += kLanes) each(load(p + i));
    } else {
        const uint16_t* p = (const uint16_t*)x + at;
        for (int64_t i = 0; i < whole; i += kLanes) each(widen(p + i));
    }
    if (whole < n) {
        F rest{};
        for (int64_t i = whole; i < n; ++i)
            rest[i - whole] = type == kFloat32 ? ((const float*)x)[at + i]
                                               : bits_to_float((uint32_t)((const uint16_t*)x)[at + i] << 16);
        each(rest);
    }
}

// Two tensors of float32 side by side.
template <typename Each>
void for_pairs(const float* a, const float* b, int64_t n, Each&& each) {
    int64_t whole = n / kLanes * kLanes;
    for (int64_t i = 0; i < whole; i += kLanes) each(load(a + i), load(b + i));
    if (whole < n) {
        F x{}, y{};
        for (int64_t i = whole; i < n; ++i) { x[i - whole] = a[i]; y[i - whole] = b[i]; }
        each(x, y);
    }
}

struct Update {
    const float *old, *now, *gradient;
    int64_t n;
    Grid grid;
    float inverse;
    double max_power;
};

// Counts over a chunk: unchanged masters, gradients not zero, of those unchanged values, unchanged values, steps moved.
template <int path>
void count_updates(const Update& u_, int64_t at, int64_t n, double* out) {
    const Grid g = u_.grid;
    const F inverse = splat(u_.inverse), top = splat((float)u_.max_power);
    I unchanged{}, wanted{}, stalled{}, same{};
    D moved_low{}, moved_high{};
    auto value = [&](F y) {
        F q = round_magnitude<path, kNearestEven>(size_of(y), g.max_finite, u(y) & kSign, U{}, 0, g);
        return u(q) | (u(y) & kSign);
    };
    int64_t whole = n / kLanes * kLanes;
    auto each = [&](F before, F after, F gradient) {
        F y = before * inverse;
        U a = value(y), b = value(after * inverse);
        // +0 and -0 are one value.
        I equal = ((I)(a == b) | (I)(((a | b) & kMagnitude) == 0u)) & (I)(y == y), asked = (I)(gradient != 0.0f);
        unchanged -= (I)(before == after);
        wanted -= asked;
        stalled -= equal & asked;
        same -= equal;
        F size = f(u(y) & kMagnitude);
        F power = smaller(top, f(power_bits(size, g.first_power)));
        F steps = f(u((after - before) * inverse) & kMagnitude) / power;
        moved_low += low_half(steps);
        moved_high += high_half(steps);
    };
    for (int64_t i = 0; i < whole; i += kLanes)
        each(load(u_.old + at + i), load(u_.now + at + i), load(u_.gradient + at + i));
    if (whole < n) {
        F before{}, after{}, gradient{};
        for (int64_t i = whole; i < n; ++i) {
            before[i - whole] = u_.old[at + i];
            after[i - whole] = u_.now[at + i];
            gradient[i - whole] = u_.gradient[at + i];
        }
        each(before, after, gradient);
        double padding = kLanes - (n - whole);  // zeros are unchanged, and the same value
        out[0] -= padding;
        out[3] -= padding;
    }
    for (int l = 0; l < kLanes; ++l) {
        out[0] += unchanged[l];
        out[1] += wanted[l];
        out[2] += stalled[l];
        out[3] += same[l];
    }
    out[4] += (total(moved_low) + total(moved_high)) * std::ldexp(1.0, g.mantissa_bits);
}

}  // namespace

extern "C" {

// Of a contiguous matrix: out[0..2] = sum, sum of squares, largest magnitude; out[3] = rows without a number but zero.
void altgrad_moments(const void* x, int type, int64_t rows, int64_t columns, double* out, int threads) {
    // A row is summed by one thread, in pieces; rows are shared out, and long single rows by their pieces.
    int64_t pieces = (columns + kChunk - 1) / kChunk, rows_a_chunk = pieces > 1 ? 1 : kChunk / columns;
    if (rows_a_chunk < 1) rows_a_chunk = 1;
    int64_t groups = (rows + rows_a_chunk - 1) / rows_a_chunk, chunks = groups * pieces;
    std::vector<double> sums(2 * chunks);
    std::vector<uint32_t> largest_bits(chunks), empty(chunks);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && chunks > 1)
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        int64_t group = chunk / pieces, first = chunk % pieces * kChunk;
        int64_t last = first + kChunk < columns ? first + kChunk : columns;
        int64_t last_row = (group + 1) * rows_a_chunk < rows ? (group + 1) * rows_a_chunk : rows;
        D sum_low{}, sum_high{}, squares_low{}, squares_high{};
        uint32_t most = 0, zero_rows = 0;
        for (int64_t row = group * rows_a_chunk; row < last_row; ++row) {
            U size{};
            for_lanes(x, type, row * columns + first, last - first, [&](F v) {
                D a = low_half(v), b = high_half(v);
                sum_low += a;
                sum_high += b;
                squares_low += a * a;
                squares_high += b * b;
                size = largest(size, u(v) & kMagnitude);
            });
            uint32_t row_most = largest_of(size);
            if (row_most == 0) ++zero_rows;
            if (row_most > most) most = row_most;
        }
        sums[2 * chunk] = total(sum_low) + total(sum_high);
        sums[2 * chunk + 1] = total(squares_low) + total(squares_high);
        largest_bits[chunk] = most;
        empty[chunk] = zero_rows;
    }
    out[0] = out[1] = out[3] = 0;
    uint32_t most = 0;
    for (int64_t group = 0; group < groups; ++group) {
        uint32_t zeros = 0;
        for (int64_t piece = 0; piece < pieces; ++piece) {
            int64_t chunk = group * pieces + piece;
            out[0] += sums[2 * chunk];
            out[1] += sums[2 * chunk + 1];
            zeros += empty[chunk];
            if (largest_bits[chunk] > most) most = largest_bits[chunk];
        }
        out[3] += pieces == 1 ? zeros : zeros == pieces;
    }
    out[2] = bits_to_float(most);
}

// Of two float32 tensors: out = a . a, b . b, a . b, (a - b) . (a - b).
void altgrad_products(const float* a, const float* b, int64_t n, double* out, int threads) {
    int64_t chunks = (n + kChunk - 1) / kChunk;
    std::vector<double> sums(4 * chunks);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && chunks > 1)
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        int64_t first = chunk * kChunk, length = n - first < kChunk ? n - first : kChunk;
        D aa{}, bb{}, ab{}, ee{};
        for_pairs(a + first, b + first, length, [&](F x, F y) {
            D p = low_half(x), q = low_half(y), e = p - q;
            aa += p * p; bb += q * q; ab += p * q; ee += e * e;
            p = high_half(x); q = high_half(y); e = p - q;
            aa += p * p; bb += q * q; ab += p * q; ee += e * e;
        });
        double* s = sums.data() + 4 * chunk;
        s[0] = total(aa); s[1] = total(bb); s[2] = total(ab); s[3] = total(ee);
    }
    for (int k = 0; k < 4; ++k) out[k] = 0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk)
        for (int k = 0; k < 4; ++k) out[k] += sums[4 * chunk + k];
}

// Of a weight before and after an update, and its gradient, all float32: out = elements whose number is unchanged, those
// with a gradient that is not zero, of those the ones whose value in the format (nearest even, clamped) is unchanged, all
// elements whose value is, and the sum of abs(after - before) / ulp of the format at `before`.
void altgrad_updates(const float* old, const float* now, const float* gradient, int64_t n, const Grid* grid,
                     float inverse, double max_power, double* out, int threads) {
    Update update{old, now, gradient, n, *grid, inverse, max_power};
    int64_t chunks = (n + kChunk - 1) / kChunk;
    std::vector<double> sums(5 * chunks);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && chunks > 1)
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        int64_t first = chunk * kChunk, length = n - first < kChunk ? n - first : kChunk;
        double* out_chunk = sums.data() + 5 * chunk;
        if (grid->path == kMagic) count_updates<kMagic>(update, first, length, out_chunk);
        else if (grid->path == kLifted) count_updates<kLifted>(update, first, length, out_chunk);
        else count_updates<kBits>(update, first, length, out_chunk);
    }
    for (int k = 0; k < 5; ++k) out[k] = 0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk)
        for (int k = 0; k < 5; ++k) out[k] += sums[5 * chunk + k];
}

}  // extern "C"
