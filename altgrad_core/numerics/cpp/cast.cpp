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

#include "counting.h"
#include "table.h"

namespace {

constexpr int64_t kTile = 1024;         // elements; seven buffers of 4 KiB stay in the first-level cache
constexpr int64_t kChunk = 64 * kTile;  // elements a thread takes at a time

enum Saturation { kFinite = 0, kPropagate, kNone };

struct Draw {
    const uint32_t* keys;  // low, high of each page of 2^32 element numbers, from that of the first element
    int64_t first;         // number of the first element
    int32_t bits;
};

struct Work {
    Grid grid;
    const Table* table;  // instead of the grid, whose numbers then only say how exact float32 sums are; or null
    const void* x;
    void* q;
    int x_type, q_type;
    // Scales: one of each, or one for each block, [ceil(rows / block_rows), ceil(columns / block_columns)].
    const float *inverse, *scale, *multiplier;
    int64_t columns, block_rows, block_columns;
    bool blocks;
    bool scales, multiplies;         // whether inverse and multiplier are anything but 1
    bool exact_scale, exact_narrow;  // powers of two; and products that are bfloat16 numbers as they are
    int rounding, saturation;
    Draw draw;
    bool counts;
    Limits limits;

    // Whether all that is beyond the largest value becomes it.
    bool saturates() const {
        return saturation == kFinite || (saturation == kPropagate && !grid.has_inf) || !(grid.has_inf || grid.has_nan);
    }
    // Whether errors are summed up in units of the one scale, not of x.
    bool errors_in_units() const { return !blocks && exact_scale; }
    double error_unit() const { return errors_in_units() ? (double)*scale * (double)*scale : 1.0; }
};

struct Tiles {
    alignas(64) float x[kTile + kLanes], y[kTile + kLanes], q[kTile + kLanes], inverse[kTile + kLanes],
        scale[kTile + kLanes], multiplier[kTile + kLanes];
    alignas(64) uint32_t random[kTile + kLanes];
};

// Not inlined: compilers ask for the address of what a thread owns anew in the middle of loops.
__attribute__((noinline)) Tiles& tiles_of_thread() {
    static thread_local Tiles tiles;
    return tiles;
}

inline int64_t padded(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

// ------------------------------------------------------------------------------------------------------- random bits

// stochastic.py's hash, of numbers that `counted` has multiplied and added the low half of the key to.
constexpr uint32_t kGolden = 0x9E3779B1u;

inline U hashed(U h, uint32_t high) {
    h = (h ^ (h >> 16)) * 0x21F0AAADu;
    h = (h ^ (h >> 15) ^ (high ^ (high >> 15))) * 0x735A2D97u;  // of h ^ high, its xor-shift
    return h ^ (h >> 15);
}

// Of the numbers first, first + step, ...; the next lanes' are kLanes * step * kGolden further.
inline U counted(uint32_t first, uint32_t step, uint32_t low) {
    U number{};
    for (int l = 0; l < kLanes; ++l) number[l] = (first + step * l) * kGolden + low;
    return number;
}

inline const uint32_t* key_of(const Draw& draw, int64_t number) {
    return draw.keys + 2 * ((number >> 32) - (draw.first >> 32));
}

// Random bits of the n elements from `number` on; a page of 2^32 numbers may end among them.
void draw_tile(const Draw& draw, int64_t number, uint32_t* random, int64_t n) {
    for (int64_t done = 0; done < n;) {
        int64_t page = (number + done) >> 32, until = ((page + 1) << 32) - number;
        if (until > n) until = n;
        const uint32_t* key = key_of(draw, number + done);
        U next = counted((uint32_t)(number + done), 1, key[0]);
        for (int64_t i = done; i < until; i += kLanes, next += kLanes * kGolden) *(U*)(random + i) = hashed(next, key[1]);
        done = until;
    }
}

// ------------------------------------------------------------------------------------------------- stages of a tile

// Where the stages of a tile find what they need, padded with zeros to whole lanes: x and q in the tensors where they can.
struct Stage {
    int64_t at, number, n, m;  // first element; its number, for the draw; elements; with padding
    const float *x, *y;
    float* q;
};

const float* load_tile(const Work& w, int64_t at, int64_t n, float* x) {
    int64_t whole = n / kLanes * kLanes;
    if (w.x_type == kFloat32) {
        const float* source = (const float*)w.x + at;
        if (whole == n) return source;
        std::memcpy(x, source, n * 4);
    } else {
        const uint16_t* source = (const uint16_t*)w.x + at;
        for (int64_t i = 0; i < whole; i += kLanes) store(x + i, widen(source + i));
        for (int64_t i = whole; i < n; ++i) x[i] = bits_to_float((uint32_t)source[i] << 16);
    }
    for (int64_t i = n; i < padded(n); ++i) x[i] = 0.0f;
    return x;
}

void store_tile(const Work& w, const Stage& s) {
    if (w.q_type == kFloat32) {
        float* target = (float*)w.q + s.at;
        if (s.q != target) std::memcpy(target, s.q, s.n * 4);
        return;
    }
    uint16_t* target = (uint16_t*)w.q + s.at;
    int64_t whole = s.n / kLanes * kLanes;
    for (int64_t i = 0; i < whole; i += kLanes) *(H*)(target + i) = __builtin_convertvector(narrowed(load(s.q + i)), H);
    if (whole < s.n) {
        H rest = __builtin_convertvector(narrowed(load(s.q + whole)), H);
        std::memcpy(target + whole, &rest, (s.n - whole) * 2);
    }
}

// The blocks' numbers, one for each of the n elements from `at` on, and 1 for the padding. Writes whole lanes, of which
// the last ones of a block are written again by the next.
void spread(const Work& w, const float* of_blocks, int64_t at, int64_t n, float* out) {
    int64_t per_row = (w.columns + w.block_columns - 1) / w.block_columns;
    int64_t row = at / w.columns, column = at % w.columns, block_row = row / w.block_rows;
    int64_t rows_left = (block_row + 1) * w.block_rows - row;  // of the row of blocks
    for (int64_t i = 0; i < n; column = 0) {
        const float* s = of_blocks + block_row * per_row;
        int64_t end = i + w.columns - column < n ? i + w.columns - column : n;
        if (w.block_columns == 1) {
            std::memcpy(out + i, s + column, (end - i) * 4);
        } else {
            int64_t block = column / w.block_columns, stop = i + (block + 1) * w.block_columns - column;
            for (; i < end; i = stop, stop += w.block_columns, ++block) {
                if (stop > end) stop = end;
                F value = splat(s[block]);
                for (int64_t j = i; j < stop; j += kLanes) store(out + j, value);
            }
        }
        i = end;
        if (--rows_left == 0) { ++block_row; rows_left = w.block_rows; }
    }
    for (int64_t i = n; i < padded(n); ++i) out[i] = 1.0f;
}

Stage scale_tile(const Work& w, int64_t at, int64_t number, int64_t n, Tiles& t) {
    Stage s{at, number, n, padded(n), load_tile(w, at, n, t.x), t.y, t.q};
    if (w.blocks) {
        spread(w, w.inverse, at, n, t.inverse);
        for (int64_t i = 0; i < s.m; i += kLanes) store(t.y + i, load(s.x + i) * load(t.inverse + i));
    } else if (w.scales) {
        F inverse = splat(*w.inverse);
        for (int64_t i = 0; i < s.m; i += kLanes) store(t.y + i, load(s.x + i) * inverse);
    } else {
        s.y = s.x;
    }
    return s;
}

template <int path, int rounding>
void round_tile(const Stage& s, const uint32_t* random, int bits, float bound, const Grid& g) {
    for (int64_t i = 0; i < s.m; i += kLanes) {
        F v = load(s.y + i);
        U sign = u(v) & kSign, r = rounding == kStochastic ? load(random + i) : U{};
        F rounded = round_magnitude<path, rounding>(size_of(v), bound, sign, r, bits, g);
        if (!g.has_negative_zero) sign = select((I)(rounded == 0.0f), U{}, sign);
        store(s.q + i, f(u(rounded) | sign));
    }
}

typedef void (*RoundTile)(const Stage&, const uint32_t*, int, float, const Grid&);

template <int path>
RoundTile round_tile_by(int rounding) {
    switch (rounding) {
        case kNearestEven: return round_tile<path, kNearestEven>;
        case kNearestAway: return round_tile<path, kNearestAway>;
        case kTowardZero: return round_tile<path, kTowardZero>;
        case kUp: return round_tile<path, kUp>;
        case kDown: return round_tile<path, kDown>;
        default: return round_tile<path, kStochastic>;
    }
}

RoundTile round_tile_of(const Work& w) {
    if (w.grid.path == kMagic) return round_tile_by<kMagic>(w.rounding);
    return w.grid.path == kBits ? round_tile_by<kBits>(w.rounding) : round_tile_by<kLifted>(w.rounding);
}

// What saturation makes of q, rounded in the grid that goes on for one value. Counts finite elements that overflowed:
// those whose quotient y left float32 are among them.
int64_t saturate_tile(const Stage& s, const Grid& g, int rounding, int saturation) {
    F max = splat(g.max_finite);
    I overflows{};
    bool keep_inf = g.has_inf && saturation != kFinite;
    bool clamps = saturation != kNone || !(g.has_inf || g.has_nan);
    F nan = f(splat(0x7fc00000u)), inf = f(splat(kExponent)), beyond = g.has_inf ? inf : nan;
    for (int64_t i = 0; i < s.m; i += kLanes) {
        F v = load(s.y + i), magnitude = size_of(load(s.q + i));
        U sign = u(v) & kSign, size = u(load(s.x + i)) & kMagnitude;
        // Float32 need not hold the largest value; infinity is beyond it all the same.
        I over = (I)(magnitude > max) | (I)((u(v) & kMagnitude) == kExponent);
        I finite = (I)(size < kExponent), infinite = (I)(size == kExponent), negative = (I)(sign != 0u);
        if (!g.is_signed) over |= negative & (I)(magnitude > 0.0f);
        overflows += over & finite;  // each counts -1
        F limit = max;
        if (!g.is_signed) limit = select(negative, F{}, max);
        F result;
        if (clamps) result = limit;
        else {
            I inwards = rounding == kTowardZero ? finite
                        : rounding == kUp ? finite & negative
                        : rounding == kDown ? finite & ~negative : I{};
            F outside = beyond;
            if (!g.is_signed) outside = select(negative, nan, outside);
            result = select(inwards, limit, outside);
        }
        if (keep_inf && clamps) result = select(g.is_signed ? infinite : infinite & ~negative, inf, result);
        magnitude = select(over, result, magnitude);
        if (!g.is_signed) sign = select((I)(magnitude != magnitude), sign, U{});
        else if (!g.has_negative_zero) sign = select((I)(magnitude == 0.0f), U{}, sign);
        store(s.q + i, f(u(magnitude) | sign));
    }
    return -sum_of(overflows);
}

// From y to q; counts what overflowed.
void quantize_tile(const Work& w, RoundTile round, const Stage& s, Tiles& t, Counts& c) {
    if (w.table) {
        c.field[1] += look_up(s.x, s.y, s.q, t.random, s.m, s.n, *w.table);
        for (int64_t i = s.n; i < s.m; ++i) s.q[i] = 0.0f;  // a table need not have a zero
        return;
    }
    const Grid& g = w.grid;
    if (w.rounding == kStochastic) draw_tile(w.draw, s.number, t.random, s.n);
    // Clamped first, nothing is left to saturate, or to count.
    bool clamps = !w.counts && g.is_signed && w.saturates();
    round(s, t.random, w.draw.bits, clamps ? g.max_finite : g.beyond, g);
    if (!clamps) c.field[1] += saturate_tile(s, g, w.rounding, w.saturation);  // the padding stays zero
}

void count_tile(const Work& w, const Stage& s, Tiles& t, Counts& c) {
    if (w.blocks) spread(w, w.scale, s.at, s.n, t.scale);
    else for (int64_t i = 0; i < s.m; i += kLanes) store(t.scale + i, splat(*w.scale));
    double highest = w.table ? w.table->highest : w.grid.limit;
    double lowest = w.table ? w.table->lowest : w.grid.is_signed ? -highest : 0.0;
    c.field[0] += s.n;
    count_exactly(s.x, s.y, s.q, t.scale, s.m, lowest, highest, c);
    count_small(s.x, s.q, s.m, w.grid, c);
}

// Any cast, stage by stage.
void cast_in_stages(const Work& w, RoundTile round, int64_t at, int64_t number, int64_t n, Tiles& t, Counts& c) {
    Stage s = scale_tile(w, at, number, n, t);
    if (w.q_type == kFloat32 && s.m == n) s.q = (float*)w.q + at;
    quantize_tile(w, round, s, t, c);
    if (w.counts) count_tile(w, s, t, c);
    if (w.multiplies) {
        if (w.blocks) {
            spread(w, w.multiplier, at, n, t.multiplier);
            for (int64_t i = 0; i < s.m; i += kLanes) store(s.q + i, load(s.q + i) * load(t.multiplier + i));
        } else {
            F multiplier = splat(*w.multiplier);
            for (int64_t i = 0; i < s.m; i += kLanes) store(s.q + i, load(s.q + i) * multiplier);
        }
    }
    store_tile(w, s);
}

// ------------------------------------------------------------------------------------------------------ in registers

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

// Errors in units of the scale are exact where the scale is a power of two, and x is exact with one rounding of the sum
// where it is not, or is not one for all.
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
            low = lane(low, (I)(pair << 16) < 0, at_even_places(first, second), at_even_places(other_first, other_second), even);
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
            F q = lane(size, (I)u(x) < 0, each ? load(r.inverse + i) : F{}, each && counts ? load(r.scale + i) : F{}, number);
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
    // Not a number, or infinity, is not below kSquaresTo; nor is an infinite sum below infinity.
    bool fits = !any(~(I)(max < kSquaresTo)) && any((I)(max > kSquaresFrom)) && !any(~(I)(e_max < kSquaresTo)) &&
                any((I)(e_max > errors_from(g))) && !any(~(I)(sums.error < INFINITY)) &&
                any((I)(sums.error > kSquaresCount));
    if (!fits || !(w.exact_scale || kFused)) {
        Stage s = scale_tile(w, at, number, whole, t);
        quantize_tile(w, round, s, t, c);
        count_tile(w, s, t, c);
        return;
    }
    bool zeros = any((I)(min == 0.0f));
    // Below float32's normal numbers the quotient itself may have vanished.
    float small = std::fmax(2 * std::fmax(g.min_normal, g.min_positive), 0x1p-126f);
    bool over = any((I)(y_max > g.max_finite)), under = any((I)(y_min < small));
    if (zeros) {
        c.field[7] = std::fmin(c.field[7], (double)bits_to_float(least_above_zero(x, w.x_type, whole)));
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
