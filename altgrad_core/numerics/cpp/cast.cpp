// Casts of float32 and bfloat16 matrices to the grid of a float format, on the CPU; what kernel.py does with tensor
// operations, in one pass over memory and with the same bits.
//
// A matrix is worked on in chunks, which threads share out, and a chunk in tiles that stay in the first-level cache:
//
//     load, widen, scale -> round -> count -> multiply, narrow, store
//
// Nearest-even and stochastic rounding to signed formats under saturation, the cases of training, do it all in
// registers; the rest goes through buffers, stage by stage. Counting adds few operations: a tile's largest and smallest
// magnitude tell whether it can hold anything that overflowed, vanished, became subnormal or was not finite, and only
// then is it counted element by element.
// Statistics are summed per chunk and the chunks added in order, so they do not depend on the number of threads.

#include <vector>

#include "lanes.h"

namespace {

constexpr int64_t kTile = 1024;         // elements; seven buffers of 4 KiB stay in the first-level cache
constexpr int64_t kChunk = 64 * kTile;  // elements a thread takes at a time
constexpr int kFields = 10;             // statistics.FIELDS

// Up to so many mantissa bits the error of a cast is far above that of a float32 product with the scale.
constexpr int kShort = 5;

enum Saturation { kFinite = 0, kPropagate, kNone };

struct Draw {
    const uint32_t* keys;    // low, high of each page of 2^32 element numbers, from that of the first element
    int64_t first, columns;  // number of the first element; columns of the whole matrix
    int32_t bits;
};

template <int path, int rounding>
void round_tile(const float* y, const uint32_t* random, int bits, float* q, int64_t n, const Grid& g) {
    F bound = splat(g.beyond);
    for (int64_t i = 0; i < n; i += kLanes) {
        F v = load(y + i);
        U sign = u(v) & kSign;
        F z = smaller(bound, f(u(v) & kMagnitude));
        U r = rounding == kStochastic ? load(random + i) : U{};
        F rounded = round_magnitude<path, rounding>(z, sign, r, bits, g);
        store(q + i, f(u(rounded) | sign));
    }
}

typedef void (*RoundTile)(const float*, const uint32_t*, int, float*, int64_t, const Grid&);

template <int path>
RoundTile round_tile_of(int rounding) {
    switch (rounding) {
        case kNearestEven: return round_tile<path, kNearestEven>;
        case kNearestAway: return round_tile<path, kNearestAway>;
        case kTowardZero: return round_tile<path, kTowardZero>;
        case kUp: return round_tile<path, kUp>;
        case kDown: return round_tile<path, kDown>;
        default: return round_tile<path, kStochastic>;
    }
}

// stochastic.py's hash, of numbers that `counted` has multiplied and added the low half of the key to.
constexpr uint32_t kGolden = 0x9E3779B1u;

inline U hashed(U h, uint32_t high) {
    h = ((h ^ (h >> 16)) * 0x21F0AAADu) ^ high;
    h = (h ^ (h >> 15)) * 0x735A2D97u;
    return h ^ (h >> 15);
}

// Of the numbers first, first + step, ...; the next lanes' are kLanes * step * kGolden further.
inline U counted(uint32_t first, uint32_t step, uint32_t low) {
    U number{};
    for (int l = 0; l < kLanes; ++l) number[l] = (first + step * l) * kGolden + low;
    return number;
}

// Random bits of the n elements from `number` on; a page of 2^32 numbers may end among them.
void draw_tile(const Draw& draw, int64_t number, uint32_t* random, int64_t n) {
    for (int64_t done = 0; done < n;) {
        int64_t page = (number + done) >> 32, until = ((page + 1) << 32) - number;
        if (until > n) until = n;
        const uint32_t* key = draw.keys + 2 * (page - (draw.first >> 32));
        U next = counted((uint32_t)(number + done), 1, key[0]);
        for (int64_t i = done; i < until; i += kLanes, next += kLanes * kGolden) *(U*)(random + i) = hashed(next, key[1]);
        done = until;
    }
}

// What saturation makes of q, rounded in the grid that goes on for one value. Counts finite elements that overflowed.
int64_t saturate_tile(const float* y, float* q, int64_t n, const Grid& g, int rounding, int saturation) {
    F max = splat(g.max_finite);
    U inf = splat(kExponent);
    I overflows{};
    bool keep_inf = g.has_inf && saturation != kFinite;
    bool clamps = saturation != kNone || !(g.has_inf || g.has_nan);
    F beyond = g.has_inf ? f(inf) : f(splat(0x7fc00000u));
    for (int64_t i = 0; i < n; i += kLanes) {
        F v = load(y + i), r = load(q + i);
        U sign = u(v) & kSign, size = u(v) & kMagnitude;
        F magnitude = f(u(r) & kMagnitude);
        I over = (I)(magnitude > max), finite = (I)(size < inf), infinite = (I)(size == inf);
        I negative = (I)(sign != 0u);
        if (!g.is_signed) over |= negative & ((I)(magnitude > 0.0f) | infinite);
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
            if (!g.is_signed) outside = select(negative, f(splat(0x7fc00000u)), outside);
            result = select(inwards, limit, outside);
        }
        if (keep_inf && clamps) result = select(g.is_signed ? infinite : infinite & ~negative, f(inf), result);
        magnitude = select(over, result, magnitude);
        if (!g.is_signed) sign = select((I)(magnitude != magnitude), sign, U{});
        else if (!g.has_negative_zero) sign = select((I)(magnitude == 0.0f), U{}, sign);
        store(q + i, f(u(magnitude) | sign));
    }
    int64_t count = 0;
    for (int l = 0; l < kLanes; ++l) count -= overflows[l];
    return count;
}

// -------------------------------------------------------------------------------------------------------- statistics

struct Sums {
    U max{}, min = splat(0xffffffffu);  // of the magnitude's bits; min of bits - 1, so that zero is the largest
    F signal{}, error{};                // sums of squares

    void range(F x) {
        U size = u(x) & kMagnitude;
        max = largest(max, size);
        min = smallest(min, size - 1u);
    }
    void powers(F value, F error_of_it) {
        signal = multiply_add(value, value, signal);
        error = multiply_add(error_of_it, error_of_it, error);
    }
};

// The same range over bfloat16 numbers, 32 a vector.
struct HalfRange {
    W max{}, min = W{} + (uint16_t)0xffff;

    void add(W x) {
        W size = x & (uint16_t)0x7fff, less = size - (uint16_t)1;
        max = max > size ? max : size;
        min = min < less ? min : less;
    }
    void into(Sums& sums) const {
        U high = (U)max, low = (U)min, zero = splat(0xffffffffu);
        sums.max = largest(sums.max, largest(high & 0xffff0000u, high << 16));
        // min holds size - 1 of 16 bits; of 32 bits size - 1 is ((size16) << 16) - 1.
        U first = (low >> 16), second = low & 0xffffu;
        first = select((I)(first == 0xffffu), zero, ((first + 1u) << 16) - 1u);
        second = select((I)(second == 0xffffu), zero, ((second + 1u) << 16) - 1u);
        sums.min = smallest(sums.min, smallest(first, second));
    }
};

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

// The definition, element by element: for tiles with infinities, NaN, or squares that float32 does not hold.
void count_plainly(const float* x, const float* y, const float* q, const float* scale, int64_t n,
                   double lowest, double highest, Counts& c) {
    for (int64_t i = 0; i < n; ++i) {
        if (std::isnan(x[i])) { c.field[4] += 1; continue; }
        if (std::isinf(x[i])) { c.field[5] += 1; continue; }
        double size = std::fabs((double)x[i]);
        double s = scale[i];
        if (size > 0) {
            c.field[6] = std::fmax(c.field[6], size);
            c.field[7] = std::fmin(c.field[7], size);
        }
        double value = q[i];
        if (!std::isfinite(q[i])) value = std::signbit(y[i]) ? lowest : highest;
        double e = value * s - (double)x[i];
        c.field[8] += size * size;
        c.field[9] += e * e;
    }
}

// Zero results of finite non-zero elements, and subnormal results.
void count_small(const float* x, const float* q, int64_t n, const Grid& g, Counts& c) {
    I vanished{}, subnormal{};
    for (int64_t i = 0; i < n; i += kLanes) {
        F v = load(x + i), r = load(q + i);
        F size = f(u(r) & kMagnitude);
        I zero = (I)(size == 0.0f);
        vanished -= zero & (I)(v != 0.0f) & (I)((u(v) & kMagnitude) < kExponent);
        subnormal -= (I)(size < g.min_normal) & ~zero;
    }
    for (int l = 0; l < kLanes; ++l) { c.field[2] += vanished[l]; c.field[3] += subnormal[l]; }
}

// The magnitudes of a tile.
struct Range {
    uint32_t max, min;
    explicit Range(const Sums& s) : max(largest_of(s.max)), min(smallest_of(s.min)) {}
    float amax() const { return bits_to_float(max); }
    float amin() const { return bits_to_float(min + 1u); }  // meaningless when max is 0
};

// ------------------------------------------------------------------------------------------------------------- tiles

// A table format: tables.py's buckets by the first 16 bits of a float32, and what each interval becomes.
struct Table {
    const int32_t *first, *jump;  // interval of the least number that begins so; how many further from `threshold` on
    const float *threshold, *thresholds, *result;  // where jump is -1, the search goes through all thresholds
    int32_t above, has_negative_zero;  // the interval above the table; that below it is 1
    double lowest, highest;            // finite values
};

struct Work {
    Grid grid;
    const Table* table;  // instead of the grid, whose numbers then only say how exact float32 sums are; or null
    const void* x;
    void* q;
    int x_type, q_type;
    int64_t rows, columns;
    // Scales: one of each, or one for each block, [ceil(rows / block_rows), ceil(columns / block_columns)].
    const float *inverse, *scale, *multiplier;
    int64_t block_rows, block_columns;  // 0: one scale
    bool multiplies, exact_scale, exact_narrow;
    int rounding, saturation;
    Draw draw;
    bool counts;
};

struct Tiles {
    alignas(64) float x[kTile + kLanes], y[kTile + kLanes], q[kTile + kLanes], inverse[kTile + kLanes],
        scale[kTile + kLanes], multiplier[kTile + kLanes];
    alignas(64) uint32_t random[kTile + kLanes];
};

inline int64_t padded(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

void load_tile(const Work& w, int64_t at, int64_t n, float* x) {
    int64_t whole = n / kLanes * kLanes;
    if (w.x_type == kFloat32) {
        std::memcpy(x, (const float*)w.x + at, n * 4);
    } else {
        const uint16_t* source = (const uint16_t*)w.x + at;
        for (int64_t i = 0; i < whole; i += kLanes) store(x + i, widen(source + i));
        for (int64_t i = whole; i < n; ++i) x[i] = bits_to_float((uint32_t)source[i] << 16);
    }
    for (int64_t i = n; i < padded(n); ++i) x[i] = 0.0f;
}

void store_tile(const Work& w, int64_t at, int64_t n, float* q) {
    if (w.q_type == kFloat32) {
        std::memcpy((float*)w.q + at, q, n * 4);
        return;
    }
    uint16_t* target = (uint16_t*)w.q + at;
    int64_t whole = n / kLanes * kLanes;
    for (int64_t i = 0; i < whole; i += kLanes) *(H*)(target + i) = __builtin_convertvector(narrowed(load(q + i)), H);
    if (whole < n) {
        H rest = __builtin_convertvector(narrowed(load(q + whole)), H);
        std::memcpy(target + whole, &rest, (n - whole) * 2);
    }
}

// The scales of n elements of a row from column `column` on.
void spread(const Work& w, const float* scales, int64_t row, int64_t column, int64_t n, float* out) {
    int64_t per_row = (w.columns + w.block_columns - 1) / w.block_columns;
    const float* s = scales + row / w.block_rows * per_row;
    if (w.block_columns == 1) {
        std::memcpy(out, s + column, n * 4);
    } else {
        int64_t i = 0;
        while (i < n) {
            int64_t block = (column + i) / w.block_columns;
            int64_t end = (block + 1) * w.block_columns - column;
            if (end > n) end = n;
            float value = s[block];
            for (; i < end; ++i) out[i] = value;
        }
    }
    for (int64_t i = n; i < padded(n); ++i) out[i] = 1.0f;
}

// Whether float32 holds the squares that a tile sums up: of elements up to `amax`, and of errors 2^-M of them.
bool squares_fit(float amax, const Grid& g) { return amax < 1e15f && amax > (g.mantissa_bits <= 10 ? 1e-12f : 1e-8f); }

void scale_tile(const Work& w, int64_t row, int64_t column, int64_t n, Tiles& t) {
    int64_t at = row * w.columns + column, m = padded(n);
    load_tile(w, at, n, t.x);
    if (w.block_columns) {
        spread(w, w.inverse, row, column, n, t.inverse);
        for (int64_t i = 0; i < m; i += kLanes) store(t.y + i, load(t.x + i) * load(t.inverse + i));
    } else {
        F inverse = splat(*w.inverse);
        for (int64_t i = 0; i < m; i += kLanes) store(t.y + i, load(t.x + i) * inverse);
    }
}

int64_t look_up_tile(const float* y, float* q, int64_t n, const Table& table) {
    int64_t over = 0;
    for (int64_t i = 0; i < n; ++i) {
        uint32_t key = float_to_bits(y[i]) >> 16;
        int32_t place = table.first[key], jump = table.jump[key];
        if (jump >= 0) place += y[i] >= table.threshold[key] ? jump : 0;
        else while (place <= table.above && y[i] >= table.thresholds[place]) ++place;
        float value = table.result[place];
        if (value == 0.0f && table.has_negative_zero) value = std::copysign(0.0f, y[i]);
        bool number = y[i] == y[i];
        q[i] = number ? value : y[i];
        over += number && (place == 1 || place == table.above);
    }
    return over;
}

// From y to q; counts what overflowed.
void quantize_tile(const Work& w, RoundTile round, int64_t row, int64_t column, int64_t n, Tiles& t, Counts& c) {
    int64_t m = padded(n);
    if (w.table) {
        c.field[1] += look_up_tile(t.y, t.q, n, *w.table);
        for (int64_t i = n; i < m; ++i) t.q[i] = 0.0f;  // a table need not have a zero
        return;
    }
    if (w.rounding == kStochastic) draw_tile(w.draw, w.draw.first + row * w.draw.columns + column, t.random, n);
    round(t.y, t.random, w.draw.bits, t.q, m, w.grid);
    // The padding is zero and stays zero.
    c.field[1] += saturate_tile(t.y, t.q, m, w.grid, w.rounding, w.saturation);
}

void count_tile(const Work& w, int64_t row, int64_t column, int64_t n, Tiles& t, Counts& c) {
    const Grid& g = w.grid;
    int64_t m = padded(n);
    if (w.block_columns) spread(w, w.scale, row, column, n, t.scale);
    else for (int64_t i = 0; i < m; ++i) t.scale[i] = *w.scale;
    Sums sums;
    for (int64_t i = 0; i < m; i += kLanes) {
        F x = load(t.x + i);
        sums.range(x);
        sums.powers(x, load(t.q + i) * load(t.scale + i) - x);
    }
    c.field[0] += n;
    Range range(sums);
    if (range.max == 0 && !w.table) return;  // a table need not have a zero
    bool usual = range.max < kExponent && squares_fit(range.amax(), g) && w.saturation != kNone &&
                 (w.exact_scale || g.mantissa_bits <= kShort);
    if (usual) {
        c.field[6] = std::fmax(c.field[6], (double)range.amax());
        c.field[7] = std::fmin(c.field[7], (double)range.amin());
        c.field[8] += total(sums.signal);
        c.field[9] += total(sums.error);
    } else {
        double highest = w.table ? w.table->highest : g.max_finite;
        double lowest = w.table ? w.table->lowest : g.is_signed ? -highest : 0.0;
        count_plainly(t.x, t.y, t.q, t.scale, n, lowest, highest, c);
    }
    count_small(t.x, t.q, m, g, c);
}

// Any cast, stage by stage.
void cast_tile(const Work& w, RoundTile round, int64_t row, int64_t column, int64_t n, Tiles& t, Counts& c) {
    int64_t m = padded(n);
    scale_tile(w, row, column, n, t);
    quantize_tile(w, round, row, column, n, t, c);
    if (w.counts) count_tile(w, row, column, n, t, c);
    if (w.multiplies) {
        if (w.block_columns) {
            spread(w, w.multiplier, row, column, n, t.multiplier);
            for (int64_t i = 0; i < m; i += kLanes) store(t.q + i, load(t.q + i) * load(t.multiplier + i));
        } else {
            F multiplier = splat(*w.multiplier);
            for (int64_t i = 0; i < m; i += kLanes) store(t.q + i, load(t.q + i) * multiplier);
        }
    }
    store_tile(w, row * w.columns + column, n, t.q);
}

// ------------------------------------------------------------------------------------------------------ in registers

enum Scales { kOne = 0, kRun = 1, kEach = 2 };  // of the tensor; of the run at hand; an array, one an element

// A run of whole lanes, or of pairs of them for bfloat16 to bfloat16.
struct Run {
    const void* x;
    void* q;
    int64_t n;
    const float *inverse, *scale, *multiplier;
    int64_t number;  // of the first element, for the draw
};

template <int path, int rounding, int scales, bool counts, bool packed>
struct Lane {
    const Grid& g;
    const Run& r;
    uint32_t key_high;
    int bits;
    F max, inverse_of_all, scale_of_all, multiplier_of_all;
    Sums& sums;

    inline F operator()(F x, int64_t i, U number, F& multiplier) const {
        F inverse = scales == kEach ? load(r.inverse + i) : inverse_of_all;
        multiplier = scales == kEach ? load(r.multiplier + i) : multiplier_of_all;
        F y = x * inverse;
        U sign = u(y) & kSign;
        F z = smaller(max, f(u(y) & kMagnitude));
        F rounded = round_magnitude<path, rounding>(z, sign, rounding == kStochastic ? hashed(number, key_high) : U{}, bits, g);
        if (!g.has_negative_zero) sign = select((I)(rounded == 0.0f), U{}, sign);
        F q = f(u(rounded) | sign);
        if (counts) {
            if (!packed) sums.range(x);
            if (scales == kOne) sums.powers(y, q - y);  // in units of the scale
            else sums.powers(x, (q - y) * (scales == kEach ? load(r.scale + i) : scale_of_all));
        }
        return q;
    }
};

template <int x_type, int q_type, int path, int rounding, int scales, bool counts>
void cast_run(const Run& run, const Work& w, Sums& sums) {
    // Copies, which the stores to q cannot be suspected of changing.
    const Run r = run;
    const Grid g = w.grid;
    uint32_t key_low = 0, key_high = 0;
    if (rounding == kStochastic) {
        const uint32_t* key = w.draw.keys + 2 * ((r.number >> 32) - (w.draw.first >> 32));
        key_low = key[0];
        key_high = key[1];
    }
    constexpr bool packed = x_type == kBFloat16 && q_type == kBFloat16 && scales != kEach;
    Sums local = sums;
    Lane<path, rounding, scales, counts, packed> lane{
        g, r, key_high, w.draw.bits, splat(g.max_finite), splat(*r.inverse), splat(*r.scale), splat(*r.multiplier), local};
    const bool exact = w.exact_narrow;
    F multiplier, other;
    if (packed) {
        HalfRange range;
        // 32 numbers a time: those at even places are the low halves of 32-bit words, the others the high halves.
        U even = counted((uint32_t)r.number, 2, key_low), odd = even + kGolden;
        for (int64_t i = 0; i < r.n; i += 2 * kLanes, even += 2 * kLanes * kGolden, odd += 2 * kLanes * kGolden) {
            U pair = *(const P*)((const uint16_t*)r.x + i);
            if (counts) range.add((W)pair);
            F low = lane(f(pair << 16), i, even, multiplier) * multiplier;
            F high = lane(f(pair & 0xffff0000u), i, odd, other) * other;
            U result = exact ? (u(low) >> 16) | (u(high) & 0xffff0000u) : narrowed(low) | narrowed(high) << 16;
            *(P*)((uint16_t*)r.q + i) = result;
        }
        if (counts) {
            range.into(local);
            sums = local;
        }
        return;
    }
    U number = counted((uint32_t)r.number, 1, key_low);
    for (int64_t i = 0; i < r.n; i += kLanes, number += kLanes * kGolden) {
        F x = x_type == kFloat32 ? load((const float*)r.x + i) : widen((const uint16_t*)r.x + i);
        F value = lane(x, i, number, multiplier) * multiplier;
        if (q_type == kFloat32) store((float*)r.q + i, value);
        else if (exact) *(H*)((uint16_t*)r.q + i) = __builtin_convertvector(u(value) >> 16, H);
        else *(H*)((uint16_t*)r.q + i) = __builtin_convertvector(narrowed(value), H);
    }
    if (counts) sums = local;
}

typedef void (*CastRun)(const Run&, const Work&, Sums&);

template <int path, int rounding, int scales, bool counts>
CastRun by_type(int x_type, int q_type) {
    if (x_type == kFloat32)
        return q_type == kFloat32 ? cast_run<0, 0, path, rounding, scales, counts>
                                  : cast_run<0, 1, path, rounding, scales, counts>;
    return q_type == kFloat32 ? cast_run<1, 0, path, rounding, scales, counts>
                              : cast_run<1, 1, path, rounding, scales, counts>;
}

template <int path, int rounding>
CastRun by_scales(const Work& w) {
    int x = w.x_type, q = w.q_type;
    if (!w.block_columns) return w.counts ? by_type<path, rounding, kOne, true>(x, q) : by_type<path, rounding, kOne, false>(x, q);
    if (w.block_columns == 1)
        return w.counts ? by_type<path, rounding, kEach, true>(x, q) : by_type<path, rounding, kEach, false>(x, q);
    return w.counts ? by_type<path, rounding, kRun, true>(x, q) : by_type<path, rounding, kRun, false>(x, q);
}

// The function that casts in registers, or null where there is none.
CastRun cast_run_of(const Work& w) {
    const Grid& g = w.grid;
    bool saturates = w.saturation == kFinite || (w.saturation == kPropagate && !g.has_inf) || !(g.has_inf || g.has_nan);
    bool aligned = w.block_columns <= 1 || w.block_columns % kLanes == 0;
    if (w.table || !saturates || !g.is_signed || !aligned || g.path == kUnits) return nullptr;
    if (w.rounding == kNearestEven)
        return g.path == kMagic ? by_scales<kMagic, kNearestEven>(w) : by_scales<kBits, kNearestEven>(w);
    if (w.rounding == kStochastic)
        return g.path == kMagic ? by_scales<kMagic, kStochastic>(w) : by_scales<kBits, kStochastic>(w);
    return nullptr;
}

// What became small or too large under nearest even on the magic path, from thresholds.
struct Outside {
    I vanished{}, below{}, over{};

    void add(const Run& r, int x_type, bool each, const Grid& g) {
        // On a tie: to zero, code 0; to the smallest normal, an even code, not to the largest subnormal.
        F vanishes = splat(g.min_positive / 2), small = splat(g.min_normal ? g.min_normal - g.min_positive / 2 : 0.0f);
        F most = splat(g.threshold_rounds_to_max ? g.overflow_threshold : std::nextafter(g.overflow_threshold, 0.0f));
        for (int64_t i = 0; i < r.n; i += kLanes) {
            F x = x_type == kFloat32 ? load((const float*)r.x + i) : widen((const uint16_t*)r.x + i);
            F size = f(u(x * (each ? load(r.inverse + i) : splat(*r.inverse))) & kMagnitude);
            I zero = (I)(size <= vanishes);
            vanished -= zero & (I)(x != 0.0f);
            below -= (I)(size < small) & ~zero;
            over -= (I)(size > most);
        }
    }
    void into(Counts& c) const {
        for (int l = 0; l < kLanes; ++l) {
            c.field[1] += over[l];
            c.field[2] += vanished[l];
            c.field[3] += below[l];
        }
    }
};

// The runs of n elements of a row from `column` on that share what Scales says.
template <typename Do>
void for_runs(const Work& w, int64_t row, int64_t column, int64_t n, Do&& each) {
    int64_t at = row * w.columns + column, number = w.draw.first + row * w.draw.columns + column;
    int64_t x_size = w.x_type == kFloat32 ? 4 : 2, q_size = w.q_type == kFloat32 ? 4 : 2;
    const char* x = (const char*)w.x + at * x_size;
    char* q = (char*)w.q + at * q_size;
    if (!w.block_columns) {
        each(Run{x, q, n, w.inverse, w.scale, w.multiplier, number});
        return;
    }
    int64_t per_row = (w.columns + w.block_columns - 1) / w.block_columns, base = row / w.block_rows * per_row;
    for (int64_t i = 0; i < n;) {
        int64_t s = base + (column + i) / w.block_columns;
        int64_t end = w.block_columns == 1 ? n : ((column + i) / w.block_columns + 1) * w.block_columns - column;
        if (end > n) end = n;
        each(Run{x + i * x_size, q + i * q_size, end - i, w.inverse + s, w.scale + s, w.multiplier + s, number + i});
        i = end;
    }
}

// One tile in registers, but for its last, incomplete lane.
void cast_tile_in_registers(const Work& w, CastRun run, RoundTile round, int64_t row, int64_t column, int64_t n,
                            Tiles& t, Counts& c) {
    const Grid& g = w.grid;
    int64_t step = w.x_type == kBFloat16 && w.q_type == kBFloat16 && w.block_columns != 1 ? 2 * kLanes : kLanes;
    int64_t whole = n / step * step;
    int64_t number = w.draw.first + row * w.draw.columns + column;
    bool pages = w.rounding == kStochastic && (number >> 32) != ((number + n - 1) >> 32);
    if (!whole || pages || (w.block_columns > 1 && w.block_columns % step)) {
        cast_tile(w, round, row, column, n, t, c);
        return;
    }
    Sums sums;
    for_runs(w, row, column, whole, [&](const Run& r) { run(r, w, sums); });
    if (whole < n) cast_tile(w, round, row, column + whole, n - whole, t, c);
    if (!w.counts) return;
    Range range(sums);
    if (range.max == 0) {
        c.field[0] += whole;
        return;
    }
    bool one = !w.block_columns, usual = range.max < kExponent && (w.exact_scale || g.mantissa_bits <= kShort);
    float amax = one ? range.amax() * *w.inverse : range.amax();
    if (!usual || !squares_fit(amax, g)) {
        scale_tile(w, row, column, whole, t);
        quantize_tile(w, round, row, column, whole, t, c);
        count_tile(w, row, column, whole, t, c);
        return;
    }
    double unit = one ? (double)*w.scale * (double)*w.scale : 1.0;
    c.field[0] += whole;
    c.field[6] = std::fmax(c.field[6], (double)range.amax());
    c.field[7] = std::fmin(c.field[7], (double)range.amin());
    c.field[8] += total(sums.signal) * unit;
    c.field[9] += total(sums.error) * unit;
    bool plain = one && amax <= g.max_finite && range.amin() * *w.inverse >= 2 * std::fmax(g.min_normal, g.min_positive);
    if (plain) return;
    if (g.path == kMagic && w.rounding == kNearestEven) {
        Outside outside;
        for_runs(w, row, column, whole, [&](const Run& r) { outside.add(r, w.x_type, w.block_columns == 1, g); });
        outside.into(c);
    } else {
        scale_tile(w, row, column, whole, t);
        quantize_tile(w, round, row, column, whole, t, c);
        count_small(t.x, t.q, whole, g, c);
    }
}

}  // namespace

extern "C" {

// What stays the same from cast to cast of one kind.
struct Kind {
    int32_t x_type, q_type, rounding, saturation, random_bits;
    Grid grid;
};

// Casts a contiguous matrix, to the kind's grid or to a table. Scales: one each, or one a block.
// `keys`, `number` (of the first element), `whole_columns`: the draw of stochastic rounding. `statistics`: 10 doubles,
// or null.
void altgrad_cast(const Kind* kind, const Table* table, const void* x, void* q, int64_t rows, int64_t columns, const float* inverse,
                  const float* scale, const float* multiplier, int64_t block_rows, int64_t block_columns,
                  const uint32_t* keys, int64_t number, int64_t whole_columns, double* statistics, int threads) {
    Work w;
    w.grid = kind->grid;
    w.table = table;
    w.x = x; w.q = q; w.x_type = kind->x_type; w.q_type = kind->q_type; w.rows = rows; w.columns = columns;
    w.inverse = inverse; w.scale = scale; w.multiplier = multiplier;
    w.block_rows = block_rows; w.block_columns = block_columns;
    w.multiplies = block_columns || *multiplier != 1.0f;
    w.rounding = kind->rounding; w.saturation = kind->saturation;
    w.draw = {keys, number, whole_columns, kind->random_bits};
    w.counts = statistics != nullptr;
    const Grid& g = w.grid;
    int64_t scales = block_columns ? ((rows + block_rows - 1) / block_rows) * ((columns + block_columns - 1) / block_columns) : 1;
    // Powers of two; and products that are bfloat16 numbers as they are: multiples of 2^-133, below 2^128.
    w.exact_scale = w.exact_narrow = true;
    if (w.counts)
        for (int64_t i = 0; i < scales; ++i) w.exact_scale &= (float_to_bits(scale[i]) & 0x7fffffu) == 0;
    if (w.q_type == kBFloat16)
        for (int64_t i = 0; i < scales; ++i) {
            float m = multiplier[i];
            w.exact_narrow &= (float_to_bits(m) & 0x7fffffu) == 0 && (double)m * g.min_positive >= 0x1p-133 &&
                              (double)m * g.max_finite < 0x1p128;
        }
    RoundTile round = g.path == kMagic    ? round_tile_of<kMagic>(w.rounding)
                      : g.path == kUnits ? round_tile_of<kUnits>(w.rounding)
                                          : round_tile_of<kBits>(w.rounding);
    if (!block_columns && (w.rounding != kStochastic || whole_columns == columns)) {
        w.columns = rows * columns;
        w.rows = 1;
    }
    CastRun run = cast_run_of(w);

    // A chunk is a stretch of one row, or a number of whole rows.
    int64_t row_chunks = (w.columns + kChunk - 1) / kChunk, rows_a_chunk = row_chunks > 1 ? 1 : kChunk / w.columns;
    if (rows_a_chunk < 1) rows_a_chunk = 1;
    int64_t chunks = row_chunks * ((w.rows + rows_a_chunk - 1) / rows_a_chunk);
    std::vector<Counts> counts(w.counts ? chunks : 0);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && chunks > 1)
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        static thread_local Tiles tiles;
        Counts c;
        int64_t first_row = chunk / row_chunks * rows_a_chunk;
        int64_t last_row = first_row + rows_a_chunk < w.rows ? first_row + rows_a_chunk : w.rows;
        int64_t first = chunk % row_chunks * kChunk;
        int64_t last = first + kChunk < w.columns ? first + kChunk : w.columns;
        for (int64_t row = first_row; row < last_row; ++row)
            for (int64_t column = first; column < last; column += kTile) {
                int64_t n = last - column < kTile ? last - column : kTile;
                if (run) cast_tile_in_registers(w, run, round, row, column, n, tiles, c);
                else cast_tile(w, round, row, column, n, tiles, c);
            }
        if (w.counts) counts[chunk] = c;
    }
    if (!w.counts) return;
    Counts sum;
    for (const Counts& c : counts) sum.merge(c);
    if (std::isinf(sum.field[7])) sum.field[7] = 0.0;
    for (int k = 0; k < kFields; ++k) statistics[k] = sum.field[k];
}

// The largest magnitude of each block of a contiguous matrix, as float32: NaN where there is one, 0 for nothing.
void altgrad_amax(const void* x, int type, int64_t rows, int64_t columns, int64_t block_rows, int64_t block_columns,
                  float* amax, int threads) {
    int64_t down = (rows + block_rows - 1) / block_rows, across = (columns + block_columns - 1) / block_columns;
    // Narrow blocks: a stretch of columns at a time down the rows; wide ones: block after block.
    bool narrow_blocks = block_columns < kLanes;
    // A whole number of blocks, so that no two threads share one.
    int64_t stretch = narrow_blocks ? kTile / block_columns * block_columns : block_columns;
    int64_t stretches = (columns + stretch - 1) / stretch;
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads) if (threads > 1 && rows * columns > 65536)
    for (int64_t d = 0; d < down; ++d)
        for (int64_t s = 0; s < stretches; ++s) {
            int64_t first = s * stretch, last = first + stretch < columns ? first + stretch : columns;
            int64_t bottom = (d + 1) * block_rows < rows ? (d + 1) * block_rows : rows;
            if (narrow_blocks) {
                alignas(64) uint32_t column_max[kTile + kLanes] = {};
                for (int64_t row = d * block_rows; row < bottom; ++row) {
                    int64_t n = last - first, i = 0;
                    if (type == kFloat32) {
                        const float* p = (const float*)x + row * columns + first;
                        for (; i + kLanes <= n; i += kLanes)
                            *(U*)(column_max + i) = largest(*(U*)(column_max + i), u(load(p + i)) & kMagnitude);
                        for (; i < n; ++i) {
                            uint32_t b = float_to_bits(p[i]) & kMagnitude;
                            if (b > column_max[i]) column_max[i] = b;
                        }
                    } else {
                        const uint16_t* p = (const uint16_t*)x + row * columns + first;
                        for (; i + kLanes <= n; i += kLanes)
                            *(U*)(column_max + i) = largest(*(U*)(column_max + i), u(widen(p + i)) & kMagnitude);
                        for (; i < n; ++i) {
                            uint32_t b = ((uint32_t)p[i] << 16) & kMagnitude;
                            if (b > column_max[i]) column_max[i] = b;
                        }
                    }
                }
                for (int64_t c = first; c < last;) {
                    int64_t block = c / block_columns, end = (block + 1) * block_columns;
                    if (end > columns) end = columns;
                    uint32_t best = 0;
                    int64_t stop = end < last ? end : last;
                    for (; c < stop; ++c)
                        if (column_max[c - first] > best) best = column_max[c - first];
                    amax[d * across + block] = bits_to_float(best);
                }
            } else {
                U most{};
                uint32_t best = 0;
                for (int64_t row = d * block_rows; row < bottom; ++row) {
                    int64_t n = last - first, i = 0;
                    if (type == kFloat32) {
                        const float* p = (const float*)x + row * columns + first;
                        for (; i + kLanes <= n; i += kLanes) most = largest(most, u(load(p + i)) & kMagnitude);
                        for (; i < n; ++i) {
                            uint32_t b = float_to_bits(p[i]) & kMagnitude;
                            if (b > best) best = b;
                        }
                    } else {
                        const uint16_t* p = (const uint16_t*)x + row * columns + first;
                        for (; i + kLanes <= n; i += kLanes) most = largest(most, u(widen(p + i)) & kMagnitude);
                        for (; i < n; ++i) {
                            uint32_t b = ((uint32_t)p[i] << 16) & kMagnitude;
                            if (b > best) best = b;
                        }
                    }
                }
                for (int l = 0; l < kLanes; ++l)
                    if (most[l] > best) best = most[l];
                amax[d * across + s] = bits_to_float(best);
            }
        }
}

}  // extern "C"
