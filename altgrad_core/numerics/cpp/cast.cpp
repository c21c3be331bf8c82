// Casts of float32 and bfloat16 tensors to the grid of a float format or to a table, on the CPU; what kernel.py does with
// tensor operations, in one pass over memory and with the same bits.
//
// A tensor is worked on in chunks, which threads share out, and a chunk in tiles that stay in the first-level cache:
//
//     load, widen, scale -> round -> count -> multiply, narrow, store
//
// Nearest-even and stochastic rounding to grids under saturation, the cases of training, do it all in registers; the rest
// goes through buffers, stage by stage. Tiles do not mind rows: the scales of blocks are spread out over a tile's elements
// first. Counting adds few operations: a tile's largest and smallest magnitude tell whether it can hold anything that
// overflowed, vanished, became subnormal or was not finite, and only then is it counted element by element.
// Statistics are summed per chunk and the chunks added in order, so they do not depend on the number of threads.

#include <utility>
#include <vector>

#include "stages.h"

namespace {

constexpr int64_t kChunk = 64 * kTile;  // elements a thread takes at a time

// What the tiles of a chunk add up, in vectors as long as that is exact enough.
struct Tally {
    Counts counts;
    Extremes x;
    F signal{}, error{};
    int tiles = 0;

    // `unit`: of the errors, squared.
    void add(const Sums& sums, double unit) {
        x.max = largest(x.max, sums.x.max);
        x.min = smallest(x.min, sums.x.min);
        signal = sums.signal;
        error = sums.error;
        if (++tiles % 8 == 0) add_up(unit);
    }
    void add_up(double unit) {
        counts.field[8] += total(signal);
        counts.field[9] += total(error) * unit;
        signal = error = F{};
    }
    void close(double unit) {
        add_up(unit);
        if (!tiles) return;
        counts.field[6] = std::fmax(counts.field[6], (double)bits_to_float(largest_of(x.max)));
        uint32_t min = smallest_of(x.min);
        if (min < kExponent) counts.field[7] = std::fmin(counts.field[7], (double)bits_to_float(min));
    }
};

// A run of whole lanes, or of pairs of them for bfloat16 to bfloat16; factors: one each, or one an element.
struct Run {
    const void* x;
    void* q;
    int64_t n;
    const float *inverse, *scale, *multiplier;
    int64_t number;  // of the first element, for the draw
};

// Where one scale is a power of two, errors are in its units, and exact; else they are in those of x, and rounded once.
template <int path, int rounding, bool each, bool counts>
struct Lane {
    const Grid g;
    const Run r;
    const bool scales, in_units;
    const uint32_t key_high;
    const int bits;
    const F inverse, scale;
    Sums sums;

    // Magnitudes x, rounded as x / scale; `negative`: what an unsigned format has no value for.
    inline F operator()(F x, I negative, F inverse_of_each, F scale_of_each, U number) {
        F y = each ? x * inverse_of_each : scales ? x * inverse : x;
        F z = y;
        if (!g.is_signed) z = select(negative & (I)(y == y), F{}, z);
        U random = rounding == kStochastic ? hashed(number, key_high) : U{};
        F q = round_magnitude<path, rounding>(z, g.max_finite, U{}, random, bits, g);
        if (counts) {
            if (each) sums.y.add(y);
            F error = in_units ? q - y : multiply_add(q, each ? scale_of_each : scale, -x);
            sums.error = multiply_add(error, error, sums.error);
        }
        return q;
    }
};

template <int x_type, int q_type, int path, int rounding, bool each, bool counts>
void cast_run(const Run& run, const Work& w, Sums& sums) {
    const uint32_t* key = rounding == kStochastic ? key_of(w.draw, run.number) : nullptr;
    const uint32_t key_low = key ? key[0] : 0, key_high = key ? key[1] : 0;
    // Copies, which the stores to q cannot be suspected of changing.
    Lane<path, rounding, each, counts> lane{
        w.grid, run, w.scales, w.errors_in_units(), key_high, w.draw.bits, splat(*run.inverse),
        splat(*run.scale), sums};
    const Grid& g = lane.g;
    const Run& r = lane.r;
    const bool exact = w.exact_narrow, multiplies = w.multiplies;
    const F multiplier = splat(*r.multiplier);
    if (x_type == kBFloat16 && q_type == kBFloat16) {
        HalfExtremes range;
        // 32 numbers a time: those at even places are the low halves of 32-bit words, the others the high halves.
        U even = counted((uint32_t)r.number, 2, key_low), odd = even + kGolden;
        for (int64_t i = 0; i < r.n; i += 2 * kLanes, even += 2 * kLanes * kGolden, odd += 2 * kLanes * kGolden) {
            U pair = *(const P*)((const uint16_t*)r.x + i), sizes = pair & 0x7fff7fffu;
            F low = f(sizes << 16), high = f(sizes & 0xffff0000u);
            if (counts) {
                range.add((W)sizes);
                lane.sums.signal = multiply_add(high, high, multiply_add(low, low, lane.sums.signal));
            }
            F first{}, second{}, other_first{}, other_second{};
            if (each) {
                first = load(r.inverse + i);
                second = load(r.inverse + i + kLanes);
                if (counts) {
                    other_first = load(r.scale + i);
                    other_second = load(r.scale + i + kLanes);
                }
            }
            low = lane(low, (I)(pair << 16) < 0, at_even_places(first, second), at_even_places(other_first, other_second),
                       even);
            high = lane(high, (I)pair < 0, at_odd_places(first, second), at_odd_places(other_first, other_second), odd);
            U signs = pair & 0x80008000u;
            if (!g.is_signed) signs = U{};
            if (!g.has_negative_zero) {
                signs &= select((I)(low == 0.0f), splat(0xffff0000u), splat(0xffffffffu));
                signs &= select((I)(high == 0.0f), splat(0x0000ffffu), splat(0xffffffffu));
            }
            if (multiplies) {
                if (each) {
                    first = load(r.multiplier + i);
                    second = load(r.multiplier + i + kLanes);
                }
                low *= each ? at_even_places(first, second) : multiplier;
                high *= each ? at_odd_places(first, second) : multiplier;
            }
            U result = exact ? (u(low) >> 16) | u(high) : narrowed(low) | narrowed(high) << 16;
            *(P*)((uint16_t*)r.q + i) = result ^ signs;
        }
        if (counts) range.into(lane.sums.x);
    } else {
        U number = counted((uint32_t)r.number, 1, key_low);
        for (int64_t i = 0; i < r.n; i += kLanes, number += kLanes * kGolden) {
            F x = x_type == kFloat32 ? load((const float*)r.x + i) : widen((const uint16_t*)r.x + i), size = size_of(x);
            if (counts) {
                lane.sums.x.add(size);
                lane.sums.signal = multiply_add(x, x, lane.sums.signal);
            }
            F inverse = each ? load(r.inverse + i) : F{}, scale = each && counts ? load(r.scale + i) : F{};
            F q = lane(size, (I)u(x) < 0, inverse, scale, number);
            U signs = u(x) & kSign;
            if (!g.is_signed) signs = U{};
            if (!g.has_negative_zero) signs = select((I)(q == 0.0f), U{}, signs);
            if (multiplies) q *= each ? load(r.multiplier + i) : multiplier;
            q = f(u(q) ^ signs);  // a multiplier may be negative
            if (q_type == kFloat32) store((float*)r.q + i, q);
            else if (exact) *(H*)((uint16_t*)r.q + i) = __builtin_convertvector(u(q) >> 16, H);
            else *(H*)((uint16_t*)r.q + i) = __builtin_convertvector(narrowed(q), H);
        }
    }
    if (counts) sums = lane.sums;
}

typedef void (*CastRun)(const Run&, const Work&, Sums&);

template <int path, int rounding, bool each, bool counts>
CastRun by_type(int x_type, int q_type) {
    if (x_type == kFloat32)
        return q_type == kFloat32 ? cast_run<0, 0, path, rounding, each, counts>
                                  : cast_run<0, 1, path, rounding, each, counts>;
    return q_type == kFloat32 ? cast_run<1, 0, path, rounding, each, counts>
                              : cast_run<1, 1, path, rounding, each, counts>;
}

template <int path, int rounding>
CastRun by_scales(const Work& w) {
    int x = w.x_type, q = w.q_type;
    if (!w.blocks) return w.counts ? by_type<path, rounding, false, true>(x, q) : by_type<path, rounding, false, false>(x, q);
    return w.counts ? by_type<path, rounding, true, true>(x, q) : by_type<path, rounding, true, false>(x, q);
}

template <int path>
CastRun by_rounding(const Work& w) {
    return w.rounding == kNearestEven ? by_scales<path, kNearestEven>(w) : by_scales<path, kStochastic>(w);
}

// The function that casts in registers, or null where there is none.
CastRun cast_run_of(const Work& w) {
    const Grid& g = w.grid;
    if (w.table || !w.saturates() || (w.counts && !g.is_signed)) return nullptr;
    if (w.rounding != kNearestEven && w.rounding != kStochastic) return nullptr;
    if (g.path == kMagic) return by_rounding<kMagic>(w);
    return g.path == kBits ? by_rounding<kBits>(w) : by_rounding<kLifted>(w);
}

// One tile in registers, but for its last, incomplete lane.
void cast_in_registers(const Work& w, CastRun run, RoundTile round, int64_t at, int64_t number, int64_t n, Tiles& t,
                       Tally& tally) {
    const Grid& g = w.grid;
    Counts& c = tally.counts;
    int64_t x_size = w.x_type == kFloat32 ? 4 : 2, q_size = w.q_type == kFloat32 ? 4 : 2;
    int64_t step = x_size == 2 && q_size == 2 ? 2 * kLanes : kLanes, whole = n / step * step;
    if (w.rounding == kStochastic && (number >> 32) != ((number + n - 1) >> 32)) whole = 0;
    if (whole < n) cast_in_stages(w, round, at + whole, number + whole, n - whole, t, c);
    if (!whole) return;
    const void* x = (const char*)w.x + at * x_size;
    Run r{x, (char*)w.q + at * q_size, whole, w.inverse, w.scale, w.multiplier, number};
    if (w.blocks) {
        spread(w, w.inverse, at, whole, t.inverse);
        r.inverse = t.inverse;
        if (w.counts) spread(w, w.scale, at, whole, t.scale);
        r.scale = t.scale;
        if (w.multiplies && (w.multiplier != w.scale || !w.counts)) spread(w, w.multiplier, at, whole, t.multiplier);
        r.multiplier = w.multiplier == w.scale && w.counts ? t.scale : t.multiplier;
    }
    Sums sums;
    sums.signal = tally.signal;
    sums.error = tally.error;
    run(r, w, sums);
    if (!w.counts) return;
    bool in_units = w.errors_in_units();
    F max = f(sums.x.max), min = f(sums.x.min);
    F y_max = w.blocks ? f(sums.y.max) : max * *w.inverse, y_min = w.blocks ? f(sums.y.min) : min * *w.inverse;
    F e_max = in_units ? y_max : max;
    if (!any((I)sums.x.max != 0)) {
        c.field[0] += whole;
        return;
    }
    bool zeros = any((I)(min == 0.0f));
    float amin = bits_to_float(zeros ? least_above_zero(x, w.x_type, whole) : smallest_of(sums.x.min));
    // Not a number, or infinity, is not below kSquaresTo; nor is an infinite sum below infinity.
    bool fits = !any(~(I)(max < kSquaresTo)) && any((I)(max > kSquaresFrom)) && !any(~(I)(e_max < kSquaresTo)) &&
                any((I)(e_max > errors_from(g))) && !any(~(I)(sums.error < INFINITY)) && (w.exact_scale || kFused);
    // Errors are multiples of the last bit of x / scale: none of ordinary numbers is too small for a square.
    bool no_error = in_units && amin * *w.inverse > 0x1p-40f && !any((I)(sums.error != 0.0f));
    if (!fits || !(no_error || any((I)(sums.error > kSquaresCount)))) {
        Stage s = scale_tile(w, at, number, whole, t);
        quantize_tile(w, round, s, t, c);
        count_tile(w, s, t, c);
        return;
    }
    // Below float32's normal numbers the quotient itself may have vanished.
    float small = std::fmax(2 * std::fmax(g.min_normal, g.min_positive), 0x1p-126f);
    bool over = any((I)(y_max > g.max_finite)), under = any((I)(y_min < small));
    if (zeros) {
        c.field[7] = std::fmin(c.field[7], (double)amin);
        sums.x.min = splat(0xffffffffu);
    }
    c.field[0] += whole;
    tally.add(sums, w.error_unit());
    if (!over && !under) return;
    if (g.path == kMagic && w.rounding == kNearestEven) {
        Outside outside{x, w.x_type, whole, w.blocks ? r.inverse : nullptr, w.limits};
        if (over) outside.count_over(c);
        if (under) outside.count_under(zeros, c);
    } else {
        Stage s = scale_tile(w, at, number, whole, t);
        quantize_tile(w, round, s, t, c);
        count_small(s.x, s.q, whole, g, c);
    }
}

}  // namespace

extern "C" {

// What stays the same from cast to cast of one kind.
struct Kind {
    int32_t x_type, q_type, rounding, saturation, random_bits;
    Grid grid;
};

// Casts a contiguous matrix, to the kind's grid or to a table. Scales: one each, or one a block; `multiplier` may be null.
// `keys`, `number` (of the first element), `whole_columns`: the draw of stochastic rounding. `statistics`: 10 doubles,
// or null.
void altgrad_cast(const Kind* kind, const Table* table, const void* x, void* q, int64_t rows, int64_t columns,
                  const float* scale, const float* multiplier, int64_t block_rows, int64_t block_columns,
                  const uint32_t* keys, int64_t number, int64_t whole_columns, double* statistics, int threads) {
    const float one = 1.0f;
    Work w;
    w.grid = kind->grid;
    w.table = table;
    w.x = x; w.q = q; w.x_type = kind->x_type; w.q_type = kind->q_type;
    w.blocks = block_columns != 0;
    w.multiplies = multiplier && (w.blocks || *multiplier != 1.0f);
    w.scale = scale; w.multiplier = multiplier ? multiplier : &one;
    w.rounding = kind->rounding; w.saturation = kind->saturation;
    w.draw = {keys, number, kind->random_bits};
    w.counts = statistics != nullptr;
    const Grid& g = w.grid;
    int64_t scales = w.blocks ? ((rows + block_rows - 1) / block_rows) * ((columns + block_columns - 1) / block_columns) : 1;
    std::vector<float> inverses(scales);
    for (int64_t i = 0; i < scales; ++i) inverses[i] = 1.0f / scale[i];
    w.inverse = inverses.data();
    w.scales = w.blocks || inverses[0] != 1.0f;
    if (w.counts && !table && g.path == kMagic) w.limits = Limits(g, w.blocks ? 1.0f : inverses[0]);
    w.exact_scale = w.exact_narrow = true;
    if (w.counts)
        for (int64_t i = 0; i < scales; ++i) w.exact_scale &= (float_to_bits(scale[i]) & 0x7fffffu) == 0;
    if (w.q_type == kBFloat16)  // multiples of 2^-133, below 2^128
        for (int64_t i = 0; i < (w.multiplies ? scales : 1); ++i) {
            float m = w.multiplier[i];
            w.exact_narrow &= (float_to_bits(m) & 0x7fffffu) == 0 && (double)m * g.min_positive >= 0x1p-133 &&
                              (double)m * g.max_finite < 0x1p128;
        }
    RoundTile round = round_tile_of(w);
    CastRun run = cast_run_of(w);

    // Numbers that go on from row to row make one long row; so do, with one block after the other, rows of whole blocks.
    bool flat = w.rounding != kStochastic || whole_columns == columns;
    int64_t length = flat ? rows * columns : columns, stretches = flat ? 1 : rows;
    if (columns == 1) { std::swap(rows, columns); std::swap(block_rows, block_columns); }
    if (w.blocks && block_rows == 1 && columns % block_columns == 0) columns *= rows;
    w.columns = columns; w.block_rows = block_rows; w.block_columns = block_columns;

    // A chunk is a piece of one stretch, or a number of whole ones.
    int64_t pieces = (length + kChunk - 1) / kChunk, together = pieces > 1 || length > kChunk ? 1 : kChunk / length;
    int64_t chunks = pieces * ((stretches + together - 1) / together);
    std::vector<Counts> counts(w.counts ? chunks : 0);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && chunks > 1)
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        Tiles& tiles = tiles_of_thread();
        Tally tally;
        int64_t stretch = chunk / pieces * together;
        int64_t last_stretch = stretch + together < stretches ? stretch + together : stretches;
        int64_t first = chunk % pieces * kChunk, last = first + kChunk < length ? first + kChunk : length;
        for (; stretch < last_stretch; ++stretch)
            for (int64_t i = first; i < last; i += kTile) {
                int64_t n = last - i < kTile ? last - i : kTile;
                int64_t at = stretch * length + i, drawn = number + stretch * whole_columns + i;
                if (run) cast_in_registers(w, run, round, at, drawn, n, tiles, tally);
                else cast_in_stages(w, round, at, drawn, n, tiles, tally.counts);
            }
        if (!w.counts) continue;
        tally.close(w.error_unit());
        counts[chunk] = tally.counts;
    }
    if (!w.counts) return;
    Counts sum;
    for (const Counts& c : counts) sum.merge(c);
    if (std::isinf(sum.field[7])) sum.field[7] = 0.0;
    for (int k = 0; k < kFields; ++k) statistics[k] = sum.field[k];
}

}  // extern "C"
