// A cast's tile stage by stage, through buffers: load, widen, scale -> round or look up -> saturate -> count -> multiply,
// narrow, store. Any cast can be done so; cast.cpp has the ones that stay in registers.

#pragma once

#include "counting.h"
#include "table.h"

namespace {

constexpr int64_t kTile = 1024;  // elements; seven buffers of 4 KiB stay in the first-level cache

enum Saturation { kFinite = 0, kPropagate, kNone };

struct Draw {
    const uint32_t* keys;  // low, high of each page of 2^32 element numbers, from that of the first element
    int64_t first;         // number of the first element
    int32_t bits;
};

struct Work {
    Grid grid;
    const Table* table;  // instead of the grid, or null
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
    F inf = f(splat(kExponent)), beyond = g.has_inf ? inf : nan();
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
            if (!g.is_signed) outside = select(negative, nan(), outside);
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

}  // namespace
